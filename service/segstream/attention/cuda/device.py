"""The seam between the launch code and a GPU: what the one needs of the other."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from segstream.attention.cuda.plan import GpuTraits, KernelLaunch
from segstream.attention.cuda.problem import Problem
from segstream.attention.cuda.variants import Variant


class Device(Protocol):
    """A GPU, or something that stands in for one."""

    @property
    def traits(self) -> GpuTraits: ...

    def prepare(self, variants: Sequence[Variant]) -> None:
        """Have these kernels ready. Raises KernelUnavailableError where that cannot be."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Memory on the device, unwritten."""

    def launch(self, kernel: KernelLaunch, problem: Problem) -> None:
        """Enqueue a prepared kernel. Raises CudaError where it is refused."""
