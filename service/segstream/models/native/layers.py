"""The network's modules as layers, with the batch norms folded into what comes before them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segstream.models.erfnet import Down, NonBottleneck1D, Up
from segstream.models.memory import GatedFusion, KeyValueHead
from segstream.models.native.library import Kind, Layer
from segstream.shared_library import Isa

# Outputs of a Winograd tile along an axis. Below so many channels the transforms of a tile cost
# what it saves.
_TILE = 4
_MIN_CHANNELS_OF_TILES = 32


@dataclass(frozen=True, slots=True)
class _Affine:
    """What a batch norm does in inference: a scale and a shift of each channel, in float64."""

    scale: Tensor
    shift: Tensor

    @classmethod
    def of(cls, bn: nn.BatchNorm2d) -> "_Affine":
        assert bn.running_mean is not None
        assert bn.running_var is not None
        scale = bn.weight.double() / (bn.running_var.double() + bn.eps).sqrt()
        return cls(scale, bn.bias.double() - bn.running_mean.double() * scale)

    def after(self, conv: nn.Module, *, channels: slice = slice(None)) -> tuple[Tensor, Tensor]:
        """Weights and biases of the convolution and these ``channels`` of the norm as one."""
        weights, biases = _weights(conv)
        scale = self.scale[channels]
        return weights * scale.view(-1, 1, 1, 1), biases * scale + self.shift[channels]


def down(kind: Kind, module: Down, isa: Isa) -> Layer:
    """The strided convolution and the max-pool; of the frame for ``Kind.STEM``."""
    conv, affine = module.conv, _Affine.of(module.bn)
    n = conv.out_channels
    weights, biases = affine.after(conv, channels=slice(None, n))
    return Layer(
        *(kind, conv.in_channels, len(affine.scale)),
        (weights, affine.scale[n:]),
        (biases, affine.shift[n:]),
        isa=isa,
    )


def block(module: NonBottleneck1D, isa: Isa) -> tuple[Layer, Layer]:
    """The two pairs of a residual block; the second takes the block's input as its residual."""
    return (
        pair(_weights(module.conv3x1_1), _Affine.of(module.bn1).after(module.conv1x3_1), 1, isa),
        pair(
            _weights(module.conv3x1_2),
            _Affine.of(module.bn2).after(module.conv1x3_2),
            module.conv3x1_2.dilation[0],
            isa,
        ),
    )


def pair(
    vertical: tuple[Tensor, Tensor],
    horizontal: tuple[Tensor, Tensor],
    dilation: int,
    isa: Isa,
    tile: int | None = None,
) -> Layer:
    """A 3x1 and a 1x3 convolution; ``tile`` None takes the faster one."""
    channels = len(vertical[1])
    return Layer(
        *(Kind.PAIR, channels, channels),
        (vertical[0], horizontal[0]),
        (vertical[1], horizontal[1]),
        dilation=dilation,
        tile=tile or (_TILE if channels >= _MIN_CHANNELS_OF_TILES else 1),
        isa=isa,
    )


def memory_heads(memory: KeyValueHead, isa: Isa) -> Layer:
    """Memory key and memory value, in this order."""
    return _heads([_weights(memory.key), _weights(memory.value)], isa)


def all_heads(memory: KeyValueHead, query: KeyValueHead, fusion: GatedFusion, isa: Isa) -> Layer:
    """Memory key, memory value, query key, and the query value as the fusion wants it."""
    query_value = _Affine.of(fusion.query_bn).after(query.value)
    parts = [_weights(memory.key), _weights(memory.value), _weights(query.key), query_value]
    return _heads(parts, isa)


def _heads(parts: list[tuple[Tensor, Tensor]], isa: Isa) -> Layer:
    weights, biases = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    out_channels, in_channels = weights.shape[:2]
    return Layer(Kind.HEADS, in_channels, out_channels, (weights,), (biases,), tile=_TILE, isa=isa)


def readout_norm(fusion: GatedFusion, isa: Isa) -> Layer:
    """The read-out as the fusion wants it."""
    affine = _Affine.of(fusion.memory_bn)
    channels = len(affine.scale)
    return Layer(Kind.AFFINE, channels, channels, (affine.scale,), (affine.shift,), isa=isa)


def gates(fusion: GatedFusion, isa: Isa) -> Layer:
    """The fusion behind the norms of its inputs."""
    affine = _Affine.of(fusion.bn)
    scale = affine.scale
    parts = [_weights(conv) for conv in (fusion.query_conv, fusion.memory_conv)]
    parts = [(weights * scale.view(-1, 1, 1, 1), biases * scale) for weights, biases in parts]
    parts += [_weights(conv) for conv in (fusion.query_gate, fusion.memory_gate)]
    weights, biases = zip(*parts, strict=True)
    in_channels, out_channels = fusion.query_gate.in_channels, len(scale)
    return Layer(
        *(Kind.FUSION, in_channels, out_channels, weights, biases),
        shift=affine.shift,
        tile=_TILE,
        isa=isa,
    )


def up(module: Up, isa: Isa) -> Layer:
    """The transposed convolution."""
    conv, affine = module.conv, _Affine.of(module.bn)
    assert conv.bias is not None
    weights = conv.weight.double() * affine.scale.view(1, -1, 1, 1)
    biases = conv.bias.double() * affine.scale + affine.shift
    return Layer(Kind.UP, conv.in_channels, conv.out_channels, (weights,), (biases,), isa=isa)


def labels(conv: nn.ConvTranspose2d, isa: Isa) -> Layer:
    """The last layer."""
    assert conv.bias is not None
    parts = (conv.weight,), (conv.bias,)
    return Layer(Kind.LABELS, conv.in_channels, conv.out_channels, *parts, isa=isa)


def _weights(conv: nn.Module) -> tuple[Tensor, Tensor]:
    assert isinstance(conv, nn.Conv2d)
    assert conv.bias is not None
    return conv.weight.double(), conv.bias.double()
