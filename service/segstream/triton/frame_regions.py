"""Shared memory in which frames go to the server and label maps come back."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from multiprocessing.shared_memory import SharedMemory

import structlog

from segstream.media.confidence import ConfidenceMap
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.memory.shared_storage import (
    REGION_PREFIX,
    create_region,
    exists,
    map_region,
    region_name,
)
from segstream.triton.client import TritonClient, TroubleError

_log = structlog.get_logger(__name__)

_MAX_SLOTS = 16
_MAX_REGION_BYTES = 128 * 2**20
_MAX_REGIONS = 8
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True, eq=False)
class FrameSlot:
    """Room for one frame ``(H, W, 3)`` and what comes of it, maps ``(H, W)``; where they lie."""

    region: str
    frame: Image
    frame_offset: int
    label_map: LabelMap
    label_map_offset: int
    confidence: ConfidenceMap
    confidence_offset: int


class _Region:
    """Slots for frames of one size."""

    def __init__(self, height: int, width: int) -> None:
        label_map_bytes = height * width
        slot_bytes = -(-5 * label_map_bytes // _ALIGNMENT) * _ALIGNMENT
        num_slots = min(_MAX_SLOTS, max(1, _MAX_REGION_BYTES // slot_bytes))
        self.name = region_name("frames")
        self.num_bytes = num_slots * slot_bytes
        self._created: SharedMemory = create_region(self.name, self.num_bytes)
        self._created.close()  # the views below have a mapping of their own, and end it
        memory = map_region(self.name, self.num_bytes).numpy()
        self.free: asyncio.Queue[FrameSlot] = asyncio.Queue()
        self.num_slots = num_slots
        for at in range(0, self.num_bytes, slot_bytes):
            label_map_at = at + 3 * label_map_bytes
            frame = memory[at:label_map_at].reshape(height, width, 3)
            confidence_at = label_map_at + label_map_bytes
            label_map, confidence = memory[
                label_map_at : label_map_at + 2 * label_map_bytes
            ].reshape(2, height, width)
            self.free.put_nowait(
                FrameSlot(
                    *(self.name, frame, at, label_map, label_map_at, confidence, confidence_at)
                )
            )

    @property
    def is_idle(self) -> bool:
        return self.free.qsize() == self.num_slots

    def close(self) -> None:
        self._created.unlink()


class FrameRegions:
    """A region for each frame size in use, registered with the server; the eldest ones go."""

    def __init__(self, client: TritonClient) -> None:
        self._client = client
        self._regions: dict[tuple[int, int], _Region] = {}  # least recently used first
        self._registering = asyncio.Lock()

    @asynccontextmanager
    async def slot(self, height: int, width: int) -> AsyncIterator[FrameSlot]:
        """A slot of this size, waited for where all are in use.

        Raises ExhaustedError where shared memory is full, TroubleError where the server will not
        map it.
        """
        region = await self._region(height, width)
        slot = await region.free.get()
        try:
            yield slot
        finally:
            region.free.put_nowait(slot)

    async def register_all(self) -> None:
        """Tell a server that may have been started anew; forget regions of services that died."""
        async with self._registering:
            registered = await self._client.registered_regions()
            for name, key in registered.items():
                if name.startswith(REGION_PREFIX) and not exists(key.lstrip("/")):
                    await self._client.unregister_region(name)
            for region in self._regions.values():
                if region.name not in registered:
                    await self._client.register_region(region.name, region.num_bytes)

    async def close(self) -> None:
        for region in self._regions.values():
            await self._drop(region)
        self._regions.clear()

    async def _region(self, height: int, width: int) -> _Region:
        async with self._registering:
            region = self._regions.pop((height, width), None)
            if region is None:
                await self._make_room()
                region = _Region(height, width)
                try:
                    await self._client.register_region(region.name, region.num_bytes)
                except BaseException:
                    region.close()
                    raise
            self._regions[height, width] = region
            return region

    async def _make_room(self) -> None:
        for size, region in list(self._regions.items()):
            if len(self._regions) < _MAX_REGIONS:
                return
            if region.is_idle:
                del self._regions[size]
                await self._drop(region)

    async def _drop(self, region: _Region) -> None:
        try:
            await self._client.unregister_region(region.name)
        except TroubleError as error:
            _log.debug("region not unregistered", region=region.name, error=str(error))
        region.close()
