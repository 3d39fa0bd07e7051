"""The session store: which memory banks are on the device, and the pools they live in."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import structlog

from segstream.errors import ExhaustedError
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import PageStorage
from segstream.pages import PageGeometry

# A pool's share of what is left of the byte budget: small, so that frames of many sizes find room,
# but large enough that sessions of one size share a pool, and with it a batch.
_POOL_SHARE = 1 / 8

_log = structlog.get_logger(__name__)

OnEvict = Callable[[float, int], None]
"""Told of each bank that gave way to another: the seconds it took, and its bytes."""


class BankHolder(Protocol):
    """Who has a bank in the store: a session's memory."""

    async def save(self, bank: MemoryBank) -> None:
        """Keep elsewhere what the bank holds; it is taken away afterwards."""


@dataclass(slots=True, eq=False)
class _Resident:
    bank: MemoryBank
    is_held: bool = False


class SessionStore:
    """Keeps banks on the device under one byte budget; the least recently used one gives way.

    Pools are made when banks need them and dropped with their last bank. All methods belong to one
    event loop.
    """

    def __init__(
        self,
        *,
        max_bytes: int,
        max_banks_per_pool: int,
        storage: PageStorage,
        on_evict: OnEvict = lambda seconds, num_bytes: None,
    ) -> None:
        self.max_bytes = max_bytes
        self._max_banks_per_pool = max_banks_per_pool
        self._storage = storage
        self._on_evict = on_evict
        self._residents: dict[BankHolder, _Resident] = {}  # least recently used first
        self._pools: list[PagePool] = []
        self._changed = asyncio.Condition()

    def __contains__(self, holder: BankHolder) -> bool:
        return holder in self._residents

    @property
    def pools(self) -> tuple[PagePool, ...]:
        return tuple(self._pools)

    @property
    def reserved_bytes(self) -> int:
        """Bytes of all pools, whether their pages are in use or not."""
        return sum(pool.num_pages * pool.page_bytes for pool in self.pools)

    @asynccontextmanager
    async def hold(
        self, holder: BankHolder, geometry: PageGeometry, memory_length: int
    ) -> AsyncIterator[MemoryBank]:
        """The holder's bank, which nobody takes away within the context; an empty one at first.

        Waits while every other bank is held. Raises ExhaustedError when a bank of this size does
        not fit into the budget at all.
        """
        resident = await self._take(holder, geometry, memory_length)
        try:
            yield resident.bank
        finally:
            await self._let_go(holder, resident)

    async def evict(self, holder: BankHolder) -> bool:
        """Let the holder save its bank and take it away; False where it has none or it is held."""
        resident = self._residents.get(holder)
        if resident is None or resident.is_held:
            return False
        resident.is_held = True
        try:
            await holder.save(resident.bank)
        finally:
            self._remove(holder)
            await self._tell()
        return True

    async def drop(self, holder: BankHolder) -> None:
        """Take the holder's bank away unsaved, as soon as nobody holds it."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_held(holder))
            if holder in self._residents:
                self._remove(holder)
            self._changed.notify_all()

    async def _take(
        self, holder: BankHolder, geometry: PageGeometry, memory_length: int
    ) -> _Resident:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_held(holder))
            resident = self._residents.pop(holder, None)
            if resident is not None and resident.bank.pool.geometry != geometry:
                assert not resident.bank.slots, "a session keeps its geometry"
                self._release(resident.bank)
                resident = None
            if resident is not None:
                resident.is_held = True
                self._residents[holder] = resident
                return resident
        bank = await self._make_room(geometry, memory_length)
        resident = self._residents[holder] = _Resident(bank, is_held=True)
        return resident

    async def _make_room(self, geometry: PageGeometry, memory_length: int) -> MemoryBank:
        self._check_fits(geometry, memory_length + 1)
        while True:
            try:
                return MemoryBank(self._pool(geometry, memory_length + 1), memory_length)
            except ExhaustedError:
                if not self._residents:
                    raise
            victim = self._least_recently_used(geometry)
            if victim is not None:
                await self._give_way(victim)
                continue
            async with self._changed:
                await self._changed.wait_for(
                    lambda: self._least_recently_used(geometry) or not self._residents
                )

    async def _give_way(self, victim: BankHolder) -> None:
        """Evict it; what its holder fails with is no fault of the session that needs the room."""
        started, bank = time.perf_counter(), self._residents[victim].bank
        num_bytes = len(bank.slots) * bank.pool.page_bytes
        try:
            await self.evict(victim)
        except Exception:
            _log.exception("a memory could not be saved")
        self._on_evict(time.perf_counter() - started, num_bytes)

    def _least_recently_used(self, geometry: PageGeometry) -> BankHolder | None:
        """Who gives way: of the same geometry, else whoever is left."""
        free = [holder for holder, resident in self._residents.items() if not resident.is_held]
        same = (h for h in free if self._residents[h].bank.pool.geometry == geometry)
        return next(same, free[0] if free else None)

    async def _let_go(self, holder: BankHolder, resident: _Resident) -> None:
        resident.is_held = False
        self._residents[holder] = self._residents.pop(holder)
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def _is_held(self, holder: BankHolder) -> bool:
        resident = self._residents.get(holder)
        return resident is not None and resident.is_held

    def _remove(self, holder: BankHolder) -> None:
        self._release(self._residents.pop(holder).bank)

    def _release(self, bank: MemoryBank) -> None:
        bank.release()
        if not self._num_promised(bank.pool):
            self._pools.remove(bank.pool)

    def _pool(self, geometry: PageGeometry, num_pages: int) -> PagePool:
        """A pool of this geometry with room for ``num_pages`` more.

        All the pages that a bank will ever hold are promised to it, so that no frame of a session
        with a bank can fail for want of memory.
        """
        for pool in self._pools:
            if pool.geometry == geometry and self._num_promised(pool) + num_pages <= pool.num_pages:
                return pool
        pool = self._allocate(geometry, num_pages)
        self._pools.append(pool)
        return pool

    def _num_promised(self, pool: PagePool) -> int:
        """Pages that the banks of a pool may come to hold."""
        banks = (resident.bank for resident in self._residents.values())
        return sum(bank.memory_length + 1 for bank in banks if bank.pool is pool)

    def _check_fits(self, geometry: PageGeometry, num_pages: int) -> None:
        bank_bytes = self._num_bytes(geometry, num_pages)
        if bank_bytes > self.max_bytes:
            error = ExhaustedError(
                f"a session of this frame size needs {bank_bytes} bytes of memory, "
                f"all sessions together may have {self.max_bytes}; "
                "send smaller frames, or set max_working_height",
                limit=self.max_bytes,
            )
            error.retry_after_seconds = None  # it will never fit
            raise error

    def _num_bytes(self, geometry: PageGeometry, num_pages: int) -> int:
        return geometry.num_elements * self._storage.dtype.itemsize * num_pages

    def _allocate(self, geometry: PageGeometry, num_pages: int) -> PagePool:
        bank_bytes = self._num_bytes(geometry, num_pages)
        left = self.max_bytes - self.reserved_bytes
        if bank_bytes > left:
            raise ExhaustedError(
                f"a session of this frame size needs {bank_bytes} bytes of memory, "
                f"{left} of {self.max_bytes} are left"
            )
        num_banks = min(self._max_banks_per_pool, max(1, int(left * _POOL_SHARE) // bank_bytes))
        return PagePool(geometry, num_banks * num_pages, self._storage)
