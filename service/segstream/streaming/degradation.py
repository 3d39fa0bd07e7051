"""The degradation ladder: what overload costs before anyone is refused."""


class DegradationLadder:
    """Reads less memory while frames wait long, and all of it again when they do not.

    Level 0 reads all T pages, each further level half as many, the last none. One level is taken
    when the smoothed queue time has been above the bound for ``_CLIMB_SECONDS``, one is given back
    when it has been below half of it for ``_DESCEND_SECONDS``. Bound 0: always level 0.
    """

    _CLIMB_SECONDS = 2.0
    _DESCEND_SECONDS = 10.0
    _SMOOTHING = 0.1

    def __init__(self, memory_length: int, above_queue_seconds: float = 0.0) -> None:
        self._depths = [memory_length]
        while self._depths[-1] > 0:
            self._depths.append(self._depths[-1] // 2)
        self._bound = above_queue_seconds
        self._queue_seconds = 0.0
        self._level = 0
        self._calm_since: float | None = None
        self._busy_since: float | None = None

    @property
    def level(self) -> int:
        return self._level

    def read_depth(self) -> int:
        """Pages that a frame may read now, at most."""
        return self._depths[self._level]

    def observe(self, queue_seconds: float, now: float) -> None:
        """A frame waited so long; ``now`` is any clock's time in seconds."""
        if not self._bound:
            return
        self._queue_seconds += self._SMOOTHING * (queue_seconds - self._queue_seconds)
        is_busy = self._queue_seconds > self._bound
        is_calm = self._queue_seconds < self._bound / 2
        self._busy_since = (self._busy_since or now) if is_busy else None
        self._calm_since = (self._calm_since or now) if is_calm else None
        if self._busy_since is not None and now - self._busy_since >= self._CLIMB_SECONDS:
            self._move(+1, now)
        elif self._calm_since is not None and now - self._calm_since >= self._DESCEND_SECONDS:
            self._move(-1, now)

    def _move(self, step: int, now: float) -> None:
        self._level = min(max(self._level + step, 0), len(self._depths) - 1)
        self._busy_since = self._calm_since = now
