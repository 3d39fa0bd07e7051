"""A real GPU."""

from collections.abc import Sequence
from functools import cache
from threading import Lock

import torch
from torch import Tensor

from segstream import cuda_driver as cuda
from segstream.attention.cuda.library import KernelLibrary
from segstream.attention.cuda.plan import GpuTraits, KernelLaunch
from segstream.attention.cuda.problem import Problem
from segstream.attention.cuda.variants import Variant


class CudaDevice:
    """One GPU: launches go to torch's current stream there, in torch's own context."""

    def __init__(self, ordinal: int, driver: cuda.Driver, library: KernelLibrary | None = None):
        self._ordinal = ordinal
        self._driver = driver
        self._context = driver.retain_primary_context(ordinal)
        self.traits = _traits(driver, ordinal)
        self._library = library or KernelLibrary(driver, self.traits.architecture)
        self._shared_bytes: dict[int, int] = {}
        self._lock = Lock()

    @staticmethod
    def of(device: torch.device) -> "CudaDevice":
        """The one object for a torch device. Raises CudaError where there is no driver."""
        ordinal = torch.cuda.current_device() if device.index is None else device.index
        return _device(ordinal)

    def prepare(self, variants: Sequence[Variant]) -> None:
        with self._driver.current(self._context):
            for variant in variants:
                self._library.function(variant)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=torch.device("cuda", self._ordinal))

    def launch(self, kernel: KernelLaunch, problem: Problem) -> None:
        with self._driver.current(self._context):
            function = self._library.function(kernel.variant)
            self._allow_shared_bytes(function, kernel.shared_bytes)
            self._driver.launch(
                function,
                kernel.grid,
                kernel.threads,
                kernel.shared_bytes,
                torch.cuda.current_stream(self._ordinal).cuda_stream,
                problem,
            )

    def _allow_shared_bytes(self, function: int, shared_bytes: int) -> None:
        with self._lock:
            if shared_bytes > self._shared_bytes.get(function, 0):
                self._driver.allow_shared_bytes(function, shared_bytes)
                self._shared_bytes[function] = shared_bytes


@cache
def _device(ordinal: int) -> CudaDevice:
    return CudaDevice(ordinal, cuda.load_driver())


def _traits(driver: cuda.Driver, ordinal: int) -> GpuTraits:
    major = driver.attribute(ordinal, cuda.COMPUTE_CAPABILITY_MAJOR)
    minor = driver.attribute(ordinal, cuda.COMPUTE_CAPABILITY_MINOR)
    return GpuTraits(
        architecture=10 * major + minor,
        multiprocessors=driver.attribute(ordinal, cuda.MULTIPROCESSOR_COUNT),
        max_shared_bytes=driver.attribute(ordinal, cuda.MAX_SHARED_MEMORY_PER_BLOCK_OPTIN),
    )
