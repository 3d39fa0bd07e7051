"""ESPNet (Mehta et al., ECCV 2018), as published for CamVid: 2 blocks at 1/4 and 8 at 1/8.

The published weights want blue, green, red in 0..255, less their means and over their deviations,
and that divided by 255: for frames in 0..1 the deviations stay what they are.
"""

import torch
from torch import Tensor, nn

from segstream.models.network import Network, adapt

_EPS = 1e-3


class NormAct(nn.Module):
    """Batch norm and PReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=_EPS)
        self.act = nn.PReLU(channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(x))
        return y


class Conv(nn.Module):
    """Convolution that keeps the size, but for its stride; no bias."""

    def __init__(
        self, in_channels: int, out_channels: int, side: int, stride: int = 1, dilation: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            *(in_channels, out_channels, side, stride),
            padding=(side - 1) // 2 * dilation,
            dilation=dilation,
            bias=False,
        )

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return y


class ConvNormAct(Conv):
    """Convolution, batch norm and PReLU."""

    def __init__(self, in_channels: int, out_channels: int, side: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, side, stride)
        self.bn = nn.BatchNorm2d(out_channels, eps=_EPS)
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.conv(x)))
        return y


class Pyramid(nn.Module):
    """The spatial pyramid: dilated convolutions of a thin map, summed up rate by rate."""

    def __init__(self, in_channels: int, out_channels: int, side: int, stride: int = 1) -> None:
        super().__init__()
        thin = out_channels // 5
        self.c1 = Conv(in_channels, thin, side, stride)
        self.d1 = Conv(thin, out_channels - 4 * thin, 3)
        self.d2, self.d4, self.d8, self.d16 = (
            Conv(thin, thin, 3, dilation=rate) for rate in (2, 4, 8, 16)
        )

    def pyramid(self, x: Tensor) -> Tensor:
        thin = self.c1(x)
        sums = [self.d2(thin)]
        for conv in (self.d4, self.d8, self.d16):
            sums.append(sums[-1] + conv(thin))
        return torch.cat([self.d1(thin), *sums], dim=1)


class DownSampler(Pyramid):
    """Halves the resolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, side=3, stride=2)
        self.bn = nn.BatchNorm2d(out_channels, eps=_EPS)
        self.act = nn.PReLU(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.act(self.bn(self.pyramid(x)))
        return y


class ESPBlock(Pyramid):
    """Keeps the resolution; residual where input and output have as many channels."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, side=1)
        self.is_residual = in_channels == out_channels
        self.bn = NormAct(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        sums = self.pyramid(x)
        y: Tensor = self.bn(x + sums if self.is_residual else sums)
        return y


class ESPNetEncoder(nn.Module):
    """Frames ``(B, 3, H, W)``, sides multiples of 8, to class scores and skips.

    The scores are ``(B, num_channels, H/8, W/8)``, the skips ``(B, 131, H/4, W/4)`` and
    ``(B, 19, H/2, W/2)``.
    ``num_middle`` and ``num_deep`` blocks at 1/4 and 1/8 are the paper's alpha 2 and alpha 3.
    """

    def __init__(self, num_channels: int, num_middle: int = 2, num_deep: int = 8) -> None:
        super().__init__()
        self.level1 = ConvNormAct(3, 16, 3, stride=2)
        self.b1 = NormAct(19)
        self.level2_0 = DownSampler(19, 64)
        self.level2 = nn.Sequential(*(ESPBlock(64, 64) for _ in range(num_middle)))
        self.b2 = NormAct(131)
        self.level3_0 = DownSampler(131, 128)
        self.level3 = nn.Sequential(*(ESPBlock(128, 128) for _ in range(num_deep)))
        self.b3 = NormAct(256)
        self.classifier = Conv(256, num_channels, 1)
        self.br = nn.BatchNorm2d(num_channels, eps=_EPS)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        half = nn.functional.avg_pool2d(frames, 3, stride=2, padding=1)
        quarter = nn.functional.avg_pool2d(half, 3, stride=2, padding=1)
        level1 = self.b1(torch.cat([self.level1(frames), half], dim=1))
        level2 = self.level2_0(level1)
        level2 = self.b2(torch.cat([self.level2(level2), level2, quarter], dim=1))
        level3 = self.level3_0(level2)
        level3 = self.b3(torch.cat([level3, self.level3(level3)], dim=1))
        return self.br(self.classifier(level3)), level2, level1


class ESPNetDecoder(nn.Module):
    """What the encoder gives, to logits ``(B, num_channels, H, W)``."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        c = num_channels
        self.up_l3 = nn.Sequential(nn.ConvTranspose2d(c, c, 2, stride=2, bias=False))
        self.level3_C = Conv(131, c, 1)
        self.combine_l2_l3 = nn.Sequential(NormAct(2 * c), ESPBlock(2 * c, c))
        up = nn.ConvTranspose2d(c, c, 2, stride=2, bias=False)
        self.up_l2 = nn.Sequential(up, NormAct(c))
        self.conv = ConvNormAct(19 + c, c, 3)
        self.classifier = nn.ConvTranspose2d(c, c, 2, stride=2, bias=False)

    def forward(self, scores: Tensor, level2: Tensor, level1: Tensor) -> Tensor:
        classes = torch.cat([self.level3_C(level2), self.up_l3(scores)], dim=1)
        classes = self.combine_l2_l3(classes)
        classes = self.conv(torch.cat([self.up_l2(classes), level1], dim=1))
        logits: Tensor = self.classifier(classes)
        return logits


def espnet(num_channels: int) -> Network:
    """With untrained weights, for frames as the published CamVid weights want them."""
    return adapt(
        "espnet",
        ESPNetEncoder(num_channels),
        ESPNetDecoder(num_channels),
        stride=8,
        mean=[value / 255 for value in (110.08, 108.23, 105.03)],
        std=(70.81, 71.26, 68.57),
        is_bgr=True,
    )
