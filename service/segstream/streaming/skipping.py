"""Which frames are skipped, and which of those the memory takes in all the same."""

from segstream.streaming.messages import Frame
from segstream.wire import FramePolicy, SkipReason


def skip_reason(
    frame: Frame, policy: FramePolicy, waited_seconds: float, *, is_superseded: bool
) -> SkipReason | None:
    """Why the frame gets no label map; None where it gets one, or word of what is wrong with it.

    is_superseded: a newer frame waits already.
    """
    if frame.fault is not None:
        return None
    if frame.is_memorise_only:
        return SkipReason.MEMORISE_ONLY
    if is_superseded and policy is not FramePolicy.ALL:
        return SkipReason.SUPERSEDED
    if 0 < frame.deadline_seconds < waited_seconds:
        return SkipReason.DEADLINE_PASSED
    return None


def is_memorised(skip: SkipReason, policy: FramePolicy) -> bool:
    """Whether a frame that is skipped goes into the memory, where there is one."""
    return policy is FramePolicy.KEEP_MEMORY_SKIP_MASK or skip is SkipReason.MEMORISE_ONLY
