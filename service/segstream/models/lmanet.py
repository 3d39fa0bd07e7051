"""LMANet: a single-frame network with a local memory of the last T frames (IROS 2021)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segstream.attention import local_memory_attention
from segstream.errors import InvalidInputError
from segstream.label_sets import LabelSet
from segstream.models.erfnet import (
    FEATURE_CHANNELS,
    STRIDE,
    ERFNetDecoder,
    ERFNetEncoder,
    pad_to_stride,
)
from segstream.models.memory import (
    KEY_CHANNELS,
    VALUE_CHANNELS,
    GatedFusion,
    KeyValueHead,
    write_pages,
)
from segstream.models.native_lmanet import NativeLMANet
from segstream.models.onnx_lmanet import OnnxLMANet
from segstream.models.runtime import CPU_ONLY, Runtime, on_cpu
from segstream.models.stream import LMANetStream
from segstream.pages import PageGeometry, Pages

MAX_WINDOW_SIZE = 101
MAX_MEMORY_LENGTH = 64


@dataclass(frozen=True, slots=True)
class LMANetConfig:
    """What a checkpoint must state besides its weights.

    ``num_channels`` counts the logit channels; published checkpoints end with one for "void".
    Raises InvalidInputError naming the field that is out of bounds.
    """

    label_set: LabelSet
    num_channels: int
    memory_length: int = 4
    window_size: int = 21
    has_sink: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.memory_length <= MAX_MEMORY_LENGTH:
            raise InvalidInputError(
                f"memory_length must be in 1..{MAX_MEMORY_LENGTH}, got {self.memory_length}",
                field="memory_length",
            )
        if not (1 <= self.window_size <= MAX_WINDOW_SIZE and self.window_size % 2):
            raise InvalidInputError(
                f"window_size must be odd and in 1..{MAX_WINDOW_SIZE}, got {self.window_size}",
                field="window_size",
            )
        if self.num_channels < self.label_set.num_classes:
            raise InvalidInputError(
                f"num_channels is {self.num_channels}, but label set {self.label_set.name!r} "
                f"has {self.label_set.num_classes} classes",
                field="num_channels",
            )


def _no_lap(stage: str) -> None:
    """The stage clock of a caller who keeps no time."""


class LMANet(nn.Module):
    """ERFNet with memory. Holds weights only: the memory is passed in, as pages and slots."""

    def __init__(self, config: LMANetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ERFNetEncoder()
        self.memory_head = KeyValueHead(FEATURE_CHANNELS)
        self.query_head = KeyValueHead(FEATURE_CHANNELS)
        self.query_head.key.load_state_dict(self.memory_head.key.state_dict())
        self.sink = nn.Parameter(torch.zeros(1)) if config.has_sink else None
        self.fusion = GatedFusion(FEATURE_CHANNELS)
        self.decoder = ERFNetDecoder(config.num_channels)

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights, and so of frames and logits."""
        return next(self.parameters()).dtype

    def stream(self, *, runtime: Runtime = "auto") -> LMANetStream:
        """A stream object that keeps its own memory; see ``LMANetStream.step``.

        With ``auto`` its label maps are to the bit those of a service with this model on this
        device: on CPU this package's C++ computes them, or ONNX Runtime where that was not built,
        with the weights as they are now. ``torch`` runs this module itself, as ``auto`` does on a
        GPU, in training mode and where the weights are not float32. Raises InvalidInputError if it
        must be ``native`` or ``onnx`` and cannot.
        """
        device = next(self.parameters()).device.type
        is_fit = device == "cpu" and self.dtype == torch.float32 and not self.training
        if runtime in CPU_ONLY and not is_fit:
            raise InvalidInputError(
                f"runtime {runtime!r} takes float32 weights on CPU in eval mode, got {self.dtype} "
                f"on {device}{' in training mode' if self.training else ''}",
                field="runtime",
            )
        chosen = on_cpu(runtime) if is_fit else "torch"
        if chosen == "native":
            return LMANetStream(NativeLMANet(self))
        return LMANetStream(OnnxLMANet(self) if chosen == "onnx" else self)

    def page_geometry(self, height: int, width: int) -> PageGeometry:
        """The geometry of a page for frames of ``height x width`` pixels."""
        return PageGeometry(-(-height // STRIDE), -(-width // STRIDE), KEY_CHANNELS, VALUE_CHANNELS)

    def encode(self, frames: Tensor) -> Tensor:
        """Frames ``(B, 3, H, W)``, floats in 0..1, to features ``(B, C, ceil(H/8), ceil(W/8))``.

        A size that is no multiple of 8 is padded at the right and bottom with the border pixels.
        """
        features: Tensor = self.encoder(pad_to_stride(frames))
        return features

    def read(self, features: Tensor, pages: Pages, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Query value and memory read-out, each ``(B, h, w, Dv)``; ``slots`` as in ``forward``."""
        query_key, query_value = self.query_head(features)
        readout = local_memory_attention(
            query_key, pages.keys, pages.values, slots, self.config.window_size, sink=self.sink
        )
        return query_value, readout

    def forward(
        self,
        frames: Tensor,
        pages: Pages,
        read_slots: Tensor,
        write_slots: Tensor,
        *,
        lap: Callable[[str], None] = _no_lap,
    ) -> Tensor:
        """One frame of each of B sessions: read their memories, memorise the frames, segment.

        frames: ``(B, 3, H, W)`` floats in 0..1.
        read_slots: ``(B, T)`` int32, oldest first, -1 = absent. A row of only -1 is a session's
        first frame: its features go to the decoder as they are.
        write_slots: ``(B,)`` distinct slots that take the frames' own keys and values.
        lap: called with the stage's name at the end of each stage.

        Returns logits ``(B, num_channels, H, W)``.
        """
        height, width = frames.shape[-2:]
        features = self.encode(frames)
        key, value = self.memory_head(features)
        lap("encode")

        has_memory = (read_slots >= 0).any(dim=1)
        warm = has_memory.nonzero().squeeze(1)
        if len(warm):
            query_value, readout = self.read(features[warm], pages, read_slots[warm])
        lap("memory_read")

        write_pages(pages, write_slots, key, value)
        if len(warm):
            features[warm] = self.fusion(query_value, readout)
        logits: Tensor = self.decoder(features)[..., :height, :width]
        lap("fuse_decode")
        return logits

    def memorise(self, frames: Tensor, pages: Pages, write_slots: Tensor) -> None:
        """What ``forward`` does for the memory, and nothing else; arguments as there."""
        write_pages(pages, write_slots, *self.memory_head(self.encode(frames)))

    def segment_window(self, frames: Tensor) -> Tensor:
        """Logits of the last of L frames ``(B, L, 3, H, W)``, the T before it being its memory.

        Equal to streaming the L frames; differentiable, for training.
        """
        frames = frames[:, -(self.config.memory_length + 1) :]
        batch, length, _, height, width = frames.shape
        features = self.encode(frames.flatten(0, 1))
        logits = self.decode_window(features.view(batch, length, *features.shape[1:]))
        return logits[..., :height, :width]

    def decode_window(self, features: Tensor) -> Tensor:
        """As ``segment_window``, from encoder features ``(B, L, C, h, w)``; logits at 8x."""
        single = features.shape[1] == 1
        logits: Tensor = self.decoder(features[:, -1] if single else self.fuse_window(features))
        return logits

    def fuse_window(self, features: Tensor) -> Tensor:
        """Features ``(B, L, C, h, w)``, L > 1, to those of the last frame joined with memory."""
        keys, values = self.memory_head(features[:, :-1].flatten(0, 1))
        slots = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        pages = Pages(keys, values)
        query_value, readout = self.read(features[:, -1], pages, slots.view(len(features), -1))
        fused: Tensor = self.fusion(query_value, readout)
        return fused

    def segment_single(self, frames: Tensor) -> Tensor:
        """Logits ``(B, num_channels, H, W)`` of the single-frame network, without memory."""
        return self.segment_window(frames.unsqueeze(1))


def channels_last(model: LMANet) -> LMANet:
    """``model`` with its convolution weights in channels-last memory, the faster one on CPU."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model
