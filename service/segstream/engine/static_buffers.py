"""What stays where it is while the frames change: tensors whose addresses graphs remember."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segstream.engine.base import Step
from segstream.engine.graph_device import GraphDevice
from segstream.pages import PageGeometry

ABSENT = -1


@dataclass(frozen=True, slots=True)
class BatchShape:
    """Frames of ``height x width`` pixels in ``num_rows`` rows, each with up to T slots to read."""

    height: int
    width: int
    num_rows: int
    memory_length: int

    @property
    def frame_pixels(self) -> int:
        return self.height * self.width

    @property
    def slot_bytes(self) -> int:
        """Of all slots: they lie before the frames."""
        return self.num_rows * (8 + 4 * self.memory_length)

    def input_bytes(self, num_frames: int) -> int:
        """Of all slots and of the first frames."""
        return self.slot_bytes + num_frames * 3 * self.frame_pixels


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a batch brings, in one piece of memory so that one copy moves it."""

    memory: Tensor  # (bytes,) uint8
    write_slots: Tensor  # (B,) int64
    read_slots: Tensor  # (B, T) int32
    frames: Tensor  # (B, H, W, 3) uint8

    @classmethod
    def within(cls, memory: Tensor, shape: BatchShape) -> "_Inputs":
        rows = shape.num_rows
        return cls(
            memory,
            memory[: 8 * rows].view(torch.int64),
            memory[8 * rows : shape.slot_bytes].view(torch.int32).view(rows, shape.memory_length),
            memory[shape.slot_bytes :].view(rows, shape.height, shape.width, 3),
        )


class StaticBuffers:
    """A batch's way to the device and back: one copy there, one back, neither waited for here.

    Rows beyond those of the steps read no memory, and hold frames of earlier batches.
    ``keys (B, h, w, Dk)`` and ``values (B, h, w, Dv)`` are left for whoever memorises them.
    """

    def __init__(
        self, device: GraphDevice, shape: BatchShape, page: PageGeometry, dtype: torch.dtype
    ) -> None:
        num_bytes = shape.input_bytes(shape.num_rows)
        self._shape = shape
        self._host = _Inputs.within(device.host_memory(num_bytes), shape)
        self._device = _Inputs.within(_bytes(num_bytes, device), shape)
        num_bytes = 2 * shape.num_rows * shape.frame_pixels
        self._host_maps, self._maps = device.host_memory(num_bytes), _bytes(num_bytes, device)
        map_ = (shape.num_rows, page.height, page.width)
        self.keys, self.values = (
            torch.empty(*map_, channels, dtype=dtype, device=device.device)
            for channels in (page.key_channels, page.value_channels)
        )

    @property
    def frames(self) -> Tensor:
        """``(B, 3, H, W)`` uint8, on the device as all below."""
        return self._device.frames.permute(0, 3, 1, 2)

    @property
    def read_slots(self) -> Tensor:
        """``(B, T)`` int32."""
        return self._device.read_slots

    @property
    def write_slots(self) -> Tensor:
        """``(B,)`` int64, of which those of the steps mean something."""
        return self._device.write_slots

    def maps(self, num_maps: int) -> Tensor:
        """``(B, num_maps, H, W)`` uint8, the room for each frame's label map and confidence."""
        shape = self._shape
        size = shape.num_rows * num_maps * shape.frame_pixels
        return self._maps[:size].view(shape.num_rows, num_maps, shape.height, shape.width)

    def send(self, steps: Sequence[Step]) -> None:
        """Enqueue the copy of the steps' frames and slots. Raises ValueError beyond T slots."""
        frames, read_slots, write_slots = (
            tensor.numpy()
            for tensor in (self._host.frames, self._host.read_slots, self._host.write_slots)
        )
        read_slots.fill(ABSENT)
        for row, step in enumerate(steps):
            frames[row] = step.image
            read_slots[row, : len(step.read_slots)] = step.read_slots
            write_slots[row] = step.write_slot
        used = slice(self._shape.input_bytes(len(steps)))
        self._device.memory[used].copy_(self._host.memory[used], non_blocking=True)

    def fetch(self, num_frames: int, num_maps: int) -> npt.NDArray[np.uint8]:
        """Enqueue the copy of the first frames' maps, ``(num_frames, num_maps, H, W)``.

        They can be read once the device has come there, and until the next ``fetch``.
        """
        shape = self._shape
        used = slice(num_frames * num_maps * shape.frame_pixels)
        self._host_maps[used].copy_(self._maps[used], non_blocking=True)
        return (
            self._host_maps[used].numpy().reshape(num_frames, num_maps, shape.height, shape.width)
        )


def _bytes(num_bytes: int, device: GraphDevice) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device=device.device)
