"""Pages: the unit in which memory is stored, one memorised frame's key and value."""

from dataclasses import dataclass

import torch
from torch import Tensor

VALUE_BLOCK = 64
"""Values of more channels lie in blocks of so many."""


@dataclass(frozen=True, slots=True)
class PageGeometry:
    """The shape of one page: key ``(height, width, Dk)`` and value ``(height, width, Dv)``.

    Above 64 channels a value lies in blocks, ``(Dv/64, height, width, 64)``, and Dv is a multiple
    of 64. Raises ValueError where it is not.
    """

    height: int
    width: int
    key_channels: int
    value_channels: int

    def __post_init__(self) -> None:
        if self.value_channels > VALUE_BLOCK and self.value_channels % VALUE_BLOCK:
            raise ValueError(
                f"value_channels must be a multiple of {VALUE_BLOCK} above {VALUE_BLOCK}, "
                f"got {self.value_channels}"
            )

    @property
    def key_shape(self) -> tuple[int, ...]:
        """Of one key as it lies in memory."""
        return self.height, self.width, self.key_channels

    @property
    def value_shape(self) -> tuple[int, ...]:
        """Of one value as it lies in memory."""
        if self.value_channels <= VALUE_BLOCK:
            return self.height, self.width, self.value_channels
        return self.value_channels // VALUE_BLOCK, self.height, self.width, VALUE_BLOCK

    @property
    def num_elements(self) -> int:
        return self.height * self.width * (self.key_channels + self.value_channels)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Pages:
    """S pages of one geometry: ``keys (S, h, w, Dk)`` and ``values (S, h, w, Dv)``.

    Above 64 channels values are ``(S, Dv/64, h, w, 64)``.
    """

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
    keys, values = (
        torch.empty(num_pages, *shape, dtype=dtype, device=device)
        for shape in (geometry.key_shape, geometry.value_shape)
    )
    return Pages(keys, values)


def as_stored(values: Tensor) -> Tensor:
    """Values ``(B, h, w, Dv)`` in the form in which pages hold them."""
    if values.shape[-1] <= VALUE_BLOCK:
        return values
    blocks: Tensor = values.unflatten(-1, (-1, VALUE_BLOCK))
    return blocks.permute(0, 3, 1, 2, 4)
