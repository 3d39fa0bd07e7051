"""How many streams and sessions there may be, and how long they may be silent."""

from dataclasses import dataclass


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
