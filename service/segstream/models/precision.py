"""In what numbers a network computes on a GPU."""

import copy
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn

if TYPE_CHECKING:
    from segstream.models.lmanet import LMANet

Precision = Literal["float32", "bfloat16", "float16"]
"""float32 is as torch has it, TF32 included or not. The others are for what autocast lets."""

_CAST_BY_AUTOCAST = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which a network of ``in_precision`` computes."""
    return torch.autocast(
        device.type,
        getattr(torch, precision),
        enabled=precision != "float32",
        cache_enabled=False,  # casts that a CUDA graph makes must not be looked up
    )


def in_precision(model: "LMANet", precision: Precision) -> "LMANet":
    """A model for ``autocast`` that gives what ``model`` gives there; ``model`` for float32.

    A copy: its layers hold in the precision already what autocast casts anew at every forward.
    """
    if precision == "float32":
        return model
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, _CAST_BY_AUTOCAST):
            module.to(getattr(torch, precision))
    return model
