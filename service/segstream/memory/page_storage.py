"""Where the pages of a pool lie: memory of a device, or memory that other processes can map."""

from typing import Protocol

import torch

from segstream.errors import ExhaustedError
from segstream.pages import PageGeometry, Pages, empty_pages


class PageStorage(Protocol):
    """Allocates pages, all of one dtype, that live as long as something refers to them."""

    dtype: torch.dtype

    def allocate(self, geometry: PageGeometry, num_pages: int) -> Pages:
        """Pages with any content. Raises ExhaustedError where there is no room for them."""


class DeviceStorage:
    """Memory of this process, on the CPU or on a CUDA device."""

    def __init__(
        self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        self.dtype = dtype
        self._device = device

    def allocate(self, geometry: PageGeometry, num_pages: int) -> Pages:
        """See ``PageStorage``."""
        try:
            return empty_pages(geometry, num_pages, dtype=self.dtype, device=self._device)
        except RuntimeError as error:  # how torch tells that the device is out of memory
            raise ExhaustedError(f"{self._device} is out of memory") from error
