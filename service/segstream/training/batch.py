"""What one step of training learns from."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segstream.models import Features


class Batch(NamedTuple):
    """Frames ``(B, 3, H, W)``, or clips ``(B, L, 3, H, W)`` or their features.

    ``labels``: ``(B, H, W)``. ``clean``: of clips, the last frames unspoilt ``(B, 3, H, W)``, or
    their features.
    """

    frames: Features | Tensor
    labels: Tensor
    clean: Tensor | None = None


def to_frames(images: np.ndarray, device: torch.device) -> Tensor:
    """uint8 ``(B, H, W, 3)`` to floats ``(B, 3, H, W)`` in 0..1, channels last in memory."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255)


def to_labels(labels: list[np.ndarray] | tuple[np.ndarray, ...], device: torch.device) -> Tensor:
    """Train ids ``(H, W)`` of B frames to ``(B, H, W)``."""
    return torch.from_numpy(np.stack(labels)).to(device)
