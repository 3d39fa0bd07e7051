"""What a drill counts."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from segstream.bench.drills import Load, _Stream, _sum_up, is_clean

LOAD = Load(Path("clip.mp4"), 1, 3, 96)
FRAMES = [np.zeros((2, 2, 3), np.uint8)] * 3


def stream(**changes: object) -> _Stream:
    """One whose three frames were sent and answered, a second after each other."""
    fields = {
        "digests": {0: b"a", 1: b"b", 2: b"c"},
        "answers": Counter({0: 1, 1: 1, 2: 1}),
        "sent_at": {0: 0.0, 1: 0.1, 2: 0.2},
        "answered_at": {0: 1.0, 1: 2.0, 2: 3.0},
    }
    return _Stream(0, FRAMES, LOAD, **(fields | changes))  # type: ignore[arg-type]


def test_an_undisturbed_stream_is_clean() -> None:
    drill = _sum_up("kill", [stream()], 0.0, [stream()])
    assert is_clean(drill)
    assert (drill["frames_sent"], drill["frames_answered"]) == (3, 3)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({"answers": Counter({0: 1, 1: 1}), "digests": {0: b"a", 1: b"b"}}, "frames_lost"),
        ({"answers": Counter({0: 1, 1: 2, 2: 1})}, "frames_twice"),
        ({"digests": {0: b"a", 1: b"x", 2: b"c"}}, "label_maps_differing"),
        ({"error": "gone"}, "sessions_lost"),
    ],
)
def test_each_fault_is_counted(changes: dict[str, object], count: str) -> None:
    drill = _sum_up("kill", [stream(**changes)], 0.0, [stream()])
    assert drill[count] == 1
    assert not is_clean(drill)


def test_the_wait_is_that_for_answers_after_the_disturbance() -> None:
    assert stream(answered_at={0: 1.0, 1: 6.0, 2: 7.0}).longest_wait(since=2.0) == 4.0
    assert stream(answered_at={0: 1.0, 1: 1.5, 2: 1.8}).longest_wait(since=2.0) == 0.0


def test_a_pause_in_which_nothing_was_sent_is_no_wait() -> None:
    paused = stream(sent_at={0: 0.0, 1: 0.1, 2: 9.0}, answered_at={0: 1.0, 1: 2.0, 2: 9.5})
    assert paused.longest_wait(since=0.5) == 1.0


def test_recovery_is_that_of_the_sessions_that_had_to_move() -> None:
    moved = stream(num_resumed=1, answered_at={0: 1.0, 1: 2.0, 2: 5.0})
    drill = _sum_up("kill", [stream(), moved], 0.0, [stream(), stream()])
    assert (drill["sessions_resumed"], drill["recovery_p95_seconds"]) == (1, 3.0)
