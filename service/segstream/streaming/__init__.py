"""Sessions: the way of a frame, whatever wire it came over."""

from segstream.streaming.held_sessions import HeldSessions
from segstream.streaming.messages import (
    EncodedLabelMap,
    Frame,
    FrameResult,
    MemoryTier,
    SessionConfig,
    SessionEndReason,
    SessionStatus,
    Skipped,
)
from segstream.streaming.resources import Resources
from segstream.streaming.segmenter import Segmenter
from segstream.streaming.session import Session
from segstream.streaming.stream import Stream
from segstream.streaming.stream_limits import StreamLimits

__all__ = [
    "EncodedLabelMap",
    "Frame",
    "FrameResult",
    "HeldSessions",
    "MemoryTier",
    "Resources",
    "Segmenter",
    "Session",
    "SessionConfig",
    "SessionEndReason",
    "SessionStatus",
    "Skipped",
    "Stream",
    "StreamLimits",
]
