"""The memory of one session, wherever it is: on the device, spilled, or to be made from frames."""

import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import structlog

from segstream.engine import ModelInfo
from segstream.memory.frame_log import START, LoggedFrame
from segstream.memory.lease import Lease
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.snapshot import Snapshot
from segstream.pages import PageGeometry
from segstream.streaming.logged_frames import follow, whole_memory
from segstream.streaming.messages import Frame, MemoryTier
from segstream.streaming.recall import Recalled
from segstream.streaming.resources import Resources
from segstream.streaming.session_state import SessionState

_log = structlog.get_logger(__name__)

Memorise = Callable[[Sequence[LoggedFrame], MemoryBank], Awaitable[None]]

# The frame log holds more than the memory does, for a client that missed the last answers; a frame
# larger than this would crowd out too many others.
_NUM_SPARE_FRAMES = 8
_MAX_LOGGED_BYTES = 2 * 2**20


class SessionMemory:
    """Brings the bank to the device when a frame needs it, and keeps what can make it anew.

    The pages are restored from a snapshot or, where there is none, rebuilt by ``memorise`` from the
    last T frames: the same bits either way.
    """

    def __init__(
        self,
        resources: Resources,
        lease: Lease,
        model: ModelInfo,
        memory_length: int,
        *,
        recalled: Recalled,
        memorise: Memorise,
        describe: Callable[[], SessionState],
    ) -> None:
        self.tier = MemoryTier.NONE
        self.last_move = ""
        self.spill_bytes = 0
        self.was_lost = False
        self._resources = resources
        self._lease = lease
        self._model = model
        self.max_length = memory_length
        self._memorise = memorise
        self._describe = describe
        self._recalled: Recalled | None = recalled
        self._frames: deque[LoggedFrame] = deque(recalled.frames, maxlen=memory_length)
        self._last_index = recalled.last_index
        self._appended_at = deque([time.monotonic()] * recalled.num_pages, maxlen=memory_length)
        self._moved_at = time.monotonic()
        self._device_bytes = 0
        if recalled.snapshot is not None:
            self.tier = MemoryTier.SPILL
            self.spill_bytes = recalled.snapshot.num_bytes
        elif recalled.frames:
            self.tier = MemoryTier.FRAMES

    @property
    def device_bytes(self) -> int:
        return self._device_bytes if self.tier is MemoryTier.DEVICE else 0

    @property
    def frame_bytes(self) -> int:
        return sum(len(frame.data) for frame in self._frames)

    def num_bytes_on(self, tier: MemoryTier) -> int:
        """Bytes of this session that lie there, whatever tier the next frame will use."""
        return {
            MemoryTier.NONE: 0,
            MemoryTier.DEVICE: self.device_bytes,
            MemoryTier.SPILL: self.spill_bytes,
            MemoryTier.FRAMES: self.frame_bytes,
        }[tier]

    @property
    def last_frame(self) -> LoggedFrame | None:
        """The newest memorised frame, if it is at hand."""
        return self._frames[-1] if self._frames else None

    def page_ages(self) -> tuple[float, ...]:
        """Seconds since each page was memorised, or brought to this replica, oldest first."""
        now = time.monotonic()
        return tuple(now - appended for appended in self._appended_at)

    def last_move_age(self) -> float:
        """Seconds since ``last_move``, or since the session came here."""
        return time.monotonic() - self._moved_at

    @asynccontextmanager
    async def hold(self, geometry: PageGeometry, *, is_reset: bool) -> AsyncIterator[MemoryBank]:
        """The bank on the device for the time of the context, whole unless it is to be reset.

        Empty where the memory was lost: ``was_lost`` says so until a frame is appended. Raises
        ExhaustedError where it can never fit, and what the engine raises in a rebuild.
        """
        async with self._resources.store.hold(self, geometry, self.max_length) as bank:
            is_elsewhere = self.tier in (MemoryTier.SPILL, MemoryTier.FRAMES)
            if is_elsewhere and not bank.slots and not is_reset:
                await self._fill(bank)
            yield bank

    def appended(self, frame: Frame, bank: MemoryBank, *, is_reset: bool) -> None:
        """A frame has been committed to the bank: note it, and log it for a crash."""
        if is_reset:
            self._forget_pages()
        self.was_lost = False
        if not self.max_length:
            return
        self.tier = MemoryTier.DEVICE
        self._device_bytes = len(bank.slots) * bank.pool.page_bytes
        logged = follow(self._last_index, frame, self._model.digest)
        self._last_index = frame.index
        self._frames.append(logged)
        self._appended_at.append(time.monotonic())
        self._log(logged)

    async def save(self, bank: MemoryBank) -> None:
        """The store takes the bank away: spill it, or fall back on the frames."""
        if not bank.slots:
            return
        self.tier = MemoryTier.FRAMES
        snapshot = await self._resources.off_loop(self._snapshot, bank, self._describe())
        if await self._resources.spill_tier.spill(self._lease, snapshot) is not None:
            self.tier = MemoryTier.SPILL
            self.spill_bytes = snapshot.num_bytes
        self._note_move("spill")

    async def follow_model(self, model: ModelInfo) -> None:
        """The model has other weights: its memory is to be made anew from the last frames."""
        await self._resources.store.drop(self)
        self._model = model
        self._recalled = None
        self._frames = deque(
            (replace(frame, model_digest=model.digest) for frame in self._frames),
            maxlen=self.max_length,
        )
        self.tier = MemoryTier.FRAMES if self._frames else MemoryTier.NONE
        for frame in self._frames:
            self._log(frame)

    async def spill(self) -> None:
        """Off the device, if it is there and at rest."""
        await self._resources.store.evict(self)

    async def drop(self) -> None:
        """Give the pages back unsaved."""
        await self._resources.store.drop(self)
        self._forget_pages()

    def _snapshot(self, bank: MemoryBank, state: SessionState) -> Snapshot:
        return Snapshot.of(
            bank,
            model_digest=self._model.digest,
            epoch=self._lease.epoch,
            next_frame_index=self._last_index + 1,
            state=state.encode(),
        )

    def _forget_pages(self) -> None:
        self._frames.clear()
        self._last_index = START
        self._appended_at.clear()
        self._recalled = None
        self.tier = MemoryTier.NONE

    async def _fill(self, bank: MemoryBank) -> None:
        try:
            if not await self._restore(bank):
                await self._rebuild(bank)
        except BaseException:
            bank.release()  # the next frame tries again
            raise
        self._recalled = None
        self.tier = MemoryTier.DEVICE if bank.slots else MemoryTier.NONE
        self._device_bytes = len(bank.slots) * bank.pool.page_bytes

    async def _restore(self, bank: MemoryBank) -> bool:
        """From a snapshot, and the frames that came after it."""
        recalled = self._recalled
        snapshot = recalled.snapshot if recalled is not None else None
        if snapshot is None and self.tier is MemoryTier.SPILL:
            snapshot = await self._own_snapshot()
        if snapshot is None or not snapshot.fits(bank):
            return False
        with self._resources.tracing.span("restore"):
            await self._resources.off_loop(snapshot.into, bank)
            for frame in recalled.later_frames if recalled is not None else ():
                await self._memorise([frame], bank)
        self._note_move("restore")
        return True

    async def _own_snapshot(self) -> Snapshot | None:
        """The one of the last spill; an older one may be all that a store has left."""
        snapshot = await self._resources.spill_tier.restore(
            self._lease, model_digest=self._model.digest
        )
        if snapshot is None:
            return None
        is_newest = snapshot.next_frame_index == self._last_index + 1
        return snapshot if is_newest and snapshot.epoch == self._lease.epoch else None

    async def _rebuild(self, bank: MemoryBank) -> None:
        started = time.perf_counter()
        frames = whole_memory(self._frames, self.max_length)
        if frames is None:
            _log.warning("memory lost", session_id=self._lease.session_id)
            self._resources.metrics.memory_moved("lose", "frames", 0.0, 0)
            self._forget_pages()
            self.was_lost = True
            return
        with self._resources.tracing.span("rebuild"):
            await self._memorise(frames, bank)
        self._note_move("rebuild")
        num_bytes = len(bank.slots) * bank.pool.page_bytes
        self._resources.metrics.memory_moved(
            "rebuild", "frames", time.perf_counter() - started, num_bytes
        )

    def _log(self, frame: LoggedFrame) -> None:
        """For a replica that comes after a crash of this one."""
        if len(frame.data) <= _MAX_LOGGED_BYTES:
            max_frames = self.max_length + _NUM_SPARE_FRAMES
            self._resources.spill_tier.log_frame(self._lease, frame, max_frames)

    def _note_move(self, move: str) -> None:
        self.last_move = move
        self._moved_at = time.monotonic()
