"""Calls the convolution layers, a shared library with a C interface built with the package."""

import ctypes
import functools
import weakref
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segstream.shared_library import Isa, load

LIBRARY = Path(__file__).with_name("libsegstream_network.so")
GROUP = 16
"""Channels come in groups of so many."""

_ABI = 2
_MAX_PARTS = 4


class Kind(IntEnum):
    """``SegstreamLayerKind`` in csrc/network.h."""

    STEM = 0
    DOWN = 1
    PAIR = 2
    HEADS = 3
    FUSION = 4
    UP = 5
    LABELS = 6
    AFFINE = 7


class Element(IntEnum):
    """``SegstreamElement`` in csrc/network.h."""

    FLOAT32 = 0
    UINT8 = 1


class _LayerSpec(ctypes.Structure):
    """``SegstreamLayerSpec`` in csrc/network.h."""

    _fields_ = (
        ("weights", ctypes.c_void_p * _MAX_PARTS),
        ("biases", ctypes.c_void_p * _MAX_PARTS),
        ("shift", ctypes.c_void_p),
        ("kind", ctypes.c_int32),
        ("isa", ctypes.c_int32),
        ("in_channels", ctypes.c_int32),
        ("out_channels", ctypes.c_int32),
        ("dilation", ctypes.c_int32),
        ("tile", ctypes.c_int32),
    )


class Group(ctypes.Structure):
    """``SegstreamGroup`` in csrc/network.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("pixel_stride", ctypes.c_int32),
        ("has_relu", ctypes.c_int32),
    )


class Step(ctypes.Structure):
    """``SegstreamStep`` in csrc/network.h; strides count elements."""

    _fields_ = (
        ("layer", ctypes.c_void_p),
        ("input", ctypes.c_void_p),
        ("residual", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("groups", ctypes.POINTER(Group)),
        ("confidence", ctypes.c_void_p),
        ("row_stride", ctypes.c_int64),
        ("pixel_stride", ctypes.c_int64),
        ("channel_stride", ctypes.c_int64),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("frame_height", ctypes.c_int32),
        ("frame_width", ctypes.c_int32),
        ("element", ctypes.c_int32),
        ("num_classes", ctypes.c_int32),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The layers, or None with one warning in the log where there are none that work."""
    layers = load(LIBRARY, "network", abi=_ABI, instead="using ONNX Runtime, about half as fast")
    if layers is None:
        return None
    steps = ctypes.POINTER(Step)
    layers.segstream_network_layer.argtypes = (ctypes.POINTER(_LayerSpec),)
    layers.segstream_network_layer.restype = ctypes.c_void_p
    layers.segstream_network_free.argtypes = (ctypes.c_void_p,)
    layers.segstream_network_scratch.argtypes = (steps, ctypes.c_int32)
    layers.segstream_network_scratch.restype = ctypes.c_int64
    layers.segstream_network_run.argtypes = (
        *(steps, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p, ctypes.c_int64),
    )
    layers.segstream_network_run.restype = None
    return layers


def best_isa() -> Isa | None:
    """The strongest instruction set that the layers may use here; None without the library."""
    layers = library()
    return None if layers is None else Isa(layers.segstream_network_isa())


class Layer:
    """A layer's weights, packed for an instruction set."""

    def __init__(
        self,
        kind: Kind,
        in_channels: int,
        out_channels: int,
        weights: Sequence[Tensor],
        biases: Sequence[Tensor],
        *,
        shift: Tensor | None = None,
        dilation: int = 1,
        tile: int = 4,
        isa: Isa = Isa.BEST,
    ) -> None:
        """``weights``, ``biases`` and ``shift`` as csrc/network.h has them for the kind.

        Raises ValueError for channels that are not in whole groups, for a dilation or a tile that
        the kind does not have, and for tensors that do not fit the channels.
        """
        _check(kind, in_channels, out_channels, dilation, tile)
        _check_sizes(kind, in_channels, out_channels, (*weights, *biases), shift)
        layers = library()
        if layers is None:
            raise RuntimeError("the CPU network kernel was not built")
        arrays = [_doubles(t) for t in (*weights, *biases, *(() if shift is None else (shift,)))]
        pointers = [array.ctypes.data for array in arrays]
        spec = _LayerSpec(
            (ctypes.c_void_p * _MAX_PARTS)(*pointers[: len(weights)]),
            (ctypes.c_void_p * _MAX_PARTS)(*pointers[len(weights) : len(weights) + len(biases)]),
            None if shift is None else pointers[-1],
            *(kind, isa, in_channels, out_channels, dilation, tile),
        )
        self.kind = kind
        self.handle: int | None = layers.segstream_network_layer(ctypes.byref(spec))
        if self.handle is None:
            raise MemoryError(f"no memory for the weights of a layer of kind {kind.name}")
        weakref.finalize(self, layers.segstream_network_free, self.handle)


def _check(kind: Kind, in_channels: int, out_channels: int, dilation: int, tile: int) -> None:
    for name, count, is_free in (
        ("in_channels", in_channels, kind == Kind.STEM),
        ("out_channels", out_channels, kind == Kind.LABELS),
    ):
        if count < 1 or (count % GROUP and not is_free):
            raise ValueError(f"{name} must be a multiple of {GROUP}, got {count}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    tiles = (1, 2, 4) if kind == Kind.PAIR else (2, 4)
    if tile not in tiles:
        raise ValueError(f"tile must be one of {tiles}, got {tile}")


def _check_sizes(
    kind: Kind,
    in_channels: int,
    out_channels: int,
    tensors: Sequence[Tensor],
    shift: Tensor | None,
) -> None:
    found = [tensor.numel() for tensor in (*tensors, *(() if shift is None else (shift,)))]
    expected = _sizes(kind, in_channels, out_channels)
    if found != expected:
        raise ValueError(
            f"a layer of kind {kind.name} with {in_channels} and {out_channels} channels takes "
            f"tensors of {expected} elements, got {found}"
        )


def _sizes(kind: Kind, i: int, o: int) -> list[int]:
    """Elements of the weights, the biases and the shift."""
    if kind in (Kind.STEM, Kind.DOWN):
        return [9 * i * (o - i), i, o - i, i]
    if kind == Kind.FUSION:
        half = 9 * o * (i // 2)
        return [half, half, 9 * i * o, 9 * i * o, o, o, o, o, o]
    if kind == Kind.PAIR:
        return [3 * i * i, 3 * i * i, i, i]
    if kind == Kind.AFFINE:
        return [i, i]
    return [{Kind.HEADS: 9, Kind.UP: 9, Kind.LABELS: 4}[kind] * i * o, o]


def _doubles(tensor: Tensor) -> npt.NDArray[np.float64]:
    return np.ascontiguousarray(tensor.detach().to(torch.float64).numpy())


class Scratch:
    """Memory that the threads of a run use; grows to what is asked of it, and stays."""

    def __init__(self) -> None:
        self._floats = torch.empty(0)

    def run(self, steps: "ctypes.Array[Step]", num_threads: int) -> None:
        """Run the steps one after the other, each on all threads."""
        layers = library()
        assert layers is not None, "there are no steps without the library"
        floats = layers.segstream_network_scratch(steps, len(steps))
        if floats * num_threads > len(self._floats):
            self._floats = torch.empty(floats * num_threads)
        layers.segstream_network_run(
            steps, len(steps), num_threads, self._floats.data_ptr(), floats
        )
