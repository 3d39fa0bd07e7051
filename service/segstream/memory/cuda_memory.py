"""Memory of a CUDA device that processes share, as torch tensors. Nothing but the calls is here."""

import weakref
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from segstream.cuda_driver import Driver, load_driver


class CudaMemory(Protocol):
    """Allocates and maps the memory of one device."""

    def allocate(self, num_bytes: int) -> tuple[Tensor, bytes]:
        """New memory, ``(num_bytes,)`` uint8, and the handle by which other processes map it.

        It goes with the last tensor over it. Raises CudaError.
        """

    def map(self, handle: bytes, num_bytes: int) -> Tensor:
        """Memory that another process allocated, ``(num_bytes,)`` uint8. Raises CudaError.

        It is let go of with the last tensor over it.
        """


class DeviceMemory:
    """See ``CudaMemory``: through the driver, in the context that torch uses."""

    def __init__(self, device: str) -> None:
        self._driver: Driver = load_driver()
        self._device = torch.device(device)
        self._context = self._driver.retain_primary_context(self._device.index or 0)

    def allocate(self, num_bytes: int) -> tuple[Tensor, bytes]:
        """See ``CudaMemory``."""
        with self._driver.current(self._context):
            address = self._driver.allocate(num_bytes)
            handle = self._driver.export_memory(address)
        return self._tensor(address, num_bytes, self._free), handle

    def map(self, handle: bytes, num_bytes: int) -> Tensor:
        """See ``CudaMemory``."""
        with self._driver.current(self._context):
            address = self._driver.import_memory(handle)
        return self._tensor(address, num_bytes, self._let_go)

    def _tensor(self, address: int, num_bytes: int, release: Callable[[int], None]) -> Tensor:
        block = _Block(address, num_bytes)
        weakref.finalize(block, release, address).atexit = False  # the driver goes first
        return torch.as_tensor(block, device=self._device)

    def _free(self, address: int) -> None:
        with self._driver.current(self._context):
            self._driver.free(address)

    def _let_go(self, address: int) -> None:
        with self._driver.current(self._context):
            self._driver.let_go(address)


class _Block:
    """Device memory in the form that torch takes without a copy; tensors over it keep it."""

    def __init__(self, address: int, num_bytes: int) -> None:
        self.__cuda_array_interface__ = {
            "data": (address, False),
            "shape": (num_bytes,),
            "typestr": "|u1",
            "version": 3,
        }
