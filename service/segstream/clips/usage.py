"""How much of each day's clip minutes an API key has used, on whichever replica.

A file for each clip and day, so that replicas write without a lock, and a clip that is worked on
again is not counted again. Times are UTC. Every method blocks: call it from a thread.
"""

import time
from datetime import UTC, datetime, timedelta
from typing import Final

from segstream.clips.records import Submission
from segstream.clips.storage import ClipStorage
from segstream.errors import ExhaustedError

_FOLDER: Final = "usage"


class ClipUsage:
    """Counts the seconds of clips, not those that they take."""

    def __init__(self, storage: ClipStorage) -> None:
        self._storage = storage

    def seconds_left(self, key_id: str, max_minutes_per_day: float, *, but: str = "") -> float:
        """Seconds of clips that the key may have segmented today, not counting clip ``but``."""
        used = 0.0
        folder = _folder(_today(), key_id)
        for name in self._storage.names(folder):
            if name != but and (stored := self._storage.read_if_there(f"{folder}/{name}")):
                used += float(stored)
        return 60 * max_minutes_per_day - used

    def check(self, key_id: str, max_minutes_per_day: float) -> None:
        """Raise ExhaustedError, with the time until tomorrow, if nothing is left."""
        if self.seconds_left(key_id, max_minutes_per_day) > 0:
            return
        error = ExhaustedError(
            f"this API key has used the {max_minutes_per_day:g} minutes of clips that it may have "
            "segmented each day (max_clip_minutes_per_day); a new day begins at 00:00 UTC"
        )
        error.retry_after_seconds = _seconds_until_tomorrow()
        raise error

    def charge(self, submission: Submission, seconds: float) -> None:
        """So many seconds of a clip are segmented, those of earlier attempts among them."""
        if submission.max_minutes_per_day is not None:
            path = f"{_folder(_today(), submission.key_id)}/{submission.id}"
            self._storage.replace(path, f"{seconds:.3f}".encode())

    def tidy(self) -> None:
        """Remove the days that are over."""
        today = _today()
        for day in self._storage.names(_FOLDER):
            if day < today:
                self._storage.remove(f"{_FOLDER}/{day}")


def _folder(day: str, key_id: str) -> str:
    return f"{_FOLDER}/{day}/{key_id}"


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _seconds_until_tomorrow() -> float:
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    midnight = datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=UTC)
    return max(1.0, midnight.timestamp() - time.time())
