"""What another network sees in frames, for one that learns from it (Hinton et al. 2015)."""

import torch
from torch import Tensor, nn

from segstream.models import LMANet

_LARGER = 1.2
_LEAST = 1e-7


class Teacher:
    """A trained single-frame network. Its views are log-probabilities ``(B, C, H, W)``."""

    def __init__(self, model: LMANet, device: torch.device, *, is_reduced: bool) -> None:
        """``is_reduced``: its convolutions compute in bfloat16."""
        self._model, self._is_reduced = model.to(device).eval(), is_reduced

    @torch.no_grad()
    def view(self, frames: Tensor) -> Tensor:
        """What it sees in frames ``(B, 3, H, W)``."""
        return self._probabilities(frames).clamp(min=_LEAST).log()

    @torch.no_grad()
    def close_view(self, frames: Tensor) -> Tensor:
        """The mean of what it sees in the frames, in their mirror images and 1.2 times as large."""
        size = frames.shape[2:]
        larger = nn.functional.interpolate(frames, scale_factor=_LARGER, mode="bilinear")
        views = [
            self._probabilities(frames),
            self._probabilities(frames.flip(-1)).flip(-1),
            nn.functional.interpolate(self._probabilities(larger), size, mode="bilinear"),
        ]
        return torch.stack(views).mean(dim=0).clamp(min=_LEAST).log()

    def _probabilities(self, frames: Tensor) -> Tensor:
        with torch.autocast(frames.device.type, torch.bfloat16, enabled=self._is_reduced):
            logits = self._model.segment_single(frames)
        return logits[..., : frames.shape[2], : frames.shape[3]].float().softmax(dim=1)


def divergence(logits: Tensor, taught: Tensor) -> Tensor:
    """Kullback-Leibler divergence, by pixel, of logits from a teacher's log-probabilities.

    ``taught``: ``(B, C, H, W)``; ``logits``: at least as large, as frames are padded.
    """
    height, width = taught.shape[2:]
    seen = logits[..., :height, :width].float().log_softmax(dim=1)
    by_class = nn.functional.kl_div(seen, taught.float(), reduction="none", log_target=True)
    return by_class.sum(dim=1).mean()
