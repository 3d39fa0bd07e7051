"""What another network sees in frames, for one that learns from it (Hinton et al. 2015)."""

import torch
from torch import Tensor, nn

from segstream.models import LMANet


class Teacher:
    """A trained single-frame network. Its views are log-probabilities ``(B, C, H, W)``."""

    def __init__(self, model: LMANet, device: torch.device, *, is_reduced: bool) -> None:
        """``is_reduced``: its convolutions compute in bfloat16."""
        self._model, self._is_reduced = model.to(device).eval(), is_reduced

    @torch.no_grad()
    def view(self, frames: Tensor) -> Tensor:
        """What it sees in frames ``(B, 3, H, W)``."""
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self._is_reduced):
            logits = self._model.segment_single(frames)
        return logits[..., : frames.shape[2], : frames.shape[3]].float().log_softmax(dim=1)


def divergence(logits: Tensor, taught: Tensor) -> Tensor:
    """Kullback-Leibler divergence, by pixel, of logits from a teacher's log-probabilities.

    ``taught``: ``(B, C, H, W)``; ``logits``: at least as large, as frames are padded.
    """
    height, width = taught.shape[2:]
    seen = logits[..., :height, :width].float().log_softmax(dim=1)
    by_class = nn.functional.kl_div(seen, taught.float(), reduction="none", log_target=True)
    return by_class.sum(dim=1).mean()
