import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from segstream.errors import ExhaustedError
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import DeviceStorage
from segstream.pages import PageGeometry

GEOMETRY = PageGeometry(height=1, width=1, key_channels=1, value_channels=1)


def frames_in(bank: MemoryBank) -> list[int]:
    """What the engine would read: the marks in the bank's pages, oldest first."""
    return [int(bank.pages.keys[slot].item()) for slot in bank.slots]


def write(bank: MemoryBank, slot: int, frame: int) -> None:
    bank.pages.keys[slot] = frame


class BanksOnOnePool(RuleBasedStateMachine):
    """Two banks and a stranger share a pool; each frame carries a number of its own."""

    @initialize(
        memory_lengths=st.tuples(st.integers(1, 3), st.integers(1, 3)),
        num_pages=st.integers(2, 8),
    )
    def make_banks(self, memory_lengths: tuple[int, int], num_pages: int) -> None:
        self.pool = PagePool(GEOMETRY, num_pages, DeviceStorage())
        self.banks = [MemoryBank(self.pool, length) for length in memory_lengths]
        self.frames: list[list[int]] = [[], []]
        self.reserved: list[list[int]] = [[], []]
        self.strangers: list[int] = []
        self.num_frames = 0

    @rule(which=st.integers(0, 1))
    def reserve(self, which: int) -> None:
        if self.pool.num_used == self.pool.num_pages:
            with pytest.raises(ExhaustedError):
                self.banks[which].reserve()
        else:
            slot = self.banks[which].reserve()
            assert slot not in self.banks[which].slots
            self.reserved[which].append(slot)
            self.num_frames += 1
            write(self.banks[which], slot, self.num_frames)

    @rule(which=st.integers(0, 1))
    def commit(self, which: int) -> None:
        if not self.reserved[which]:
            with pytest.raises(AssertionError, match="nothing is reserved"):
                self.banks[which].commit()
            return
        slot = self.reserved[which].pop(0)
        self.frames[which].append(int(self.pool.pages.keys[slot].item()))
        self.banks[which].commit()

    @rule(which=st.integers(0, 1))
    def roll_back(self, which: int) -> None:
        if not self.reserved[which]:
            with pytest.raises(AssertionError, match="nothing is reserved"):
                self.banks[which].rollback()
            return
        before = self.banks[which].slots
        self.banks[which].rollback()
        assert self.banks[which].slots == before
        self.reserved[which].clear()

    @rule(which=st.integers(0, 1))
    def release(self, which: int) -> None:
        self.banks[which].release()
        self.frames[which].clear()
        self.reserved[which].clear()

    @precondition(lambda self: self.pool.num_used < self.pool.num_pages)
    @rule()
    def stranger_takes_a_page(self) -> None:
        slot = self.pool.allocate()
        self.pool.pages.keys[slot] = -1
        self.strangers.append(slot)

    @precondition(lambda self: self.strangers)
    @rule()
    def stranger_gives_a_page_back(self) -> None:
        self.pool.free(self.strangers.pop())

    @invariant()
    def each_bank_holds_its_last_committed_frames_oldest_first(self) -> None:
        for bank, frames in zip(self.banks, self.frames, strict=True):
            assert frames_in(bank) == frames[-bank.memory_length :]

    @invariant()
    def every_page_has_one_owner(self) -> None:
        self.pool.check_integrity()
        owned = [slot for bank in self.banks for slot in bank.slots]
        owned += [slot for slots in self.reserved for slot in slots]
        owned += self.strangers
        assert len(owned) == len(set(owned)) == self.pool.num_used


BanksOnOnePool.TestCase.settings = settings(max_examples=80, deadline=None)
TestBanksOnOnePool = BanksOnOnePool.TestCase


def test_bank_never_holds_more_than_its_length_and_the_frame_in_work() -> None:
    pool = PagePool(GEOMETRY, 3, DeviceStorage())
    bank = MemoryBank(pool, memory_length=2)
    for frame in range(10):
        write(bank, bank.reserve(), frame)
        bank.commit()
    assert frames_in(bank) == [8, 9]
    assert pool.num_used == 2


def test_release_takes_back_the_frame_in_work_too() -> None:
    pool = PagePool(GEOMETRY, 3, DeviceStorage())
    bank = MemoryBank(pool, memory_length=2)
    bank.reserve()
    bank.commit()
    bank.reserve()
    bank.release()
    assert pool.num_used == 0
    assert bank.slots == ()


@pytest.mark.parametrize("memory_length", [0, 1, 3])
def test_a_reset_keeps_only_the_frame_that_brought_it(memory_length: int) -> None:
    pool = PagePool(GEOMETRY, 4, DeviceStorage())
    bank = MemoryBank(pool, memory_length)
    for frame in range(5):
        write(bank, bank.reserve(), frame)
        bank.commit(is_reset=frame == 4)
    assert frames_in(bank) == [4][:memory_length]
    assert pool.num_used == min(1, memory_length)
    pool.check_integrity()


def test_released_bank_may_begin_anew() -> None:
    bank = MemoryBank(PagePool(GEOMETRY, 2, DeviceStorage()), memory_length=1)
    for _ in range(2):
        bank.reserve()
        bank.commit()
        bank.release()
    write(bank, bank.reserve(), 7)
    bank.commit()
    assert frames_in(bank) == [7]
