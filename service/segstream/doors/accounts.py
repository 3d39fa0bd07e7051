"""What each key has in use of what it may."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

from segstream.doors.keys import Limits
from segstream.errors import ExhaustedError

# No session id has it in it, and file names may.
_SEPARATOR: Final = "@"

OnLimit = Callable[[str], None]


def _ignore(quota: str) -> None:
    """Nobody counts."""


class FrameBudget:
    """So many frames a second on the average, and at most a second's worth of them at once.

    ``rate`` None: no bound. What several streams take at once is paid back before the next frame.
    """

    def __init__(self, rate: float | None) -> None:
        self.rate = rate
        self._level = self._capacity
        self._filled_at = time.monotonic()

    @property
    def _capacity(self) -> float:
        return max(1.0, self.rate or 0.0)

    def seconds_to_wait(self) -> float:
        """Until the next frame may be computed; 0: now."""
        if self.rate is None:
            return 0.0
        now = time.monotonic()
        gained = (now - self._filled_at) * self.rate
        self._level = min(self._capacity, self._level + gained)
        self._filled_at = now
        return max(0.0, (1.0 - self._level) / self.rate)

    def spend(self) -> None:
        """One frame is computed."""
        self._level -= 1.0


class Account:
    """One key's place in this replica. ``key_id`` is empty where no keys are asked for.

    ``on_limit`` is told the name of a quota each time that it holds something back.
    """

    def __init__(
        self, key_id: str = "", limits: Limits | None = None, on_limit: OnLimit = _ignore
    ) -> None:
        self.key_id = key_id
        self.num_streams = 0
        self._on_limit = on_limit
        self.limits = limits or Limits()
        self.frames = FrameBudget(self.limits.max_frames_per_second)

    def change_limits(self, limits: Limits) -> None:
        """From now on; streams that are open stay so."""
        self.limits = limits
        self.frames.rate = limits.max_frames_per_second

    def scoped(self, session_id: str) -> str:
        """The session's name among those of all keys: each key has a world of ids of its own."""
        return f"{self.key_id}{_SEPARATOR}{session_id}" if self.key_id else session_id

    def check_sessions(self) -> None:
        """Raise ExhaustedError if the key may open no other session now."""
        most = self.limits.max_sessions
        if most is not None and self.num_streams >= most:
            self._on_limit("sessions")
            raise ExhaustedError(
                f"{self.num_streams} sessions of this API key are streaming, which is its limit "
                "(max_sessions); end one, or try again later"
            )

    def take_frame(self) -> None:
        """One frame, now. Raises ExhaustedError, with the time to wait."""
        seconds = self.frames.seconds_to_wait()
        if seconds > 0:
            self._on_limit("frames_per_second")
            error = ExhaustedError(
                f"this API key may have {self.frames.rate:g} frames per second computed "
                f"(max_frames_per_second); try again in {seconds:.1f} seconds"
            )
            error.retry_after_seconds = seconds
            raise error
        self.frames.spend()

    async def wait_for_frame(self) -> None:
        """Until the key may have another frame computed."""
        if (seconds := self.frames.seconds_to_wait()) > 0:
            self._on_limit("frames_per_second")
        while seconds > 0:
            await asyncio.sleep(seconds)
            seconds = self.frames.seconds_to_wait()

    def clip_minutes_reached(self) -> None:
        """A clip was refused because the day's minutes are used up."""
        self._on_limit("clip_minutes")


def key_id_of(scoped: str) -> str:
    """The id of the key whose session has this name; empty: nobody's."""
    return scoped.rpartition(_SEPARATOR)[0]


def session_id_of(scoped: str) -> str:
    """The session's id as its client knows it."""
    return scoped.rpartition(_SEPARATOR)[2]
