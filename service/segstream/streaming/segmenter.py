"""The segmenter: opens sessions for the wires, parks them between streams, and ends them."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import structlog
from opentelemetry.trace import get_current_span

from segstream.doors.accounts import Account, key_id_of
from segstream.engine import ModelInfo
from segstream.errors import (
    AlreadyExistsError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    UnavailableError,
)
from segstream.memory.lease import Lease
from segstream.streaming.messages import (
    MemoryTier,
    SessionConfig,
    SessionEndReason,
    SessionStatus,
)
from segstream.streaming.pipeline import Pipeline
from segstream.streaming.recall import Recalled, recall
from segstream.streaming.resources import Resources
from segstream.streaming.session import Session
from segstream.streaming.stream import Stream
from segstream.wire import SessionOrigin

_log = structlog.get_logger(__name__)

_FINAL = (SessionEndReason.CLIENT_CLOSED, SessionEndReason.CLOSED)
_PARKED_PER_STREAM = 4
_TAKE_OVER_SECONDS = 5.0
_NUM_SPILLS_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """``max_pending_frames`` wait in each stage of a stream; ``idle_seconds`` end a silent one.

    A memory unused for ``spill_after_seconds`` leaves the device; a session without a stream is
    forgotten after ``session_ttl_seconds``. ``max_sessions`` may stream at once.
    """

    max_sessions: int = 64
    max_pending_frames: int = 2
    idle_seconds: float = 300.0
    spill_after_seconds: float = 60.0
    session_ttl_seconds: float = 600.0


class Segmenter:
    """Admits sessions while it is not stopping, and holds them until they end or move on.

    Each key sees its own sessions only, and names them as it likes. An ``account`` that is left out
    is that of nobody's sessions, without quotas.
    """

    def __init__(self, resources: Resources, limits: StreamLimits, default_model: str) -> None:
        self._resources = resources
        self.limits = limits
        self.default_model = default_model
        self._sessions: dict[str, Session] = {}
        self._opening: set[str] = set()
        self._num_streams = 0
        self._is_stopping = False
        self._is_quiet = asyncio.Event()
        self._is_quiet.set()
        self._tasks: set[asyncio.Task[Any]] = set()
        resources.spill_tier.on_lost = self._lost

    @property
    def models(self) -> dict[str, ModelInfo]:
        return self._resources.engine.models

    @property
    def is_ready(self) -> bool:
        """Whether new sessions are taken."""
        return self._resources.engine.is_ready and not self._is_stopping

    @property
    def num_streams(self) -> int:
        return self._num_streams

    @property
    def num_parked(self) -> int:
        return sum(not session.is_streaming for session in self._sessions.values())

    def num_on_tier(self, tier: MemoryTier) -> int:
        """Sessions whose memory is there."""
        return sum(session.memory.tier is tier for session in self._sessions.values())

    def num_bytes_on_tier(self, tier: MemoryTier) -> int:
        """Bytes that the sessions have there."""
        return sum(session.memory.num_bytes_on(tier) for session in self._sessions.values())

    @asynccontextmanager
    async def open(
        self, config: SessionConfig, account: Account | None = None
    ) -> AsyncIterator[Session]:
        """A session for the time of a stream; what becomes of it then its ``end_reason`` says.

        Raises NotFoundError for an unknown model, AlreadyExistsError for an id in use,
        ExhaustedError when there are too many sessions, here or of the account, InvalidInputError
        for a resume under other conditions, UnavailableError while stopping.
        """
        account = account or Account()
        model = self._check(config)
        if not self._is_takeover(config, account):
            account.check_sessions()
        self._begin_stream(account)
        try:
            session = await self._admit(config, model, account)
        except BaseException:
            self._end_stream(account)
            raise
        stream = session.stream
        if self._is_stopping:  # since it was checked
            stream.end(SessionEndReason.SHUTDOWN)
        log = _log.bind(session_id=session.name, model=model.name, epoch=session.lease.epoch)
        structlog.contextvars.bind_contextvars(session_id=session.name)
        get_current_span().set_attributes(
            {
                "segstream.session_id": session.name,
                "segstream.model": model.name,
                "segstream.origin": session.origin.value,
                "segstream.epoch": session.lease.epoch,
            }
        )
        log.info("stream began", origin=session.origin.value)
        try:
            yield session
        except (asyncio.CancelledError, GeneratorExit):
            stream.end(
                SessionEndReason.SHUTDOWN if self._is_stopping else SessionEndReason.CLIENT_GONE
            )
            self._spawn(self._close_stream(session, stream))
            raise
        except BaseException:
            stream.end(SessionEndReason.FAULT)
            await asyncio.shield(self._spawn(self._close_stream(session, stream)))
            raise
        else:
            await asyncio.shield(self._spawn(self._close_stream(session, stream)))
        finally:
            self._resources.metrics.stream_ended(stream.end_reason.value)
            log.info(
                "stream ended",
                reason=stream.end_reason.value,
                num_label_maps=session.num_label_maps,
            )

    @asynccontextmanager
    async def open_alone(self, config: SessionConfig) -> AsyncIterator[Session]:
        """A memoryless session for images that stand alone; not listed. Raises as ``open``."""
        account = Account()
        model = self._check(config)
        self._begin_stream(account)
        config = replace(config, is_memoryless=True)
        session = Session(Lease.unshared(), config, model, self._resources, account=account)
        try:
            yield session
        finally:
            closing = self._spawn(self._close_alone(session))
        await asyncio.shield(closing)

    def pipeline(self, session: Session) -> Pipeline:
        """A pipeline for the frames of an open session."""
        return Pipeline(
            session,
            max_pending_frames=self.limits.max_pending_frames,
            idle_seconds=self.limits.idle_seconds,
        )

    async def leave(self, session: Session, stream: Stream) -> None:
        """End a stream of the session, and do with the session what the stream's end asks for.

        Before the client hears of the end, so that it finds everything in order; and to the end,
        even if whoever asked is cancelled.
        """
        if stream.leaving is None:
            stream.leaving = self._spawn(self._leave(session, stream))
        await asyncio.shield(stream.leaving)

    async def _leave(self, session: Session, stream: Stream) -> None:
        try:
            await session.settle()
            await self._settle_fate(session, stream.end_reason)
        finally:
            session.heard_at = time.monotonic()
            stream.is_over.set()

    async def _settle_fate(self, session: Session, reason: SessionEndReason) -> None:
        """Forget it, hand it over, or leave it parked."""
        if session.lease.is_lost or reason in _FINAL:
            await self._forget(session, reason)
        elif reason is SessionEndReason.SHUTDOWN:
            await self._hand_over(session)

    def check_model(self, name: str) -> str:
        """The model of this name, or the default one for none. Raises NotFoundError."""
        name = name or self.default_model
        if name not in self.models:
            raise NotFoundError(
                f"config.model {name!r} is not served; the models are {sorted(self.models)}",
                field="config.model",
                value=name,
            )
        return name

    def statuses(self, account: Account | None = None) -> list[SessionStatus]:
        """All sessions of the account that are held here."""
        return [session.status() for session in self._sessions_of(account or Account())]

    def status(self, session_id: str, account: Account | None = None) -> SessionStatus:
        """One of them. Raises NotFoundError."""
        return self._find(session_id, account or Account()).status()

    async def close(self, session_id: str, account: Account | None = None) -> None:
        """End a session for good, stream or no stream. Raises NotFoundError."""
        await self._close(self._find(session_id, account or Account()))

    async def close_all(self, account: Account) -> None:
        """End all sessions of an account for good."""
        await asyncio.gather(*map(self._close, self._sessions_of(account)))

    async def _close(self, session: Session) -> None:
        while session.is_streaming:
            stream = session.stream
            stream.end(SessionEndReason.CLOSED)
            await stream.is_over.wait()
        await self._forget(session, SessionEndReason.CLOSED)

    async def tidy(self) -> None:
        """Spill memories that lie idle and forget sessions that nobody came back for."""
        now = time.monotonic()
        for session in list(self._sessions.values()):
            idle_seconds = now - session.heard_at
            if not session.is_streaming and idle_seconds > self.limits.session_ttl_seconds:
                await self._forget(session, SessionEndReason.EXPIRED)
            elif idle_seconds > self.limits.spill_after_seconds:
                await session.memory.spill()

    async def drain(self, deadline_seconds: float) -> None:
        """Take no new sessions, let open streams answer what they took, and hand everything over.

        What is not done by the deadline is given up: of those sessions the frame log is left.
        """
        self._is_stopping = True
        for session in self._sessions.values():
            session.stream.end(SessionEndReason.SHUTDOWN)
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._hand_over_parked()
                await self._is_quiet.wait()
                await self._hand_over_parked()  # whose stream was ending already
        except TimeoutError:
            _log.warning("drain deadline passed", streams=self._num_streams, parked=self.num_parked)

    async def _hand_over_parked(self) -> None:
        slots = asyncio.Semaphore(_NUM_SPILLS_AT_ONCE)

        async def hand_over(session: Session) -> None:
            async with slots:
                await self._hand_over(session)

        parked = [session for session in self._sessions.values() if not session.is_streaming]
        await asyncio.gather(*map(hand_over, parked), return_exceptions=True)

    def _check(self, config: SessionConfig) -> ModelInfo:
        if not self.is_ready:
            raise UnavailableError("the service is starting or shutting down; try another replica")
        name = self.check_model(config.model)
        if self._num_streams >= self.limits.max_sessions:
            raise ExhaustedError(
                f"{self._num_streams} sessions are streaming, which is the limit; try again later",
                limit=self.limits.max_sessions,
            )
        return self.models[name]

    def _is_takeover(self, config: SessionConfig, account: Account) -> bool:
        """Whether the stream takes the place of one that counts still."""
        held = self._sessions.get(account.scoped(config.session_id))
        return held is not None and held.is_streaming and config.resume_from is not None

    async def _admit(self, config: SessionConfig, model: ModelInfo, account: Account) -> Session:
        name = account.scoped(config.session_id or uuid.uuid4().hex)
        if name in self._opening:
            raise _in_use(config.session_id)
        self._opening.add(name)
        try:
            held = await self._release_held(name, config)
            if held is not None:
                _check_same(held, config, model)
                held.origin = SessionOrigin.RESUMED
                held.attach(config)
                return held
            session = await self._open_here(name, config, model, account)
        finally:
            self._opening.remove(name)
        self._sessions[name] = session
        return session

    async def _release_held(self, name: str, config: SessionConfig) -> Session | None:
        """The session of this name, parked, if it is here and to be gone on with."""
        held = self._sessions.get(name)
        if held is None:
            return None
        if held.is_streaming:
            if config.resume_from is None:
                raise _in_use(held.id)
            held.stream.end(SessionEndReason.REPLACED)
            try:
                async with asyncio.timeout(_TAKE_OVER_SECONDS):
                    await held.stream.is_over.wait()
            except TimeoutError as error:
                raise UnavailableError(
                    f"session_id {held.id!r} is still busy with the stream before; try again",
                    field="config.session_id",
                ) from error
        if config.resume_from is None:
            await self._forget(held, SessionEndReason.REPLACED)
        return self._sessions.get(name)

    async def _open_here(
        self, name: str, config: SessionConfig, model: ModelInfo, account: Account
    ) -> Session:
        """A session that was not here: from what other replicas left of it, or anew."""
        spill_tier = self._resources.spill_tier
        lease = await spill_tier.claim(name)
        recalled = Recalled()
        try:
            if config.resume_from is not None and not config.is_memoryless:
                recalled = await recall(spill_tier, lease, model, config.resume_from)
            elif config.session_id:
                await spill_tier.forget(lease)
                lease = await spill_tier.claim(name)
        except BaseException:
            self._spawn(spill_tier.release(lease))
            raise
        return Session(lease, config, model, self._resources, recalled=recalled, account=account)

    async def _close_stream(self, session: Session, stream: Stream) -> None:
        try:
            await self.leave(session, stream)
        finally:
            self._end_stream(session.account)
            self._trim_parked(session.account)

    async def _close_alone(self, session: Session) -> None:
        try:
            await session.settle()
            await session.memory.drop()
        finally:
            self._end_stream(session.account)

    def _begin_stream(self, account: Account) -> None:
        self._num_streams += 1
        account.num_streams += 1
        self._is_quiet.clear()

    def _end_stream(self, account: Account) -> None:
        self._num_streams -= 1
        account.num_streams -= 1
        if not self._num_streams:
            self._is_quiet.set()

    def _trim_parked(self, account: Account) -> None:
        """Parked sessions are bounded too; those longest parked go first."""
        bounds = [(list(self._sessions.values()), self.limits.max_sessions)]
        if account.limits.max_sessions is not None:
            # First: no key may push out the parked sessions of others.
            bounds.insert(0, (self._sessions_of(account), account.limits.max_sessions))
        for sessions, max_sessions in bounds:
            parked = [session for session in sessions if not session.is_streaming]
            parked.sort(key=lambda session: session.heard_at)
            num_surplus = len(parked) - _PARKED_PER_STREAM * max_sessions
            for session in parked[: max(0, num_surplus)]:
                self._spawn(self._forget(session, SessionEndReason.EXPIRED))

    async def _forget(self, session: Session, reason: SessionEndReason) -> None:
        """The session is over: here, and everywhere unless another replica has it now."""
        if not self._take_out(session):
            return
        await session.memory.drop()
        if not session.lease.is_lost:
            await self._resources.spill_tier.forget(session.lease)
        self._account(session, reason)

    async def _hand_over(self, session: Session) -> None:
        """Leave the session to whichever replica its client finds."""
        if not self._take_out(session):
            return
        await session.memory.spill()
        await self._resources.spill_tier.flush()
        await self._resources.spill_tier.release(session.lease)
        self._account(session, SessionEndReason.SHUTDOWN)

    def _take_out(self, session: Session) -> bool:
        """False where it is not held any more; its id may be another session's by now."""
        if self._sessions.get(session.name) is not session:
            return False
        del self._sessions[session.name]
        return True

    def _account(self, session: Session, reason: SessionEndReason) -> None:
        self._resources.metrics.session_ended(reason.value)
        _log.info("session ended", session_id=session.name, reason=reason.value)

    def _lost(self, name: str) -> None:
        """Another replica has taken the session over."""
        session = self._sessions.get(name)
        if session is None:
            return
        if session.is_streaming:
            session.stream.end(SessionEndReason.REPLACED)
        else:
            self._spawn(self._forget(session, SessionEndReason.REPLACED))

    def _sessions_of(self, account: Account) -> list[Session]:
        return [each for name, each in self._sessions.items() if key_id_of(name) == account.key_id]

    def _find(self, session_id: str, account: Account) -> Session:
        session = self._sessions.get(account.scoped(session_id))
        if session is None:
            raise NotFoundError(
                f"session_id {session_id!r} is not held by this replica; "
                "list the sessions to see which are",
                field="session_id",
                value=session_id,
            )
        return session

    def _spawn(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Do it even if whoever asked is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("closing a session failed", exc_info=error)


def _in_use(session_id: str) -> AlreadyExistsError:
    return AlreadyExistsError(
        f"config.session_id {session_id!r} is in use by another stream; "
        "choose another, or take it over with config.resume",
        field="config.session_id",
        value=session_id,
    )


def _check_same(held: Session, config: SessionConfig, model: ModelInfo) -> None:
    """A session goes on as it began."""
    for field, old, new in (
        ("model", held.model.name, model.name),
        ("max_working_height", held.config.max_working_height, config.max_working_height),
        ("is_memoryless", held.config.is_memoryless, config.is_memoryless),
    ):
        if old != new:
            raise InvalidInputError(
                f"config.{field} is {new!r}, but session {held.id!r} began with {old!r}; "
                "go on with that, or begin anew without config.resume",
                field=f"config.{field}",
            )
