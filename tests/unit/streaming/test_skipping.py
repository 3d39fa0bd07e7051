import pytest

from segstream.errors import InvalidInputError
from segstream.streaming import Frame
from segstream.streaming.skipping import is_memorised, skip_reason
from segstream.wire import FramePolicy, SkipReason

FRAME = Frame(0, None, b"")
HASTY = Frame(0, None, b"", deadline_seconds=0.5)
SILENT = Frame(0, None, b"", is_memorise_only=True)
FAULTY = Frame(0, None, b"", is_memorise_only=True, fault=InvalidInputError("no frame"))


@pytest.mark.parametrize("policy", FramePolicy)
@pytest.mark.parametrize(
    ("frame", "waited_seconds", "reason"),
    [
        (FRAME, 60.0, None),
        (HASTY, 0.4, None),
        (HASTY, 0.6, SkipReason.DEADLINE_PASSED),
        (SILENT, 0.0, SkipReason.MEMORISE_ONLY),
        (FAULTY, 0.0, None),
    ],
)
def test_a_frame_is_skipped_when_it_is_late_or_asks_for_no_answer(
    frame: Frame, policy: FramePolicy, waited_seconds: float, reason: SkipReason | None
) -> None:
    assert skip_reason(frame, policy, waited_seconds, is_superseded=False) is reason


@pytest.mark.parametrize("policy", FramePolicy)
def test_a_superseded_frame_is_skipped_unless_all_are_wanted(policy: FramePolicy) -> None:
    reason = None if policy is FramePolicy.ALL else SkipReason.SUPERSEDED
    assert skip_reason(HASTY, policy, 0.0, is_superseded=True) is reason
    assert skip_reason(SILENT, policy, 0.0, is_superseded=True) is SkipReason.MEMORISE_ONLY
    assert skip_reason(FAULTY, policy, 0.0, is_superseded=True) is None


def test_a_skipped_frame_is_memorised_where_that_was_asked_for() -> None:
    memorised = [
        (policy, skip)
        for policy in FramePolicy
        for skip in SkipReason
        if is_memorised(skip, policy)
    ]
    assert memorised == [
        (FramePolicy.ALL, SkipReason.MEMORISE_ONLY),
        (FramePolicy.LATEST, SkipReason.MEMORISE_ONLY),
        (FramePolicy.KEEP_MEMORY_SKIP_MASK, SkipReason.SUPERSEDED),
        (FramePolicy.KEEP_MEMORY_SKIP_MASK, SkipReason.DEADLINE_PASSED),
        (FramePolicy.KEEP_MEMORY_SKIP_MASK, SkipReason.MEMORISE_ONLY),
    ]
