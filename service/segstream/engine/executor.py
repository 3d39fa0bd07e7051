"""What runs the network on one batch; the seam between the engine and its runtimes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from segstream.engine.base import Step
from segstream.media.confidence import ConfidenceMap
from segstream.media.label_maps import LabelMap

Lap = Callable[[str], None]
"""Called with a stage's name at the end of the stage."""


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """What the network says of one frame, each ``(H, W)`` uint8; None if the step wants it not."""

    label_map: LabelMap | None = None
    confidence: ConfidenceMap | None = None


class Executor(Protocol):
    """One model on one runtime. What a step gives depends on nothing but the step.

    Unless ``is_batching`` the steps of a batch are computed one after the other: together they only
    wait for each other.
    """

    is_batching: bool

    def __call__(self, steps: Sequence[Step], lap: Lap) -> list[Prediction]:
        """What steps of one frame size and pool ask for; writes their pages."""


def frames(steps: Sequence[Step], device: torch.device) -> torch.Tensor:
    """The images of the steps, ``(B, 3, H, W)`` floats in 0..1."""
    images = torch.from_numpy(np.stack([step.image for step in steps])).to(device)
    return images.permute(0, 3, 1, 2).float().div_(255)


def read_slots(steps: Sequence[Step], device: torch.device) -> torch.Tensor:
    """``(B, T)`` int32; shorter rows are filled with -1, absent."""
    length = max(len(step.read_slots) for step in steps)
    rows = [step.read_slots + (-1,) * (length - len(step.read_slots)) for step in steps]
    return torch.tensor(rows, dtype=torch.int32, device=device).reshape(len(steps), length)


def write_slots(steps: Sequence[Step], device: torch.device) -> torch.Tensor:
    """``(B,)``."""
    return torch.tensor([step.write_slot for step in steps], device=device)


def empty_confidences(steps: Sequence[Step]) -> dict[int, ConfidenceMap]:
    """Room for the confidence maps, by the index of the steps that want one."""
    return {
        index: np.empty(step.image.shape[:2], np.uint8)
        for index, step in enumerate(steps)
        if step.wants_label_map and step.wants_confidence
    }


def by_index(
    num_steps: int,
    wanted: Sequence[int],
    label_maps: Sequence[LabelMap] | LabelMap,
    confidences: Mapping[int, ConfidenceMap],
) -> list[Prediction]:
    """The maps of the ``wanted`` steps at their places, nothing for the others."""
    results = [Prediction()] * num_steps
    for index, label_map in zip(wanted, label_maps, strict=True):
        results[index] = Prediction(label_map, confidences.get(index))
    return results
