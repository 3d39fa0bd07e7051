"""How sure the network is of each pixel's class."""

import numpy as np
import numpy.typing as npt
from torch import Tensor


def confidence_of(logits: Tensor) -> npt.NDArray[np.uint8]:
    """As ``confidence_map``, on the host."""
    return confidence_map(logits).cpu().numpy()


def confidence_map(logits: Tensor) -> Tensor:
    """The softmax of the best class, 255 = 1, uint8: ``(..., C, H, W)`` to ``(..., H, W)``."""
    logits = logits.float()
    best = (logits - logits.amax(dim=-3, keepdim=True)).exp_().sum(dim=-3).reciprocal_()
    return (best * 255 + 0.5).byte()
