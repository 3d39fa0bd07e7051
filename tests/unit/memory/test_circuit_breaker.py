from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from segstream.memory.circuit_breaker import CircuitBreaker


class Breaker(RuleBasedStateMachine):
    """While open, tries are at least a pause apart; the pause grows, but within its bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.breaker = CircuitBreaker(
            first_seconds=1.0, longest_seconds=8.0, clock=lambda: self.now
        )
        self.is_open = False
        self.blocked_until = 0.0

    @rule(seconds=st.floats(0.01, 10))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(is_well=st.booleans())
    def something_is_tried(self, is_well: bool) -> None:
        allowed = self.breaker.allows()
        if self.is_open and self.now < self.blocked_until:
            assert not allowed
        if not self.is_open:
            assert allowed
        if not allowed:
            return
        changed = self.breaker.succeeded() if is_well else self.breaker.failed()
        assert changed is (self.is_open if is_well else not self.is_open)
        self.is_open = not is_well
        self.blocked_until = self.now + 1.0

    @rule()
    def a_late_failure_tells_nothing_new(self) -> None:
        if self.is_open and not self.breaker.allows():
            assert self.breaker.failed() is False

    @invariant()
    def it_says_what_it_is(self) -> None:
        assert self.breaker.is_closed is not self.is_open


Breaker.TestCase.settings = settings(max_examples=80, deadline=None)
TestBreaker = Breaker.TestCase


def test_the_pause_doubles_up_to_its_bound() -> None:
    now = 0.0
    breaker = CircuitBreaker(first_seconds=1.0, longest_seconds=3.0, clock=lambda: now)
    assert breaker.failed()
    for pause in (1.0, 2.0, 3.0, 3.0):
        now += pause - 0.01
        assert not breaker.allows()
        now += 0.02
        assert breaker.allows()
        assert not breaker.allows()
        breaker.failed()
    now += 3.1
    assert breaker.allows()
    assert breaker.succeeded()
    assert breaker.allows()
