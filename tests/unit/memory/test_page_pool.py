import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    precondition,
    rule,
)

from segstream.errors import ExhaustedError
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import DeviceStorage
from segstream.pages import PageGeometry

GEOMETRY = PageGeometry(height=2, width=3, key_channels=4, value_channels=5)


class AnyOrderOfAllocatingAndFreeing(RuleBasedStateMachine):
    """Against the plain set of slots that callers hold."""

    slots: Bundle[int] = Bundle("slots")

    @initialize(num_pages=st.integers(1, 5))
    def make_pool(self, num_pages: int) -> None:
        self.pool = PagePool(GEOMETRY, num_pages, DeviceStorage())
        self.held: set[int] = set()

    @precondition(lambda self: len(self.held) < self.pool.num_pages)
    @rule(target=slots)
    def allocate(self) -> int:
        slot = self.pool.allocate()
        assert slot not in self.held
        self.held.add(slot)
        return slot

    @precondition(lambda self: len(self.held) == self.pool.num_pages)
    @rule()
    def allocate_from_a_full_pool(self) -> None:
        with pytest.raises(ExhaustedError, match=str(self.pool.num_pages)):
            self.pool.allocate()

    @rule(slot=consumes(slots))
    def free(self, slot: int) -> None:
        self.pool.free(slot)
        self.held.remove(slot)

    @rule(slot=st.integers(-2, 6))
    def free_a_slot_nobody_holds(self, slot: int) -> None:
        if slot not in self.held:
            with pytest.raises(ValueError, match=str(slot)):
                self.pool.free(slot)

    @invariant()
    def every_page_has_one_owner(self) -> None:
        self.pool.check_integrity()
        assert self.pool.num_used == len(self.held)
        assert self.held <= set(range(self.pool.num_pages))


AnyOrderOfAllocatingAndFreeing.TestCase.settings = settings(max_examples=60, deadline=None)
TestAnyOrderOfAllocatingAndFreeing = AnyOrderOfAllocatingAndFreeing.TestCase


@pytest.mark.parametrize(("dtype", "num_bytes"), [(torch.float32, 4), (torch.float16, 2)])
def test_pages_are_laid_out_as_the_geometry_says(dtype: torch.dtype, num_bytes: int) -> None:
    pool = PagePool(GEOMETRY, 3, DeviceStorage(dtype))
    assert pool.pages.keys.shape == (3, 2, 3, 4)
    assert pool.pages.values.shape == (3, 2, 3, 5)
    assert pool.pages.keys.dtype == pool.pages.values.dtype == dtype
    assert pool.page_bytes == 2 * 3 * (4 + 5) * num_bytes
    stored = pool.pages.keys.nbytes + pool.pages.values.nbytes
    assert stored == pool.num_pages * pool.page_bytes


def test_page_given_back_last_is_handed_out_first() -> None:
    pool = PagePool(GEOMETRY, 4, DeviceStorage())
    first, second = pool.allocate(), pool.allocate()
    pool.free(first)
    pool.free(second)
    assert pool.allocate() == second
    assert pool.allocate() == first


def test_slot_cannot_be_freed_twice() -> None:
    pool = PagePool(GEOMETRY, 2, DeviceStorage())
    slot = pool.allocate()
    pool.free(slot)
    with pytest.raises(ValueError, match="not in use"):
        pool.free(slot)
    pool.check_integrity()


@pytest.mark.parametrize(
    ("free", "used", "fault"),
    [([1, 1, 2], {0}, "free twice"), ([0, 1, 2], {0}, "both"), ([1], {0}, "lost")],
)
def test_integrity_check_tells_what_is_wrong(free: list[int], used: set[int], fault: str) -> None:
    pool = PagePool(GEOMETRY, 3, DeviceStorage())
    pool._free, pool._used = free, used
    with pytest.raises(AssertionError, match=fault):
        pool.check_integrity()
