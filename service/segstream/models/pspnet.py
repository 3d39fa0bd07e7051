"""PSPNet (Zhao et al., CVPR 2017) on a dilated ResNet with deep stem (He et al., 2016).

As semseg trains it and LMANet splits it: the encoder ends with the ResNet, the pyramid pooling
belongs to the decoder. Sides of frames are multiples of 8 plus 1.
"""

import torch
from torch import Tensor, nn

from segstream.models.network import IMAGENET, Network, NetworkSpec

FEATURE_CHANNELS = 2048
STRIDE = 8
BLOCKS = {"pspnet50": (3, 4, 6, 3), "pspnet101": (3, 4, 23, 3)}
"""Bottlenecks of the four stages, by the network's name."""

_EXPANSION = 4
_STEM_CHANNELS = 128
_POOLED_CHANNELS = 512
_POOL_SIDES = (1, 2, 3, 6)


class Bottleneck(nn.Module):
    """Residual block of a 1x1, a 3x3 and a 1x1 convolution; the second carries the stride."""

    def __init__(self, in_channels: int, planes: int, stride: int, dilation: int) -> None:
        super().__init__()
        channels = planes * _EXPANSION
        self.conv1 = nn.Conv2d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(
            planes, planes, 3, stride, padding=dilation, dilation=dilation, bias=False
        )
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = (
            nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )
            if stride != 1 or in_channels != channels
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = torch.relu(self.bn2(self.conv2(y)))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class PSPNetEncoder(nn.Module):
    """``(B, 3, 8n + 1, 8m + 1)`` frames to ``(B, 2048, n + 1, m + 1)`` features."""

    def __init__(self, num_blocks: tuple[int, ...]) -> None:
        super().__init__()
        stem: list[nn.Module] = []
        for in_channels, channels, stride in ((3, 64, 2), (64, 64, 1), (64, _STEM_CHANNELS, 1)):
            conv = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
            stem += [conv, nn.BatchNorm2d(channels), nn.ReLU()]
        self.layer0 = nn.Sequential(*stem, nn.MaxPool2d(3, stride=2, padding=1))
        self.layer1 = _stage(_STEM_CHANNELS, 64, num_blocks[0])
        self.layer2 = _stage(256, 128, num_blocks[1], stride=2)
        self.layer3 = _stage(512, 256, num_blocks[2], dilation=2)
        self.layer4 = _stage(1024, 512, num_blocks[3], dilation=4)

    def forward(self, frames: Tensor) -> Tensor:
        features: Tensor = self.layer2(self.layer1(self.layer0(frames)))
        features = self.layer4(self.layer3(features))
        return features


class PyramidPooling(nn.Module):
    """Joins the features with their means over the cells of four coarse grids."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.ModuleList(
            nn.Sequential(
                nn.AdaptiveAvgPool2d(side),
                nn.Conv2d(FEATURE_CHANNELS, _POOLED_CHANNELS, 1, bias=False),
                nn.BatchNorm2d(_POOLED_CHANNELS),
                nn.ReLU(),
            )
            for side in _POOL_SIDES
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(_resize(pool(x), x.shape[2:]) for pool in self.features)], dim=1)


class PSPNetDecoder(nn.Module):
    """``(B, 2048, n + 1, m + 1)`` features to ``(B, num_channels, 8n + 1, 8m + 1)`` logits.

    The network does not know of void, the last channel: its logit is 0.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.ppm = PyramidPooling()
        joined = FEATURE_CHANNELS + len(_POOL_SIDES) * _POOLED_CHANNELS
        self.cls = nn.Sequential(
            nn.Conv2d(joined, 512, 3, padding=1, bias=False),
            nn.BatchNorm2d(512),
            nn.ReLU(),
            nn.Dropout2d(0.1),
            nn.Conv2d(512, num_channels - 1, 1),
        )

    def forward(self, features: Tensor) -> Tensor:
        rows, columns = features.shape[2:]
        logits = nn.functional.pad(self.cls(self.ppm(features)), (0, 0, 0, 0, 0, 1))
        return _resize(logits, ((rows - 1) * STRIDE + 1, (columns - 1) * STRIDE + 1))


def pspnet50(num_channels: int) -> Network:
    """With untrained weights."""
    return _pspnet("pspnet50", num_channels)


def pspnet101(num_channels: int) -> Network:
    """With untrained weights."""
    return _pspnet("pspnet101", num_channels)


def _pspnet(name: str, num_channels: int) -> Network:
    return Network(
        NetworkSpec(name, FEATURE_CHANNELS, STRIDE, remainder=1, preprocessing=IMAGENET),
        PSPNetEncoder(BLOCKS[name]),
        PSPNetDecoder(num_channels),
        num_channels,
    )


def _stage(
    in_channels: int, planes: int, num_blocks: int, *, stride: int = 1, dilation: int = 1
) -> nn.Sequential:
    channels = planes * _EXPANSION
    first = Bottleneck(in_channels, planes, stride, dilation)
    rest = (Bottleneck(channels, planes, 1, dilation) for _ in range(num_blocks - 1))
    return nn.Sequential(first, *rest)


def _resize(x: Tensor, size: tuple[int, ...]) -> Tensor:
    return nn.functional.interpolate(x, size, mode="bilinear", align_corners=True)
