"""Which session a stream gets: the one held here, what other replicas left of it, or a new one."""

import asyncio
import uuid

from segstream.doors.accounts import Account
from segstream.engine import ModelInfo
from segstream.errors import AlreadyExistsError, InvalidInputError, UnavailableError
from segstream.streaming.background import Background
from segstream.streaming.held_sessions import HeldSessions
from segstream.streaming.messages import SessionConfig, SessionEndReason
from segstream.streaming.recall import Recalled, recall
from segstream.streaming.resources import Resources
from segstream.streaming.session import Session
from segstream.wire import SessionOrigin

_TAKE_OVER_SECONDS = 5.0


class Admission:
    """Attaches streams to sessions, one at a time to each."""

    def __init__(
        self, resources: Resources, sessions: HeldSessions, background: Background
    ) -> None:
        self._resources = resources
        self._sessions = sessions
        self._background = background
        self._opening: set[str] = set()

    async def admit(self, config: SessionConfig, model: ModelInfo, account: Account) -> Session:
        """The session, with a stream attached.

        Raises AlreadyExistsError for an id in use, InvalidInputError for a resume under other
        conditions, UnavailableError where the stream before does not come to its end.
        """
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
        self._sessions.add(session)
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
            await self._sessions.forget(held, SessionEndReason.REPLACED)
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
            self._background.start(spill_tier.release(lease))
            raise
        return Session(lease, config, model, self._resources, recalled=recalled, account=account)


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
