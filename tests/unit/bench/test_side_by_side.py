"""Rounds, ratios and failures, on a clock of our own."""

import pytest
import torch
from torch import Tensor

from segstream.bench import side_by_side
from segstream.bench.side_by_side import Contender, describe, measure

ONE = torch.ones(1)


class Clock:
    """Stands still but for what is told to take time; some calls are slower than others."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def contender(self, name: str, *seconds: float, every: bool = False) -> Contender:
        """Its calls take these times, and the last one from then on."""
        waiting = list(seconds)

        def call() -> Tensor:
            self.log.append(name)
            self.now += waiting.pop(0) if len(waiting) > 1 else waiting[0]
            return ONE

        return Contender(call, takes_every_round=every)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(side_by_side, "time", clock)
    return clock


def test_a_slow_first_call_does_not_count(clock: Clock) -> None:
    kernel, sgemm = clock.contender("kernel", 500, 1, every=True), clock.contender("sgemm", 90, 2)
    measure([kernel, sgemm], rounds=5, seconds_each=20)
    assert kernel.seconds == [1.0] * 5
    assert sgemm.seconds == [2.0] * 5
    assert (kernel.median, sgemm.times(kernel)) == (1.0, 2.0)


@pytest.mark.parametrize(("seconds", "rounds"), [(1, 15), (3, 5), (100, 3)])
def test_slow_ones_sit_out_some_rounds(clock: Clock, seconds: float, rounds: int) -> None:
    slow, kernel = clock.contender("slow", seconds), clock.contender("kernel", 100, every=True)
    measure([slow, kernel], rounds=15, seconds_each=15)
    assert len(slow.seconds) == len(kernel.seconds) == 15
    assert (len(slow.measured), len(kernel.measured)) == (rounds, 15)


def test_ratios_are_taken_within_a_round(clock: Clock) -> None:
    kernel, other = Contender(lambda: ONE), Contender(lambda: ONE)
    kernel.seconds = [1.0, 10.0, 1.0, 1.0, 1.0]
    other.seconds = [None, 20.0, 3.0, None, 2.0]
    assert other.times(kernel) == 2.0
    other.seconds = [None] * 5
    assert other.times(kernel) is None


def test_the_order_changes_from_round_to_round_and_is_always_the_same(clock: Clock) -> None:
    orders = []
    for _ in range(2):
        clock.log.clear()
        measure([clock.contender(name, 1) for name in "abcd"], rounds=6, seconds_each=99)
        orders.append([clock.log[4 + 4 * r : 8 + 4 * r] for r in range(6)])
    assert orders[0] == orders[1]
    assert all(sorted(order) == list("abcd") for order in orders[0])
    assert len({tuple(order) for order in orders[0]}) > 2


def test_one_that_fails_later_is_left_out_and_the_rest_go_on(clock: Clock) -> None:
    calls = 0

    def call() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise RuntimeError
        return ONE

    failing, kernel = Contender(call), clock.contender("kernel", 1)
    measure([failing, kernel], rounds=4, seconds_each=9)
    assert failing.failure == "RuntimeError"
    assert calls == 3
    assert len(kernel.measured) == 4


def test_what_must_not_fail_raises(clock: Clock) -> None:
    def call() -> Tensor:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        measure([Contender(call, may_fail=False)], rounds=4, seconds_each=9)


def test_the_result_is_compared_with_the_reference() -> None:
    contender = Contender(lambda: ONE, torch.tensor([0.75], dtype=torch.float64))
    measure([contender], rounds=1, seconds_each=1)
    assert contender.max_error == 0.25


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "MemoryError"),
        (ValueError("\n\n"), "ValueError"),
        (ValueError("first\nsecond"), "ValueError: first"),
    ],
)
def test_an_error_is_told_in_one_line(error: Exception, text: str) -> None:
    assert describe(error) == text
