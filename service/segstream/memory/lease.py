"""Leases: which replica may answer and write for a session."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable

from segstream.memory.spill_store import Claim

# Of a lease's time, the part that counts: clocks of two machines do not run alike.
_SAFETY = 0.9
# After a silence the first try often fails, for the connection has not survived it.
_NUM_TRIES = 5
_TRY_AGAIN_SECONDS = 0.1


class Lease:
    """A session is its holder's under ``epoch`` until it is lost to a holder with a higher one.

    It must be confirmed again and again: a holder that fell silent, because its process was
    stopped, cannot know whether it still has the session. Not ``is_fenced``: whoever could tell is
    out of reach, and so it counts as had.
    """

    def __init__(
        self,
        session_id: str,
        claim: Claim,
        renew: Callable[[], Awaitable[None]],
        *,
        is_fenced: bool,
    ) -> None:
        self.session_id = session_id
        self.epoch = claim.epoch
        self.is_fenced = is_fenced
        self._previous_epoch = claim.previous_epoch
        self._renew = renew
        self._is_lost = False
        self._not_before = time.monotonic() + claim.wait_seconds
        self._confirmed_until = 0.0

    @classmethod
    def unshared(cls) -> "Lease":
        """Of a session that no other replica can ever know of."""

        async def renew() -> None:
            """Nothing to renew."""

        return cls(uuid.uuid4().hex, Claim(epoch=1), renew, is_fenced=False)

    @property
    def is_lost(self) -> bool:
        return self._is_lost

    def lose(self) -> None:
        """Another replica has the session."""
        self._is_lost = True

    def confirmed(self, asked_at: float, seconds: float) -> None:
        """It holds for ``seconds`` from when it was asked for, by ``time.monotonic()``."""
        self.is_fenced = True
        self._confirmed_until = asked_at + _SAFETY * seconds

    def unconfirmed(self) -> None:
        """Word of it could not be had. Who hears of that in time was not silent, and goes on."""
        if not self._is_overdue:
            self.is_fenced = False

    @property
    def _is_overdue(self) -> bool:
        return self.is_fenced and time.monotonic() > self._confirmed_until

    def may_use(self, epoch: int) -> bool:
        """Whether a snapshot of that epoch that no replica shares can be the session's newest."""
        return not self.is_fenced or epoch in (self.epoch, self._previous_epoch)

    async def confirm(self) -> bool:
        """Whether its holder may answer for the session now.

        Waits until the holder before it can no longer, and, after a silence, for word of the store.
        """
        if (wait := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait)
        for _ in range(_NUM_TRIES):
            if self._is_lost or not self._is_overdue:
                return not self._is_lost
            await self._renew()
            await asyncio.sleep(_TRY_AGAIN_SECONDS * self._is_overdue)
        self.is_fenced = self.is_fenced and not self._is_overdue
        return not self._is_lost
