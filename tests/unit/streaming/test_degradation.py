"""The ladder: up when frames wait, down when they do not, and never to and fro."""

from hypothesis import given
from hypothesis import strategies as st

from segstream.streaming.degradation import DegradationLadder

BOUND = 0.1


def observe(ladder: DegradationLadder, queue_seconds: float, *, start: int, stop: int) -> int:
    """Ten frames a second that waited so long; returns the level at the end."""
    for tick in range(10 * start, 10 * stop):
        ladder.observe(queue_seconds, 1 + tick / 10)
    return ladder.level


def test_overload_takes_half_of_the_memory_step_by_step_until_none_is_read() -> None:
    ladder = DegradationLadder(4, BOUND)
    depths = [ladder.read_depth()]
    for second in range(20):
        observe(ladder, 10 * BOUND, start=second, stop=second + 1)
        if ladder.read_depth() != depths[-1]:
            depths.append(ladder.read_depth())
    assert depths == [4, 2, 1, 0]
    assert ladder.level == 3


def test_calm_gives_it_back_more_slowly_than_overload_took_it() -> None:
    ladder = DegradationLadder(4, BOUND)
    assert observe(ladder, 10 * BOUND, start=0, stop=30) == 3
    assert observe(ladder, 0.0, start=30, stop=40) == 3
    assert observe(ladder, 0.0, start=40, stop=46) == 2
    assert observe(ladder, 0.0, start=46, stop=90) == 0
    assert ladder.read_depth() == 4


def test_between_calm_and_busy_nothing_moves() -> None:
    ladder = DegradationLadder(4, BOUND)
    observe(ladder, 10 * BOUND, start=0, stop=4)
    level = observe(ladder, 0.75 * BOUND, start=4, stop=12)
    assert level > 0
    assert observe(ladder, 0.75 * BOUND, start=12, stop=100) == level


def test_one_late_frame_is_no_overload() -> None:
    ladder = DegradationLadder(4, BOUND)
    ladder.observe(5 * BOUND, 1.0)
    assert observe(ladder, 0.0, start=1, stop=20) == 0


@given(waits=st.lists(st.floats(0, 100), max_size=50))
def test_without_a_bound_all_of_the_memory_is_read(waits: list[float]) -> None:
    ladder = DegradationLadder(4)
    for now, wait in enumerate(waits):
        ladder.observe(wait, float(now))
    assert (ladder.level, ladder.read_depth()) == (0, 4)
