"""A small network of one's own: what a user would write, with features large enough for blocks."""

import torch
from torch import Tensor, nn

from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig, Network, adapt

PATCHES = "patches"
ENTRY = f"{PATCHES}=tests.support.networks:patches"


class PatchEncoder(nn.Module):
    """Patches of 8x8 pixels to 128 channels, and the means of 4x4 pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 128, 8, stride=8)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        return torch.relu(self.embed(frames)), nn.functional.avg_pool2d(frames, 4)


class PatchDecoder(nn.Module):
    """Logits at 1/4."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(128, num_channels, 1)
        self.refine = nn.Conv2d(3, num_channels, 3, padding=1)

    def forward(self, features: Tensor, means: Tensor) -> Tensor:
        logits: Tensor = self.refine(means)
        return logits + nn.functional.interpolate(self.classify(features), scale_factor=2.0)


def patches(num_channels: int) -> Network:
    return adapt(
        PATCHES,
        PatchEncoder(),
        PatchDecoder(num_channels),
        stride=8,
        mean=(0.4, 0.5, 0.6),
        std=(0.2, 0.25, 0.3),
        is_bgr=True,
    )


def make_patches_lmanet(fusion: str = "sigmoid-down1", *, has_memory: bool = True) -> LMANet:
    """Values of 128 channels, which lie in two blocks, unless the fusion has others."""
    torch.manual_seed(0)
    config = LMANetConfig(
        CAMVID, 12, memory_length=2, window_size=3, fusion=fusion, has_memory=has_memory
    )
    model = LMANet(config, patches(12)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.dim() == 4 and ".key." not in name:
            tensor.mul_(4)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0.0, 0.3, generator=generator)
    return model
