"""Runs single layers of the native engine, and computes the same in float64 torch."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from segstream.models.native.library import GROUP, Group, Layer, Scratch, Step, best_isa
from segstream.shared_library import Isa

BEST = best_isa()
ISAS = [isa for isa in Isa if isa != Isa.BEST and BEST is not None and isa <= BEST]


def run(layer: Layer, x: Tensor, out: Tensor, *, num_threads: int = 2, **fields: object) -> Tensor:
    """``out``, after a step of the layer on the map ``x (h, w, C)``, or what ``fields`` say."""
    height, width = x.shape[:2]
    step = Step(
        layer=layer.handle,
        input=x.data_ptr(),
        out=out.data_ptr(),
        **{"height": height, "width": width, **fields},
    )
    Scratch().run((Step * 1)(step), num_threads)
    return out


def run_heads(layer: Layer, x: Tensor, outs: Sequence[Tensor], *, has_relu: bool = False) -> None:
    """A step of 3x3 heads into the dense maps ``outs``."""
    groups = [
        Group(out.data_ptr() + i * GROUP * out.element_size(), out.shape[-1], has_relu)
        for out in outs
        for i in range(out.shape[-1] // GROUP)
    ]
    run(layer, x, x, groups=(Group * len(groups))(*groups))


def random(*shape: int, seed: int = 0) -> Tensor:
    """Normal float32 numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(*shape: int, fan_in: int, seed: int) -> Tensor:
    """Normal float64 weights that keep the variance of what they are applied to."""
    return random(*shape, seed=seed).double() / math.sqrt(fan_in)


def planes(x: Tensor) -> Tensor:
    """``(h, w, C)`` to ``(1, C, h, w)`` float64."""
    return x.double().permute(2, 0, 1)[None]


def pixels(x: Tensor) -> Tensor:
    """The inverse of ``planes``, but for the type."""
    return x[0].permute(1, 2, 0)


def same_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution that keeps the size."""
    return conv2d(x, weight, bias, padding=1)
