"""What the network does with a frame of one size: its layers in order, and where the maps lie.

All maps of a frame fit into three places of one size, because the largest of each resolution have
as many elements: H/2 x W/2 x 16 and H/4 x W/4 x 64. A layer leaves its output in another place than
its input; a residual block leaves what is between its pairs in a second place, and its output in
the third::

    place   0        1        2
            stem  -> down
            a        x     -> y         block 1: x -> a -> y
            a        y'    <- x'        block 2: its x' is y
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segstream.models.erfnet import FEATURE_CHANNELS, STRIDE
from segstream.models.memory import KEY_CHANNELS, VALUE_CHANNELS
from segstream.models.native.library import GROUP, Element, Group, Kind, Layer, Step

Chain = Sequence[Layer | tuple[Layer, Layer]]
"""Layers, and residual blocks of two, one behind the other."""

_NUM_PLACES = 3


@dataclass(frozen=True, slots=True)
class Layers:
    """The whole network."""

    encoder: Chain  # begins with the stem
    memory_heads: Layer
    all_heads: Layer
    readout_norm: Layer
    gates: Layer
    is_residual: bool  # whether fusion adds to the features
    decoder: Chain
    labels: Layer


def num_floats(height: int, width: int) -> int:
    """The memory that the maps of a frame of this size take."""
    return _NUM_PLACES * _place_floats(*_map_size(height, width))


def _map_size(height: int, width: int) -> tuple[int, int]:
    """Of the features: rows and columns."""
    return -(-height // STRIDE), -(-width // STRIDE)


def _place_floats(rows: int, columns: int) -> int:
    return rows * columns * 2 * FEATURE_CHANNELS


class Plan:
    """Steps for a frame of ``height x width`` whose maps lie in the first floats of ``memory``.

    ``encode``, then ``memory_heads`` or ``all_heads``, then ``decode``, or ``fuse`` and
    ``decode_fused``. What they read and write beyond their maps is told by the methods, before.

    Attributes, all of them float32: ``query_key (1, h, w, Dk)``, written by ``all_heads``, and
    ``key (h, w, Dk)`` and ``value (h, w, Dv)``, where the heads may leave the page that they make.
    """

    def __init__(self, layers: Layers, height: int, width: int, memory: Tensor) -> None:
        rows, columns = _map_size(height, width)
        size = _place_floats(rows, columns)
        self._places = [memory[i * size : (i + 1) * size] for i in range(_NUM_PLACES)]
        self._frame_size = {"frame_height": height, "frame_width": width}

        chain = _Chain(self._places, 0, rows * STRIDE, columns * STRIDE)
        chain.add_all(layers.encoder)
        self.encode = _array(Step, chain.steps)
        self.encode[0].frame_height, self.encode[0].frame_width = height, width

        joined, spare = (i for i in range(_NUM_PLACES) if i != chain.place)
        self._lay_out(rows, columns, joined, spare)
        self.memory_heads = _array(Step, [chain.step(layers.memory_heads, self._memory_groups)])
        self.all_heads = _array(Step, [chain.step(layers.all_heads, self._all_groups)])

        fusion = _Chain(self._places, joined, rows, columns)
        norm = fusion.step(layers.readout_norm)
        norm.out = self._joined.data_ptr() + VALUE_CHANNELS * self._joined.element_size()
        norm.pixel_stride, norm.row_stride = VALUE_CHANNELS, 2 * VALUE_CHANNELS
        gates = fusion.step(layers.gates)
        gates.out = self._places[spare].data_ptr()
        if layers.is_residual:
            gates.residual = self._places[chain.place].data_ptr()
        self.fuse = _array(Step, [norm, gates])
        self.decode = self._decoding(layers, chain.place, rows, columns)
        self.decode_fused = self._decoding(layers, spare, rows, columns)

    def read_frame(self, frame: "Tensor | npt.NDArray[np.uint8]") -> None:
        """Encode this ``(H, W, 3)`` next: uint8, or floats in 0..1; in any order in memory."""
        stem = self.encode[0]
        if isinstance(frame, Tensor):
            stem.input, strides, stem.element = frame.data_ptr(), frame.stride(), Element.FLOAT32
        else:
            stem.input, strides, stem.element = frame.ctypes.data, frame.strides, Element.UINT8
        stem.row_stride, stem.pixel_stride, stem.channel_stride = strides

    def write_page(self, key: Tensor, value: Tensor) -> None:
        """Leave the next key ``(h, w, Dk)`` and value ``(h, w, Dv)`` here: dense, float32."""
        parts = _groups(key.data_ptr(), KEY_CHANNELS) + _groups(value.data_ptr(), VALUE_CHANNELS)
        for groups in (self._memory_groups, self._all_groups):
            for group, part in zip(groups, parts, strict=False):
                group.data = part.data

    def read_memory(self, readout: Tensor) -> None:
        """Fuse this read-out ``(1, h, w, Dv)`` next: dense, float32."""
        self.fuse[0].input = readout.data_ptr()

    def write_output(
        self,
        out: Tensor,
        num_channels: int,
        confidence: "npt.NDArray[np.uint8] | None" = None,
    ) -> None:
        """Leave label maps ``(H, W)`` uint8, or logits ``(num_channels, H, W)``, here.

        Beside label maps ``confidence``, if given, takes the softmax of each pixel's class.
        """
        for steps in (self.decode, self.decode_fused):
            steps[-1].out = out.data_ptr()
            steps[-1].confidence = None if confidence is None else confidence.ctypes.data
            steps[-1].element = Element.UINT8 if out.dtype == torch.uint8 else Element.FLOAT32
            steps[-1].num_classes = num_channels

    def _lay_out(self, rows: int, columns: int, joined: int, spare: int) -> None:
        pixels = rows * columns
        sizes = (2 * VALUE_CHANNELS * pixels, KEY_CHANNELS * pixels)
        self._joined, query_key = self._places[joined][: sum(sizes)].split(sizes)
        self.query_key = query_key.view(1, rows, columns, KEY_CHANNELS)
        sizes = (KEY_CHANNELS * pixels, VALUE_CHANNELS * pixels)
        key, value = self._places[spare][: sum(sizes)].split(sizes)
        self.key = key.view(rows, columns, KEY_CHANNELS)
        self.value = value.view(rows, columns, VALUE_CHANNELS)
        page = _groups(key.data_ptr(), KEY_CHANNELS) + _groups(value.data_ptr(), VALUE_CHANNELS)
        query = _groups(query_key.data_ptr(), KEY_CHANNELS)
        query_value = _groups(
            self._joined.data_ptr(), VALUE_CHANNELS, stride=2 * VALUE_CHANNELS, has_relu=True
        )
        self._memory_groups = _array(Group, page)
        self._all_groups = _array(Group, page + query + query_value)

    def _decoding(self, layers: Layers, place: int, rows: int, columns: int) -> Any:
        chain = _Chain(self._places, place, rows, columns)
        chain.add_all(layers.decoder)
        last = chain.step(layers.labels)
        last.frame_height, last.frame_width = self._frame_size.values()
        return _array(Step, [*chain.steps, last])


class _Chain:
    """Steps that each read the map which the one before has left."""

    def __init__(self, places: Sequence[Tensor], place: int, height: int, width: int) -> None:
        self.steps: list[Step] = []
        self.place = place
        self._places = places
        self._size = (height, width)

    def add_all(self, chain: Chain) -> None:
        for item in chain:
            if isinstance(item, Layer):
                self._add(item)
            else:
                start = self.place
                self._add(item[0])
                self._add(item[1], residual=start)

    def step(self, layer: Layer, groups: "ctypes.Array[Group] | None" = None) -> Step:
        """A step on the present map, whose output is still to be told."""
        height, width = self._size
        step = Step(layer=layer.handle, input=self._address(self.place), height=height, width=width)
        if groups is not None:
            step.groups = groups
        return step

    def _add(self, layer: Layer, residual: int | None = None) -> None:
        step = self.step(layer)
        if residual is not None:
            step.residual = self._address(residual)
        taken = {self.place, residual}
        self.place = next(i for i in range(_NUM_PLACES) if i not in taken)
        step.out = self._address(self.place)
        self.steps.append(step)
        height, width = self._size
        if layer.kind in (Kind.STEM, Kind.DOWN):
            self._size = (height // 2, width // 2)
        elif layer.kind == Kind.UP:
            self._size = (height * 2, width * 2)

    def _address(self, place: int) -> int:
        return self._places[place].data_ptr()


def _groups(
    address: int, channels: int, *, stride: int | None = None, has_relu: bool = False
) -> list[Group]:
    """The groups of a map whose pixels are ``stride`` floats apart, else dense."""
    bytes_each = GROUP * ctypes.sizeof(ctypes.c_float)
    return [
        Group(address + i * bytes_each, stride or channels, has_relu)
        for i in range(channels // GROUP)
    ]


def _array(kind: Any, items: Sequence[Any]) -> Any:
    return (kind * len(items))(*items)
