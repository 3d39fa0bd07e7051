"""ERFNet (Romera et al., T-ITS 2018) as an encoder and a decoder, in the form LMANet splits it."""

import torch
from torch import Tensor, nn

from segstream.models.network import Network, NetworkSpec

FEATURE_CHANNELS = 128
STRIDE = 8
_EPS = 1e-3


class Down(nn.Module):
    """Halves the resolution: strided 3x3 convolution and max-pool, concatenated in that order."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels - in_channels, 3, stride=2, padding=1)
        self.bn = nn.BatchNorm2d(out_channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.max_pool2d(x, 2)
        return torch.relu(self.bn(torch.cat([self.conv(x), pooled], dim=1)))


class NonBottleneck1D(nn.Module):
    """Residual block of two factorised 3x3 convolutions; the second pair is dilated."""

    def __init__(self, channels: int, dilation: int, dropout: float = 0.0) -> None:
        super().__init__()
        d = dilation
        self.conv3x1_1 = nn.Conv2d(channels, channels, (3, 1), padding=(1, 0))
        self.conv1x3_1 = nn.Conv2d(channels, channels, (1, 3), padding=(0, 1))
        self.bn1 = nn.BatchNorm2d(channels, eps=_EPS)
        self.conv3x1_2 = nn.Conv2d(channels, channels, (3, 1), padding=(d, 0), dilation=(d, 1))
        self.conv1x3_2 = nn.Conv2d(channels, channels, (1, 3), padding=(0, d), dilation=(1, d))
        self.bn2 = nn.BatchNorm2d(channels, eps=_EPS)
        self.dropout = nn.Dropout2d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv3x1_1(x))
        y = torch.relu(self.bn1(self.conv1x3_1(y)))
        y = torch.relu(self.conv3x1_2(y))
        y = self.dropout(self.bn2(self.conv1x3_2(y)))
        return torch.relu(x + y)


class Up(nn.Module):
    """Doubles the resolution with a transposed 3x3 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(
            in_channels, out_channels, 3, stride=2, padding=1, output_padding=1
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.conv(x)))


class ERFNetEncoder(nn.Module):
    """``(B, 3, H, W)`` frames, H and W multiples of 8, to ``(B, 128, H/8, W/8)`` features."""

    def __init__(self) -> None:
        super().__init__()
        self.initial_block = Down(3, 16)
        self.layers = nn.Sequential(
            Down(16, 64),
            *(NonBottleneck1D(64, 1, dropout=0.03) for _ in range(5)),
            Down(64, FEATURE_CHANNELS),
            *(NonBottleneck1D(FEATURE_CHANNELS, d, dropout=0.3) for d in (2, 4, 8, 16) * 2),
        )

    def forward(self, frames: Tensor) -> Tensor:
        features: Tensor = self.layers(self.initial_block(frames))
        return features


class ERFNetDecoder(nn.Module):
    """``(B, 128, h, w)`` features to ``(B, num_channels, 8h, 8w)`` logits."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            Up(FEATURE_CHANNELS, 64),
            NonBottleneck1D(64, 1),
            NonBottleneck1D(64, 1),
            Up(64, 16),
            NonBottleneck1D(16, 1),
            NonBottleneck1D(16, 1),
        )
        self.output_conv = nn.ConvTranspose2d(16, num_channels, 2, stride=2)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.output_conv(self.layers(features))
        return logits


def erfnet(num_channels: int) -> Network:
    """With untrained weights."""
    # cuDNN is slow at one-dimensional convolutions in half precision and channels-last.
    spec = NetworkSpec("erfnet", FEATURE_CHANNELS, STRIDE, is_planar_on_gpu=True)
    return Network(spec, ERFNetEncoder(), ERFNetDecoder(num_channels), num_channels)
