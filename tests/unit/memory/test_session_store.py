"""The store against plain lists of frame numbers; each number is written into the frame's page."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from structlog.testing import capture_logs

from segstream.errors import ExhaustedError
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.page_storage import DeviceStorage
from segstream.memory.session_store import SessionStore
from segstream.pages import PageGeometry

SMALL = PageGeometry(height=1, width=1, key_channels=1, value_channels=1)
LARGE = PageGeometry(height=2, width=3, key_channels=1, value_channels=1)
PAGE_BYTES = SMALL.num_elements * 4
MEMORY_LENGTH = 2
BANK_BYTES = PAGE_BYTES * (MEMORY_LENGTH + 1)

_R = TypeVar("_R")


class Holder:
    """A session that keeps what its bank held when the store took it away."""

    def __init__(self, geometry: PageGeometry = SMALL) -> None:
        self.geometry = geometry
        self.frames: list[int] = []
        self.saved: list[int] = []

    async def save(self, bank: MemoryBank) -> None:
        await asyncio.sleep(0)
        self.saved = frames_in(bank)

    async def step(self, store: SessionStore, frame: int) -> None:
        """Restore what was saved, look at it, append a frame."""
        async with store.hold(self, self.geometry, MEMORY_LENGTH) as bank:
            if not bank.slots:
                for number in self.saved:
                    append(bank, number)
            self.saved = []
            assert frames_in(bank) == self.frames[-MEMORY_LENGTH:]
            slot = bank.reserve()
            await asyncio.sleep(0)
            bank.pages.keys[slot] = frame
            bank.commit()
            self.frames.append(frame)


def frames_in(bank: MemoryBank) -> list[int]:
    return [int(bank.pages.keys[slot].flatten()[0].item()) for slot in bank.slots]


def append(bank: MemoryBank, frame: int) -> None:
    bank.pages.keys[bank.reserve()] = frame
    bank.commit()


def make_store(num_banks: float = 4, dtype: torch.dtype = torch.float32) -> SessionStore:
    return SessionStore(
        max_bytes=int(num_banks * BANK_BYTES),
        max_banks_per_pool=64,
        storage=DeviceStorage(dtype),
    )


class SessionsTakeTurns(RuleBasedStateMachine):
    """More sessions than banks, of two geometries, some at once: none loses or mixes up a frame."""

    @initialize(num_banks=st.integers(6, 12))
    def make(self, num_banks: int) -> None:
        self.loop = asyncio.new_event_loop()
        self.store = make_store(num_banks)
        self.holders = [Holder(SMALL) for _ in range(8)] + [Holder(LARGE) for _ in range(2)]
        self.num_frames = 0

    def run(self, work: Coroutine[Any, Any, _R]) -> _R:
        return self.loop.run_until_complete(asyncio.wait_for(work, 10))

    @rule(which=st.sets(st.integers(0, 9), min_size=1, max_size=6))
    def some_get_a_frame_at_once(self, which: set[int]) -> None:
        async def all_of_them() -> None:
            steps = []
            for number in which:
                self.num_frames += 1
                steps.append(self.holders[number].step(self.store, self.num_frames))
            await asyncio.gather(*steps)

        self.run(all_of_them())

    @rule(which=st.integers(0, 9))
    def one_is_evicted(self, which: int) -> None:
        was_there = self.holders[which] in self.store
        assert self.run(self.store.evict(self.holders[which])) is was_there

    @rule(which=st.integers(0, 9))
    def one_ends(self, which: int) -> None:
        self.run(self.store.drop(self.holders[which]))
        self.holders[which].frames.clear()
        self.holders[which].saved.clear()

    @invariant()
    def pages_and_budget_add_up(self) -> None:
        held = sum(min(len(h.frames), MEMORY_LENGTH) for h in self.holders if h in self.store)
        assert sum(pool.num_used for pool in self.store.pools) == held
        assert self.store.reserved_bytes <= self.store.max_bytes
        for pool in self.store.pools:
            pool.check_integrity()
        for holder in self.holders:
            expected = [] if holder in self.store else holder.frames[-MEMORY_LENGTH:]
            assert holder.saved == expected

    def teardown(self) -> None:
        if hasattr(self, "loop"):
            self.loop.close()


SessionsTakeTurns.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None
)
TestSessionsTakeTurns = SessionsTakeTurns.TestCase


async def test_the_least_recently_used_gives_way() -> None:
    store, holders = make_store(3), [Holder() for _ in range(4)]
    for number in (0, 1, 2, 0, 3):
        await holders[number].step(store, number)
    assert [holder in store for holder in holders] == [True, False, True, True]


async def test_who_is_held_does_not_give_way_and_the_other_waits() -> None:
    store, one, other = make_store(1), Holder(), Holder()
    async with store.hold(one, SMALL, MEMORY_LENGTH):
        waiting = asyncio.create_task(other.step(store, 7))
        await asyncio.sleep(0.01)
        assert not waiting.done()
        assert not await store.evict(one)
    await asyncio.wait_for(waiting, 5)
    assert one not in store


async def test_a_bank_that_can_never_fit_is_refused_and_nobody_gives_way() -> None:
    store, holder = make_store(1), Holder()
    await holder.step(store, 1)
    with pytest.raises(ExhaustedError, match="all sessions together may have 24") as refused:
        await Holder(LARGE).step(store, 2)
    assert refused.value.retry_after_seconds is None, "it will never fit"
    assert holder in store


async def test_a_pool_goes_with_its_last_bank_and_makes_room_for_another_size() -> None:
    store, small, large = make_store(6), Holder(), Holder(LARGE)
    await small.step(store, 1)
    await large.step(store, 2)
    assert [pool.geometry for pool in store.pools] == [LARGE]
    assert small.saved == [1]


async def test_failed_save_takes_the_bank_all_the_same() -> None:
    class Broken(Holder):
        async def save(self, bank: MemoryBank) -> None:
            raise OSError("disk full")

    store, holder = make_store(1), Broken()
    await holder.step(store, 1)
    with pytest.raises(OSError, match="disk full"):
        await store.evict(holder)
    assert store.pools == ()


async def test_a_failed_save_does_not_fail_the_session_that_needs_the_room() -> None:
    class Broken(Holder):
        async def save(self, bank: MemoryBank) -> None:
            raise OSError("disk full")

    store, other = make_store(1), Holder()
    await Broken().step(store, 1)
    with capture_logs() as logged:
        await other.step(store, 2)
    assert other.frames == [2]
    assert [event["event"] for event in logged] == ["a memory could not be saved"]


async def test_evictions_are_told_with_their_bytes() -> None:
    told: list[int] = []
    store = SessionStore(
        max_bytes=BANK_BYTES,
        max_banks_per_pool=64,
        storage=DeviceStorage(),
        on_evict=lambda seconds, num_bytes: told.append(num_bytes),
    )
    one, other = Holder(), Holder()
    await one.step(store, 1)
    await one.step(store, 2)
    assert await store.evict(one)
    assert told == [], "nobody needed the room"
    await one.step(store, 3)
    await other.step(store, 4)
    assert told == [2 * PAGE_BYTES]


async def test_sessions_of_one_geometry_share_a_pool() -> None:
    store = make_store(64)
    for number in range(4):
        await Holder().step(store, number)
    assert [pool.num_pages for pool in store.pools] == [8 * (MEMORY_LENGTH + 1)]


async def test_session_without_a_frame_yet_may_change_its_geometry() -> None:
    store, holder = make_store(8), Holder()
    async with store.hold(holder, SMALL, MEMORY_LENGTH):
        pass
    async with store.hold(holder, LARGE, MEMORY_LENGTH) as bank:
        assert bank.pool.geometry == LARGE
    assert len(store.pools) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
async def test_pages_are_stored_in_the_type_asked_for(dtype: torch.dtype) -> None:
    store = make_store(dtype=dtype)
    async with store.hold(Holder(), SMALL, MEMORY_LENGTH) as bank:
        assert bank.pages.keys.dtype == bank.pages.values.dtype == dtype
