"""The network as ONNX graphs, cut where the attention operator stands."""

import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from segstream.models.erfnet import FEATURE_CHANNELS, STRIDE
from segstream.models.memory import VALUE_CHANNELS, ResidualFusion

if TYPE_CHECKING:
    from segstream.models.lmanet import LMANet

_OPSET = 18
_CHANNELS_FIRST = {0: "batch", 2: "height", 3: "width"}
_CHANNELS_LAST = {0: "batch", 1: "height", 2: "width"}


@dataclass(frozen=True, slots=True)
class Graphs:
    """Serialised ONNX models, float32; B, H = 8h and W = 8w are free.

    ``encode``: ``frames (B, 3, H, W)`` in 0..1 to features ``(B, C, h, w)``, key
    ``(B, h, w, Dk)`` and value ``(B, h, w, Dv)``. ``query``: ``features`` to query key and query
    ``decode``: ``features`` to ``logits (B, num_channels, H, W)`` and
    ``label_map (B, H, W)`` uint8, the best class of each pixel.
    """

    encode: bytes
    query: bytes
    fuse: bytes
    decode: bytes


def export(model: "LMANet") -> Graphs:
    """The graphs of a float32 model in eval mode on CPU."""
    height, width = 8, 12
    frames = torch.zeros(1, 3, height * STRIDE, width * STRIDE)
    features = torch.zeros(1, FEATURE_CHANNELS, height, width)
    value = torch.zeros(1, height, width, VALUE_CHANNELS)
    heads = ["key", "value"]
    of_frames, of_features = {"frames": _CHANNELS_FIRST}, {"features": _CHANNELS_FIRST}
    return Graphs(
        encode=_export(_Encode(model), of_frames, ["features", *heads], frames=frames),
        query=_export(model.query_head, of_features, heads, features=features),
        fuse=_export_fusion(model, value, features),
        decode=_export(_Decode(model), of_features, ["logits", "label_map"], features=features),
    )


def _export_fusion(model: "LMANet", value: Tensor, features: Tensor) -> bytes:
    inputs = {"query_value": value, "readout": value}
    axes = dict.fromkeys(inputs, _CHANNELS_LAST)
    if isinstance(model.fusion, ResidualFusion):
        return _export(
            model.fusion,
            axes | {"features": _CHANNELS_FIRST},
            ["fused"],
            **inputs,
            features=features,
        )
    return _export(_Fuse(model.fusion), axes, ["fused"], **inputs)


class _Fuse(nn.Module):
    """Fusion without the features: the graph would lack an input that nothing reads."""

    def __init__(self, fusion: nn.Module) -> None:
        super().__init__()
        self._fusion = fusion

    def forward(self, query_value: Tensor, readout: Tensor) -> Tensor:
        fused: Tensor = self._fusion(query_value, readout, torch.empty(0))
        return fused


class _Encode(nn.Module):
    def __init__(self, model: "LMANet") -> None:
        super().__init__()
        self._encoder = model.encoder
        self._memory_head = model.memory_head

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        features = self._encoder(frames)
        key, value = self._memory_head(features)
        return features, key, value


class _Decode(nn.Module):
    def __init__(self, model: "LMANet") -> None:
        super().__init__()
        self._decoder = model.decoder
        self._num_classes = model.config.label_set.num_classes

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits = self._decoder(features)
        return logits, logits[:, : self._num_classes].argmax(dim=1).to(torch.uint8)


@torch.inference_mode()
def _export(
    module: nn.Module,
    free_axes: dict[str, dict[int, str]],
    outputs: list[str],
    **inputs: Tensor,
) -> bytes:
    buffer: Any = io.BytesIO()  # taken, though the exporter's types know of paths only
    with warnings.catch_warnings():
        # The exporter that replaces this one takes four times as long and two packages more.
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.onnx.export(
            module.eval(),  # else the exporter would leave what it wraps in training mode
            tuple(inputs.values()),
            buffer,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_axes=free_axes,
            opset_version=_OPSET,
            dynamo=False,
        )
    graph: bytes = buffer.getvalue()
    return graph
