"""Pages: the unit in which memory is stored, one memorised frame's key and value."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PageGeometry:
    """The shape of one page: key ``(height, width, Dk)`` and value ``(height, width, Dv)``."""

    height: int
    width: int
    key_channels: int
    value_channels: int

    @property
    def num_elements(self) -> int:
        return self.height * self.width * (self.key_channels + self.value_channels)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Pages:
    """S pages of one geometry: ``keys (S, h, w, Dk)`` and ``values (S, h, w, Dv)``."""

    keys: Tensor
    values: Tensor


def empty_pages(
    geometry: PageGeometry,
    num_pages: int,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Pages:
    """Pages that hold whatever was in memory before."""
    shape = (num_pages, geometry.height, geometry.width)
    return Pages(
        torch.empty(*shape, geometry.key_channels, dtype=dtype, device=device),
        torch.empty(*shape, geometry.value_channels, dtype=dtype, device=device),
    )
