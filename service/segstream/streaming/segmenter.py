"""The segmenter: what the wires ask for sessions, and the streams that are open to them."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace

import structlog
from opentelemetry.trace import get_current_span

from segstream.doors.accounts import Account
from segstream.engine import ModelInfo
from segstream.errors import ExhaustedError, NotFoundError, UnavailableError
from segstream.memory.lease import Lease
from segstream.streaming.admission import Admission
from segstream.streaming.background import Background
from segstream.streaming.held_sessions import HeldSessions
from segstream.streaming.messages import SessionConfig, SessionEndReason
from segstream.streaming.pipeline import Pipeline
from segstream.streaming.resources import Resources
from segstream.streaming.session import Session
from segstream.streaming.stream import Stream
from segstream.streaming.stream_limits import StreamLimits

_log = structlog.get_logger(__name__)


class Segmenter:
    """Opens streams while it is not stopping; ``sessions`` are held until they end or move on.

    Each key names its sessions as it likes. An ``account`` that is left out is that of nobody's
    sessions, without quotas.
    """

    def __init__(self, resources: Resources, limits: StreamLimits, default_model: str) -> None:
        self._resources = resources
        self.limits = limits
        self.default_model = default_model
        self._background = Background()
        self.sessions = HeldSessions(resources, limits, self._background)
        self._admission = Admission(resources, self.sessions, self._background)
        self._num_streams = 0
        self._is_stopping = False
        self._is_quiet = asyncio.Event()
        self._is_quiet.set()

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
            session = await self._admission.admit(config, model, account)
        except BaseException:
            self._end_stream(account)
            raise
        stream = session.stream
        if self._is_stopping:  # since it was checked
            stream.end(SessionEndReason.SHUTDOWN)
        with self._told(session):
            try:
                yield session
            except (asyncio.CancelledError, GeneratorExit):
                stream.end(
                    SessionEndReason.SHUTDOWN if self._is_stopping else SessionEndReason.CLIENT_GONE
                )
                self._background.start(self._close_stream(session, stream))
                raise
            except BaseException:
                stream.end(SessionEndReason.FAULT)
                await asyncio.shield(self._background.start(self._close_stream(session, stream)))
                raise
            else:
                await asyncio.shield(self._background.start(self._close_stream(session, stream)))

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
            closing = self._background.start(self._close_alone(session))
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
            stream.leaving = self._background.start(self._leave(session, stream))
        await asyncio.shield(stream.leaving)

    async def _leave(self, session: Session, stream: Stream) -> None:
        try:
            await session.settle()
            await self.sessions.part_with(session, stream.end_reason)
        finally:
            session.heard_at = time.monotonic()
            stream.is_over.set()

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

    async def drain(self, deadline_seconds: float) -> None:
        """Take no new sessions, let open streams answer what they took, and hand everything over.

        What is not done by the deadline is given up: of those sessions the frame log is left.
        """
        self._is_stopping = True
        self.sessions.end_streams(SessionEndReason.SHUTDOWN)
        try:
            async with asyncio.timeout(deadline_seconds):
                await self.sessions.hand_over_parked()
                await self._is_quiet.wait()
                await self.sessions.hand_over_parked()  # whose stream was ending already
        except TimeoutError:
            num_parked = self.sessions.num_parked
            _log.warning("drain deadline passed", streams=self._num_streams, parked=num_parked)

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
        held = self.sessions.get(account.scoped(config.session_id))
        return held is not None and held.is_streaming and config.resume_from is not None

    @contextmanager
    def _told(self, session: Session) -> Iterator[None]:
        """A stream of the session, as operators are told of it."""
        stream, model, epoch = session.stream, session.model.name, session.lease.epoch
        log = _log.bind(session_id=session.name, model=model, epoch=epoch)
        structlog.contextvars.bind_contextvars(session_id=session.name)
        get_current_span().set_attributes(
            {
                "segstream.session_id": session.name,
                "segstream.model": model,
                "segstream.origin": session.origin.value,
                "segstream.epoch": epoch,
            }
        )
        log.info("stream began", origin=session.origin.value)
        try:
            yield
        finally:
            reason = stream.end_reason.value
            self._resources.metrics.stream_ended(reason)
            log.info("stream ended", reason=reason, num_label_maps=session.num_label_maps)

    async def _close_stream(self, session: Session, stream: Stream) -> None:
        try:
            await self.leave(session, stream)
        finally:
            self._end_stream(session.account)
            self.sessions.trim_parked(session.account)

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
