"""LMANet: a single-frame network with a local memory of the last T frames (IROS 2021)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from segstream.attention import local_memory_attention
from segstream.errors import InvalidInputError
from segstream.label_sets import LabelSet
from segstream.models.erfnet import erfnet
from segstream.models.memory import (
    FUSIONS,
    KEY_CHANNELS,
    KeyValueHead,
    write_pages,
)
from segstream.models.native_lmanet import NativeLMANet
from segstream.models.network import Features, Network, as_features
from segstream.models.onnx_lmanet import OnnxLMANet
from segstream.models.runtime import CPU_ONLY, Runtime, check_runtime, on_cpu
from segstream.models.stream import LMANetStream
from segstream.pages import VALUE_BLOCK, PageGeometry, Pages, as_stored

MAX_WINDOW_SIZE = 101
MAX_MEMORY_LENGTH = 64
MAX_KEY_CHANNELS = 512
MAX_NUM_CHANNELS = 4096


@dataclass(frozen=True, slots=True)
class LMANetConfig:
    """What a checkpoint must state besides its weights.

    ``num_channels`` counts the logit channels; published checkpoints end with one for "void".
    ``fusion`` is one of ``FUSIONS``. Without ``has_memory`` the memory is still to be trained, and
    a stream segments every frame alone.
    Raises InvalidInputError naming the field that is out of bounds.
    """

    label_set: LabelSet
    num_channels: int
    memory_length: int = 4
    window_size: int = 21
    has_sink: bool = False
    fusion: str = "sigmoid-do1"
    key_channels: int = KEY_CHANNELS
    has_memory: bool = True

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
        if self.num_channels > MAX_NUM_CHANNELS:
            raise InvalidInputError(
                f"num_channels must be at most {MAX_NUM_CHANNELS}, got {self.num_channels}",
                field="num_channels",
            )
        if self.fusion not in FUSIONS:
            raise InvalidInputError(
                f"fusion is {self.fusion!r}, must be one of {sorted(FUSIONS)}", field="fusion"
            )
        if not 1 <= self.key_channels <= MAX_KEY_CHANNELS:
            raise InvalidInputError(
                f"key_channels must be in 1..{MAX_KEY_CHANNELS}, got {self.key_channels}",
                field="key_channels",
            )

    @property
    def stream_length(self) -> int:
        """How many frames a stream remembers: T, or none."""
        return self.memory_length if self.has_memory else 0


def _no_lap(stage: str) -> None:
    """The stage clock of a caller who keeps no time."""


class LMANet(nn.Module):
    """A network with memory. Holds weights only: the memory is passed in, as pages and slots.

    ``network`` is the single-frame network; None is ERFNet. Raises InvalidInputError where it does
    not fit the configuration.
    """

    def __init__(self, config: LMANetConfig, network: Network | None = None) -> None:
        super().__init__()
        network = erfnet(config.num_channels) if network is None else network
        channels = network.spec.feature_channels
        values = FUSIONS[config.fusion].value_channels
        _check_fit(config, network, channels if values is None else values)
        self.config = config
        self.spec = network.spec
        self.encoder = network.encoder
        self.memory_head = KeyValueHead(channels, config.key_channels, values)
        self.query_head = KeyValueHead(channels, config.key_channels, values)
        self.query_head.key.load_state_dict(self.memory_head.key.state_dict())
        self.sink = nn.Parameter(torch.zeros(1)) if config.has_sink else None
        self.fusion = FUSIONS[config.fusion](channels)
        self.decoder = network.decoder

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
        check_runtime(self, runtime)
        chosen = on_cpu(self, runtime) if is_fit else "torch"
        if chosen == "native":
            return LMANetStream(NativeLMANet(self))
        return LMANetStream(OnnxLMANet(self) if chosen == "onnx" else self)

    def page_geometry(self, height: int, width: int) -> PageGeometry:
        """The geometry of a page for frames of ``height x width`` pixels."""
        values = FUSIONS[self.config.fusion].value_channels or self.spec.feature_channels
        return PageGeometry(*self.spec.map_size(height, width), self.config.key_channels, values)

    def encode(self, frames: Tensor) -> Features:
        """The features of RGB frames ``(B, 3, H, W)``, floats in 0..1.

        A size that the network does not take is padded at the right and bottom with the border
        pixels.
        """
        return as_features(self.encoder(self.spec.pad(self.spec.preprocessing(frames))))

    def decode(self, features: Features) -> Tensor:
        """Logits ``(B, num_channels, H, W)`` of the frames as they were padded."""
        logits: Tensor = self.decoder(features.tap, *features.skips)
        size = self.spec.frame_size(*features.tap.shape[2:])
        if logits.shape[2:] == size:
            return logits
        return nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)

    def fuse(
        self, tap: Tensor, pages: Pages, slots: Tensor, lap: Callable[[str], None] = _no_lap
    ) -> Tensor:
        """``tap`` joined with what it reads from memory; ``slots``, ``lap`` as in ``forward``."""
        query_key, query_value = self.query_head(tap)
        readout = local_memory_attention(
            query_key, pages.keys, pages.values, slots, self.config.window_size, sink=self.sink
        )
        lap("memory_read")
        fused: Tensor = self.fusion(query_value, readout, tap)
        return fused

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
        tap = features.tap
        key, value = self.memory_head(tap)
        lap("encode")

        warm = (read_slots >= 0).any(dim=1).nonzero().squeeze(1)
        if len(warm):
            fused = self.fuse(tap[warm], pages, read_slots[warm], lap)
            tap = fused if len(warm) == len(tap) else tap.index_copy(0, warm, fused)
        else:
            lap("memory_read")
        write_pages(pages, write_slots, key, value)
        logits = self.decode(Features(tap, features.skips))[..., :height, :width]
        lap("fuse_decode")
        return logits

    def segment(
        self,
        frames: Tensor,
        memory: tuple[Pages, Tensor] | None,
        *,
        lap: Callable[[str], None] = _no_lap,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """``forward`` of frames that all have memory, or none of which has, without memorising.

        memory: pages and read slots as in ``forward``, where a row of only -1 reads zeros; None
        for first frames.
        lap: called with the stage's name between two stages.

        Asks the device nothing, so it can be captured into a CUDA graph. Returns logits and what
        is to be memorised: keys ``(B, h, w, Dk)`` and values ``(B, h, w, Dv)``.
        """
        height, width = frames.shape[-2:]
        features = self.encode(frames)
        tap = features.tap
        key, value = self.memory_head(tap)
        lap("encode")
        if memory is not None:
            tap = self.fuse(tap, *memory, lap)
        return self.decode(Features(tap, features.skips))[..., :height, :width], key, value

    def memorise(self, frames: Tensor, pages: Pages, write_slots: Tensor) -> None:
        """What ``forward`` does for the memory, and nothing else; arguments as there."""
        write_pages(pages, write_slots, *self.memory_head(self.encode(frames).tap))

    def segment_window(self, frames: Tensor) -> Tensor:
        """Logits of the last of L frames ``(B, L, 3, H, W)``, the T before it being its memory.

        Equal to streaming the L frames; differentiable, for training.
        """
        height, width = frames.shape[-2:]
        frames = frames[:, -(self.config.memory_length + 1) :]
        return self.decode_window(self.encode_window(frames))[..., :height, :width]

    def encode_window(self, frames: Tensor) -> Features:
        """As ``encode``, of frames ``(B, L, 3, H, W)``: features ``(B, L, C, h, w)`` and skips."""
        batch, length = frames.shape[:2]
        features = self.encode(frames.flatten(0, 1))
        return features.map(lambda tensor: tensor.unflatten(0, (batch, length)))

    def decode_window(self, features: Features) -> Tensor:
        """As ``segment_window``, from ``encode_window``; logits of the frames as padded."""
        last = features.map(lambda tensor: tensor[:, -1])
        is_single = features.tap.shape[1] == 1
        return self.decode(last if is_single else Features(self.fuse_window(features), last.skips))

    def fuse_window(self, features: Features) -> Tensor:
        """The last frame's features ``(B, C, h, w)`` joined with memory, from L > 1 frames'."""
        tap = features.tap
        keys, values = self.memory_head(tap[:, :-1].flatten(0, 1))
        slots = torch.arange(len(keys), dtype=torch.int32, device=keys.device)
        pages = Pages(keys, as_stored(values))
        return self.fuse(tap[:, -1], pages, slots.view(len(tap), -1))

    def segment_single(self, frames: Tensor) -> Tensor:
        """Logits ``(B, num_channels, H, W)`` of the single-frame network, without memory."""
        return self.segment_window(frames.unsqueeze(1))


def _check_fit(config: LMANetConfig, network: Network, value_channels: int) -> None:
    name = network.spec.name
    if network.num_channels != config.num_channels:
        raise InvalidInputError(
            f"num_channels is {config.num_channels}, but network {name!r} gives logits of "
            f"{network.num_channels} channels",
            field="num_channels",
        )
    if value_channels > VALUE_BLOCK and value_channels % VALUE_BLOCK:
        raise InvalidInputError(
            f"fusion {config.fusion!r} keeps the features as values: their channels must be a "
            f"multiple of {VALUE_BLOCK} above {VALUE_BLOCK}, network {name!r} has {value_channels}",
            field="fusion",
        )


def in_layout(model: LMANet, layout: torch.memory_format) -> LMANet:
    """``model`` with its convolution weights in this order of memory."""
    model.to(memory_format=layout)  # type: ignore[call-overload]
    return model


def channels_last(model: LMANet) -> LMANet:
    """``model`` with its convolution weights in channels-last memory, the faster one on CPU."""
    return in_layout(model, torch.channels_last)
