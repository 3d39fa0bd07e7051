"""The seam between the GPU executor and a GPU: what the one needs of the other."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from segstream.engine.executor import Lap

Work = Callable[[Lap], None]
"""Enqueues work on the device; calls the lap with a stage's name between two stages."""


class GraphDevice(Protocol):
    """A GPU, or something that stands in for one."""

    device: torch.device

    def working(self) -> AbstractContextManager[None]:
        """What is enqueued inside follows all that others enqueued, and is done at the exit."""

    def host_memory(self, num_bytes: int) -> Tensor:
        """Memory ``(num_bytes,)`` uint8 of the host, which copies to and fro do not wait for."""

    def mark(self) -> Callable[[], None]:
        """Marks how far has been enqueued; calling it waits until the device has come there."""

    def capture(self, work: Work) -> Work:
        """What does the same work again, on the same tensors, at the cost of a few launches.

        The work has run before. It is not run now. Raises RuntimeError or EngineError where it
        does what cannot be captured, such as asking the device for a number.
        """
