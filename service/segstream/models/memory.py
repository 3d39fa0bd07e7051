"""The memory's own layers: key/value heads and the gated fusion (LMANet, sections 3.2 and 3.4)."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from segstream.pages import Pages, as_stored

KEY_CHANNELS = 16
VALUE_CHANNELS = 64
_EPS = 1e-3
_BOTTLENECK = 8  # channels of the features over those of the thin map
_HIDDEN = 32  # channels from which the gates of class scores are computed


class KeyValueHead(nn.Module):
    """Projects features ``(B, C, h, w)`` to a key ``(B, h, w, Dk)`` and a value ``(B, h, w, Dv)``.

    Without ``value_channels`` the value is the features themselves. Keys and values leave
    channels-last because that is the layout of a page.
    """

    def __init__(self, in_channels: int, key_channels: int, value_channels: int | None) -> None:
        super().__init__()
        self.key = nn.Conv2d(in_channels, key_channels, 3, padding=1)
        self.value = (
            nn.Identity()
            if value_channels is None
            else nn.Conv2d(in_channels, value_channels, 3, padding=1)
        )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.key(features).permute(0, 2, 3, 1), self.value(features).permute(0, 2, 3, 1)


class Fusion(nn.Module):
    """Joins the present frame with what it read, for features of so many ``channels``.

    ``value_channels``: how many the values have; None where they are the features themselves.
    """

    value_channels: ClassVar[int | None] = None

    def __init__(self, channels: int) -> None:
        super().__init__()

    def forward(self, query_value: Tensor, readout: Tensor, features: Tensor) -> Tensor:
        """``(B, h, w, Dv)`` twice, and the present frame's features, to the form of these."""
        raise NotImplementedError


class GatedFusion(Fusion):
    """Joins the query value with the memory read-out; the published variant ``sigmoid-do1``.

    Each branch is projected and weighted by a gate computed from both::

        out = relu(bn(query_conv(q) * sigmoid(query_gate([q, m]))
                    + memory_conv(m) * sigmoid(memory_gate([q, m]))))
    """

    value_channels = VALUE_CHANNELS

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        c = VALUE_CHANNELS
        self.query_bn = nn.BatchNorm2d(c, eps=_EPS)
        self.memory_bn = nn.BatchNorm2d(c, eps=_EPS)
        self.dropout = nn.Dropout2d(0.3)
        self.query_conv = nn.Conv2d(c, channels, 3, padding=1)
        self.memory_conv = nn.Conv2d(c, channels, 3, padding=1)
        self.query_gate = nn.Conv2d(2 * c, channels, 3, padding=1)
        self.memory_gate = nn.Conv2d(2 * c, channels, 3, padding=1)
        self.bn = nn.BatchNorm2d(channels, eps=_EPS)

    def forward(self, query_value: Tensor, readout: Tensor, features: Tensor) -> Tensor:
        """``(B, h, w, Dv)`` twice to ``(B, channels, h, w)``, the form of ``features``.

        ``features`` are those of the present frame; this variant does without them.
        """
        return torch.relu(self.bn(self.gated_sum(query_value, readout)))

    def gated_sum(self, query_value: Tensor, readout: Tensor) -> Tensor:
        """Both branches, each under its gate."""
        query = query_value.permute(0, 3, 1, 2)
        memory = readout.permute(0, 3, 1, 2)
        query = torch.relu(self.dropout(self.query_bn(query)))
        memory = torch.relu(self.dropout(self.memory_bn(memory)))
        both = torch.cat([query, memory], dim=1)
        fused: Tensor = self.query_conv(query) * torch.sigmoid(self.query_gate(both))
        fused = fused + self.memory_conv(memory) * torch.sigmoid(self.memory_gate(both))
        return fused


