"""The network in this package's own C++, on CPU."""

from collections.abc import Sequence

import torch

from segstream.engine.base import Step
from segstream.engine.executor import (
    Lap,
    Prediction,
    by_index,
    empty_confidences,
    read_slots,
    write_slots,
)
from segstream.models import NativeLMANet

_CPU = torch.device("cpu")


class NativeExecutor:
    """See ``Executor``: neither the batch nor the number of threads moves a bit.

    The images are read where they lie: no copy of them is made.
    """

    is_batching = False

    def __init__(self, network: NativeLMANet) -> None:
        self._network = network

    def __call__(self, steps: Sequence[Step], lap: Lap) -> list[Prediction]:
        confidences = empty_confidences(steps)
        wanted = [index for index, step in enumerate(steps) if step.wants_label_map]
        label_maps = self._network.label_maps(
            wanted,
            [step.image for step in steps],
            steps[0].pages,
            read_slots(steps, _CPU),
            write_slots(steps, _CPU),
            lap,
            confidences,
        )
        return by_index(len(steps), wanted, label_maps, confidences)
