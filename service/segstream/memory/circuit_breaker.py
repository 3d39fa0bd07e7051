"""The circuit breaker: leaves alone what has failed, but for a probe now and then."""

import time
from collections.abc import Callable


class CircuitBreaker:
    """Open after a failure; lets one probe through after a pause that doubles while probes fail.

    first_seconds, longest_seconds: the shortest and the longest pause.
    """

    def __init__(
        self,
        *,
        first_seconds: float = 0.25,
        longest_seconds: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._clock = clock
        self._pause = 0.0
        self._probe_at = 0.0
        self._is_probing = False

    @property
    def is_closed(self) -> bool:
        """Whether all is well."""
        return not self._pause

    def allows(self) -> bool:
        """Whether to try; while open, True once for each pause that has passed."""
        if self.is_closed:
            return True
        if self._clock() < self._probe_at:
            return False
        self._probe_at = self._clock() + self._pause
        self._is_probing = True
        return True

    def succeeded(self) -> bool:
        """A try went well. True if that closes the breaker."""
        was_open = not self.is_closed
        self._pause = 0.0
        self._is_probing = False
        return was_open

    def failed(self) -> bool:
        """A try failed. True if that opens the breaker.

        A try that began before it opened tells nothing new.
        """
        was_closed = self.is_closed
        if not was_closed and not self._is_probing:
            return False
        self._is_probing = False
        self._pause = min(self._longest_seconds, max(self._first_seconds, 2 * self._pause))
        self._probe_at = self._clock() + self._pause
        return was_closed