class ResidualFusion(GatedFusion):
    """The published variant's layers, added to the features instead of replacing them.

    ::

        out = relu(features + bn(gated_sum(q, m)))

    Here ``residual-do1``. It can begin as the identity, so that a trained decoder goes on to read
    what it knows, and the memory learns only what to change; see ``training.memory_start``.
    """

    def forward(self, query_value: Tensor, readout: Tensor, features: Tensor) -> Tensor:
        return torch.relu(self.added(query_value, readout, features))

    def added(self, query_value: Tensor, readout: Tensor, features: Tensor) -> Tensor:
        """The features with what is added to them."""
        added: Tensor = features + self.bn(self.gated_sum(query_value, readout))
        return added

    @property
    def convolutions(self) -> list[nn.Conv2d]:
        """Those of both branches and of their gates."""
        return [self.query_conv, self.memory_conv, self.query_gate, self.memory_gate]


class SignedResidualFusion(ResidualFusion):
    """``residual-do1`` without the last ReLU, for networks whose features may be negative.

    Here ``signed-residual-do1``.
    """

    def forward(self, query_value: Tensor, readout: Tensor, features: Tensor) -> Tensor:
        return self.added(query_value, readout, features)


class BottleneckFusion(Fusion):
    """Joins the features with those read from memory; the published variant ``sigmoid-down1``.

    Both gates are computed from one thin map, to which both inputs go through one convolution::

        thin = relu(thin_bn(thin_conv(q) + thin_conv(m)))
        out = relu(bn(q * sigmoid(query_gate(thin)) + m * sigmoid(memory_gate(thin))))
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        thin = max(1, channels // _BOTTLENECK)
        self.thin_conv = nn.Conv2d(channels, thin, 1)
        self.thin_bn = nn.BatchNorm2d(thin, eps=_EPS)
        self.query_gate = nn.Conv2d(thin, channels, 1)
        self.memory_gate = nn.Conv2d(thin, channels, 1)
        self.bn = nn.BatchNorm2d(channels, eps=_EPS)

    def forward(self, query_value: Tensor, readout: Tensor, features: Tensor) -> Tensor:
        """``(B, h, w, C)`` twice to ``(B, C, h, w)``; ``features`` as ``GatedFusion``."""
        query = query_value.permute(0, 3, 1, 2)
        memory = readout.permute(0, 3, 1, 2)
        thin = torch.relu(self.thin_bn(self.thin_conv(query) + self.thin_conv(memory)))
        fused = query * torch.sigmoid(self.query_gate(thin))
        fused = fused + memory * torch.sigmoid(self.memory_gate(thin))
        return torch.relu(self.bn(fused))


class GatedScores(Fusion):
    """Draws class scores towards those read from memory; here ``gated-scores``.

    For networks whose features are class scores, which are then the values, too. With l those of
    the present frame and m those of memory::

        out = l + sigmoid(gate(relu(hidden([l, m, |l - m|])))) * (m - l)

    Each score comes to lie between the two, so that little can be unlearnt on little data.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.hidden = nn.Conv2d(3 * channels, _HIDDEN, 3, padding=1)
        self.gate = nn.Conv2d(_HIDDEN, channels, 3, padding=1)

    def forward(self, query_value: Tensor, readout: Tensor, features: Tensor) -> Tensor:
        """``(B, h, w, C)`` twice to ``(B, C, h, w)``; ``features`` are the query value."""
        memory = readout.permute(0, 3, 1, 2)
        change = memory - features
        hidden = torch.relu(self.hidden(torch.cat([features, memory, change.abs()], dim=1)))
        fused: Tensor = features + torch.sigmoid(self.gate(hidden)) * change
        return fused


FUSIONS: dict[str, type[Fusion]] = {
    "sigmoid-do1": GatedFusion,
    "residual-do1": ResidualFusion,
    "signed-residual-do1": SignedResidualFusion,
    "sigmoid-down1": BottleneckFusion,
    "gated-scores": GatedScores,
}
"""The fusions by name."""


def write_pages(pages: Pages, slots: Tensor, key: Tensor, value: Tensor) -> None:
    """Store keys ``(B, h, w, Dk)`` and values ``(B, h, w, Dv)`` in the B distinct ``slots``."""
    pages.keys[slots] = key.to(pages.keys.dtype)
    pages.values[slots] = as_stored(value).to(pages.values.dtype)
