"""The sessions that this replica holds, until they end or move on to another one."""

import asyncio
import time

import structlog

from segstream.doors.accounts import Account, key_id_of
from segstream.errors import NotFoundError
from segstream.streaming.background import Background
from segstream.streaming.messages import MemoryTier, SessionEndReason, SessionStatus
from segstream.streaming.resources import Resources
from segstream.streaming.session import Session
from segstream.streaming.stream_limits import StreamLimits

_log = structlog.get_logger(__name__)

_FINAL = (SessionEndReason.CLIENT_CLOSED, SessionEndReason.CLOSED)
_PARKED_PER_STREAM = 4
_NUM_SPILLS_AT_ONCE = 4


class HeldSessions:
    """Those that stream, and those that are parked between two streams.

    Each account sees its own only; an account that is left out is that of nobody's sessions.
    """

    def __init__(self, resources: Resources, limits: StreamLimits, background: Background) -> None:
        self._resources = resources
        self._limits = limits
        self._background = background
        self._sessions: dict[str, Session] = {}
        resources.spill_tier.on_lost = self._lost

    @property
    def num_parked(self) -> int:
        return sum(not session.is_streaming for session in self._sessions.values())

    def num_on_tier(self, tier: MemoryTier) -> int:
        """Sessions whose memory is there."""
        return sum(session.memory.tier is tier for session in self._sessions.values())

    def num_bytes_on_tier(self, tier: MemoryTier) -> int:
        """Bytes that the sessions have there."""
        return sum(session.memory.num_bytes_on(tier) for session in self._sessions.values())

    def get(self, name: str) -> Session | None:
        return self._sessions.get(name)

    def add(self, session: Session) -> None:
        self._sessions[session.name] = session

    def end_streams(self, reason: SessionEndReason) -> None:
        """Ask all streams to end."""
        for session in self._sessions.values():
            session.stream.end(reason)

    def statuses(self, account: Account | None = None) -> list[SessionStatus]:
        """All sessions of the account that are held here."""
        return [session.status() for session in self._of(account or Account())]

    def status(self, session_id: str, account: Account | None = None) -> SessionStatus:
        """One of them. Raises NotFoundError."""
        return self._find(session_id, account or Account()).status()

    async def close(self, session_id: str, account: Account | None = None) -> None:
        """End a session for good, stream or no stream. Raises NotFoundError."""
        await self._close(self._find(session_id, account or Account()))

    async def close_all(self, account: Account) -> None:
        """End all sessions of an account for good."""
        await asyncio.gather(*map(self._close, self._of(account)))

    async def _close(self, session: Session) -> None:
        while session.is_streaming:
            stream = session.stream
            stream.end(SessionEndReason.CLOSED)
            await stream.is_over.wait()
        await self.forget(session, SessionEndReason.CLOSED)

    async def tidy(self) -> None:
        """Spill memories that lie idle and forget sessions that nobody came back for."""
        now = time.monotonic()
        for session in list(self._sessions.values()):
            idle_seconds = now - session.heard_at
            if not session.is_streaming and idle_seconds > self._limits.session_ttl_seconds:
                await self.forget(session, SessionEndReason.EXPIRED)
            elif idle_seconds > self._limits.spill_after_seconds:
                await session.memory.spill()

    async def part_with(self, session: Session, reason: SessionEndReason) -> None:
        """Its stream has ended: forget it, hand it over, or leave it parked."""
        if session.lease.is_lost or reason in _FINAL:
            await self.forget(session, reason)
        elif reason is SessionEndReason.SHUTDOWN:
            await self.hand_over(session)

    async def forget(self, session: Session, reason: SessionEndReason) -> None:
        """The session is over: here, and everywhere unless another replica has it now."""
        if not self._take_out(session):
            return
        await session.memory.drop()
        if not session.lease.is_lost:
            await self._resources.spill_tier.forget(session.lease)
        self._account(session, reason)

    async def hand_over(self, session: Session) -> None:
        """Leave the session to whichever replica its client finds."""
        if not self._take_out(session):
            return
        await session.memory.spill()
        await self._resources.spill_tier.flush()
        await self._resources.spill_tier.release(session.lease)
        self._account(session, SessionEndReason.SHUTDOWN)

    async def hand_over_parked(self) -> None:
        """Those whose stream is over; one that fails stops no other."""
        slots = asyncio.Semaphore(_NUM_SPILLS_AT_ONCE)

        async def hand_over(session: Session) -> None:
            async with slots:
                await self.hand_over(session)

        parked = [session for session in self._sessions.values() if not session.is_streaming]
        await asyncio.gather(*map(hand_over, parked), return_exceptions=True)

    def trim_parked(self, account: Account) -> None:
        """Parked sessions are bounded too; those longest parked go first."""
        bounds = [(list(self._sessions.values()), self._limits.max_sessions)]
        if account.limits.max_sessions is not None:
            # First: no key may push out the parked sessions of others.
            bounds.insert(0, (self._of(account), account.limits.max_sessions))
        for sessions, max_sessions in bounds:
            parked = [session for session in sessions if not session.is_streaming]
            parked.sort(key=lambda session: session.heard_at)
            num_surplus = len(parked) - _PARKED_PER_STREAM * max_sessions
            for session in parked[: max(0, num_surplus)]:
                self._background.start(self.forget(session, SessionEndReason.EXPIRED))

    def _lost(self, name: str) -> None:
        """Another replica has taken the session over."""
        session = self._sessions.get(name)
        if session is None:
            return
        if session.is_streaming:
            session.stream.end(SessionEndReason.REPLACED)
        else:
            self._background.start(self.forget(session, SessionEndReason.REPLACED))

    def _take_out(self, session: Session) -> bool:
        """False where it is not held any more; its id may be another session's by now."""
        if self._sessions.get(session.name) is not session:
            return False
        del self._sessions[session.name]
        return True

    def _account(self, session: Session, reason: SessionEndReason) -> None:
        self._resources.metrics.session_ended(reason.value)
        _log.info("session ended", session_id=session.name, reason=reason.value)

    def _of(self, account: Account) -> list[Session]:
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
