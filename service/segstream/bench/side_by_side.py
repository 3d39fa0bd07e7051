"""Times several ways to do the same thing side by side.

Everything runs in turn, round after round and in another order each round, so that whatever else
the machine does falls on all alike. Ratios are taken within a round, and their median is given.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from torch import Tensor

MIN_ROUNDS = 3


@dataclass(slots=True)
class Contender:
    """One way to do it, and how it fared."""

    call: Callable[[], Tensor]
    reference: Tensor | None = None
    takes_every_round: bool = False  # however slow it is
    may_fail: bool = True  # and is left out then; else its error is raised
    seconds: list[float | None] = field(default_factory=list)  # by round; None where it sat out
    max_error: float | None = None
    failure: str | None = None

    @property
    def measured(self) -> list[float]:
        """The rounds it took part in."""
        return [seconds for seconds in self.seconds if seconds is not None]

    @property
    def median(self) -> float:
        return statistics.median(self.measured)

    def times(self, other: "Contender") -> float | None:
        """How many times as long it takes as another one; None without a round of both."""
        pairs = zip(self.seconds, other.seconds, strict=True)
        ratios = [mine / theirs for mine, theirs in pairs if mine and theirs]
        return statistics.median(ratios) if ratios else None


def measure(contenders: Sequence[Contender], *, rounds: int, seconds_each: float) -> None:
    """Fill in ``seconds``, and ``max_error`` or ``failure``.

    Each is warmed up by a call that does not count. Slow ones sit out some of the rounds, to take
    about ``seconds_each`` by what a second call took, but take part in at least three.
    """
    wanted = [_prepare(contender, rounds, seconds_each) for contender in contenders]
    random = Random(0)
    order = list(zip(contenders, wanted, strict=True))
    for index in range(rounds):
        random.shuffle(order)
        for contender, count in order:
            takes_part = index * count % rounds < count  # count of the rounds, evenly spread
            seconds = _time(contender) if takes_part else None
            contender.seconds.append(seconds)


def describe(error: Exception) -> str:
    """The kind of an error and the first line of its message."""
    first, *_ = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first}" if first else type(error).__name__


def _prepare(contender: Contender, rounds: int, seconds_each: float) -> int:
    """Warm it up and judge it; returns how many rounds it takes part in."""
    first = _time(contender, is_checked=True)
    if first is None or contender.takes_every_round or first * rounds <= seconds_each:
        return rounds
    second = _time(contender)
    if second is None or second * rounds <= seconds_each:
        return rounds
    return min(rounds, max(MIN_ROUNDS, int(seconds_each / second)))


def _time(contender: Contender, *, is_checked: bool = False) -> float | None:
    if contender.failure is not None:
        return None
    try:
        started = time.perf_counter()
        out = contender.call()
        seconds = time.perf_counter() - started
        if is_checked and contender.reference is not None:
            difference = out.flatten() - contender.reference.flatten()
            contender.max_error = difference.abs().max().item()
    except Exception as error:  # memory may run out, and other projects' code fail in any way
        if not contender.may_fail:
            raise
        contender.failure = describe(error)
        return None
    return seconds
