"""A clip and how its job fares, as they are stored and told."""

import secrets
import time
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction

from pydantic import BaseModel, ConfigDict

_ID_TIME_DIGITS = 12
_ID_RANDOM_BYTES = 10


class ClipState(StrEnum):
    """``queued → running → done | failed | cancelled``; an interrupted job is queued again."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class ClipOptions(_Record):
    """What to make of a clip. ``max_working_height`` in pixels, 0 for the clip's own."""

    model: str
    name: str = ""
    max_working_height: int = 0
    opacity: float = 0.55


class Submission(_Record):
    """What was handed in, and when; never changes.

    ``digest``: BLAKE2b-128 of the clip's bytes. ``key_id``: the API key that it belongs to; empty:
    none was asked for. ``max_minutes_per_day`` is what that key may have segmented. ``trace``: the
    W3C headers of the upload's trace.
    """

    id: str
    options: ClipOptions
    num_bytes: int
    digest: str
    submitted_at: float
    key_digest: str = ""
    key_id: str = ""
    max_minutes_per_day: float | None = None
    trace: dict[str, str] = {}


class Progress(_Record):
    """How far a job has come: ``num_frames_done`` are stored and will not be done again.

    ``num_frames`` is what the clip states of itself, None if it does not. ``attempt`` counts the
    times a worker took the job, ``num_stalled_attempts`` those in a row that stored nothing;
    ``last_error`` is why the last one broke off, if that is known.
    """

    attempt: int = 0
    num_stalled_attempts: int = 0
    is_running: bool = False
    num_frames_done: int = 0
    num_frames: int | None = None
    replica: str = ""
    started_at: float | None = None
    frames_per_second: float = 0.0
    last_error: str = ""


class Outcome(_Record):
    """How a job ended; the first one stored counts."""

    state: ClipState
    ended_at: float
    error: str = ""
    field: str = ""


@dataclass(frozen=True, slots=True)
class Clip:
    """All there is to tell of a clip."""

    submission: Submission
    progress: Progress
    outcome: Outcome | None

    @property
    def id(self) -> str:
        return self.submission.id

    @property
    def state(self) -> ClipState:
        if self.outcome is not None:
            return self.outcome.state
        return ClipState.RUNNING if self.progress.is_running else ClipState.QUEUED

    @property
    def is_over(self) -> bool:
        return self.outcome is not None

    @property
    def share_done(self) -> float | None:
        """The part of the frames that is done, 0 to 1; None if the clip tells no length."""
        if self.state is ClipState.DONE:
            return 1.0
        if not self.progress.num_frames:
            return None
        return min(1.0, self.progress.num_frames_done / self.progress.num_frames)

    @property
    def eta_seconds(self) -> float | None:
        """Until the last frame, at the present speed; None unless running at a known speed."""
        progress = self.progress
        if self.state is not ClipState.RUNNING or not progress.frames_per_second:
            return None
        if progress.num_frames is None:
            return None
        num_left = max(0, progress.num_frames - progress.num_frames_done)
        return num_left / progress.frames_per_second

    @property
    def revision(self) -> tuple[int, int, int]:
        """Rises with every change that is told."""
        progress = self.progress
        is_waiting_again = progress.attempt > 0 and not progress.is_running
        step = 2 if self.is_over else int(is_waiting_again)
        return (progress.attempt, progress.num_frames_done, step)


class ClipFacts(_Record):
    """What decoding told of a clip: size in pixels, as shown, and frame rate."""

    width: int
    height: int
    frames_per_second: Fraction
    num_frames: int | None


def new_clip_id() -> str:
    """32 hexadecimal digits; ids sort by the time they were made."""
    milliseconds = time.time_ns() // 1_000_000
    return f"{milliseconds:0{_ID_TIME_DIGITS}x}{secrets.token_hex(_ID_RANDOM_BYTES)}"
