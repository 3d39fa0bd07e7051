"""A single-frame network as LMANet takes it: an encoder, a decoder, and what to know of them.

The memory joins the encoder's features; everything else about the network is its own matter.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segstream.errors import InvalidInputError

_NUM_COLOURS = 3
_PROBE_SIDE = 8  # features of a probe, in pixels


class Features(NamedTuple):
    """What an encoder makes of frames.

    ``tap (B, C, h, w)`` is what the memory joins. ``skips``, of B items each, go to the decoder as
    they are.
    """

    tap: Tensor
    skips: tuple[Tensor, ...] = ()

    def map(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """The features with every tensor changed."""
        return Features(change(self.tap), tuple(change(skip) for skip in self.skips))


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What a network wants of RGB frames in 0..1: ``(frame - mean) / std``, channel by channel.

    With ``is_bgr`` the network's channels are blue, green, red, and so are ``mean`` and ``std``.
    Raises InvalidInputError naming the field that cannot be.
    """

    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    is_bgr: bool = False

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != _NUM_COLOURS or not all(map(isfinite, values)):
                raise InvalidInputError(f"{name} must be 3 numbers, got {values}", field=name)
        if min(self.std) <= 0:
            raise InvalidInputError(f"std must be above 0, got {self.std}", field="std")

    @property
    def is_identity(self) -> bool:
        return self == Preprocessing()

    def __call__(self, frames: Tensor) -> Tensor:
        """``(B, 3, H, W)`` RGB in 0..1 to what the encoder takes."""
        if self.is_identity:
            return frames
        frames = frames.flip(1) if self.is_bgr else frames
        # Filled where the frames are: a copy from the host could not be captured as a CUDA graph.
        mean, std = (
            torch.stack([frames.new_full((1, 1), value) for value in values])
            for values in (self.mean, self.std)
        )
        return (frames - mean) / std

    def encode(self) -> str:
        """As text."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> "Preprocessing":
        """The inverse of ``encode``. Raises InvalidInputError."""
        try:
            fields = json.loads(text)
            mean, std = tuple(map(float, fields["mean"])), tuple(map(float, fields["std"]))
            return cls(mean, std, is_bgr=bool(fields["is_bgr"]))
        except (ValueError, TypeError, KeyError) as error:
            raise InvalidInputError(
                f"preprocessing is {text[:200]!r}, must be a JSON object of mean, std and is_bgr",
                field="preprocessing",
            ) from error


IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """What there is to know of a network besides its layers.

    It takes frames whose sides are ``k * stride + remainder``, remainder 0 or 1, and makes of them
    features ``(B, feature_channels, h, w)`` with sides ``k + remainder``.
    ``is_planar_on_gpu``: there its convolutions are faster in torch's own order than channels-last.
    """

    name: str
    feature_channels: int
    stride: int
    remainder: int = 0
    preprocessing: Preprocessing = Preprocessing()
    is_planar_on_gpu: bool = False

    def layout(self, device: torch.device) -> torch.memory_format:
        """The order in memory of frames and weights with which the network is fast there."""
        is_planar = self.is_planar_on_gpu and device.type == "cuda"
        return torch.contiguous_format if is_planar else torch.channels_last

    def map_size(self, height: int, width: int) -> tuple[int, int]:
        """The features' height and width for frames of ``height x width`` pixels."""
        rows, columns = (
            -(-(side - self.remainder) // self.stride) + self.remainder for side in (height, width)
        )
        return rows, columns

    def frame_size(self, rows: int, columns: int) -> tuple[int, int]:
        """The frames, as padded, that features of ``rows x columns`` are of."""
        height, width = (
            (side - self.remainder) * self.stride + self.remainder for side in (rows, columns)
        )
        return height, width

    def pad(self, frames: Tensor) -> Tensor:
        """``(B, C, H, W)`` with the border pixels repeated at the right and bottom to fit."""
        height, width = frames.shape[-2:]
        padded_height, padded_width = self.frame_size(*self.map_size(height, width))
        padding = (0, padded_width - width, 0, padded_height - height)
        return nn.functional.pad(frames, padding, mode="replicate") if any(padding) else frames


@dataclass(frozen=True, slots=True, eq=False)
class Network:
    """A single-frame network: ``encoder`` and ``decoder`` share no parameters.

    encoder: frames ``(B, 3, H, W)`` to features, or to a tuple of features and skips.
    decoder: those, as arguments, to logits ``(B, num_channels, h', w')`` of any resolution.
    """

    spec: NetworkSpec
    encoder: nn.Module
    decoder: nn.Module
    num_channels: int

    def with_preprocessing(self, preprocessing: Preprocessing) -> "Network":
        """The same network, given other frames."""
        return replace(self, spec=replace(self.spec, preprocessing=preprocessing))


NetworkBuilder = Callable[[int], Network]
"""Makes a network with so many logit channels, with any weights."""


def adapt(
    name: str,
    encoder: nn.Module,
    decoder: nn.Module,
    *,
    stride: int,
    remainder: int = 0,
    mean: Sequence[float] = (0.0, 0.0, 0.0),
    std: Sequence[float] = (1.0, 1.0, 1.0),
    is_bgr: bool = False,
) -> Network:
    """A network of one's own for LMANet; what the arguments are is told by ``Network``,
    ``NetworkSpec`` and ``Preprocessing``.

    Both modules run once, on a grey frame, to see what they make of it. Raises InvalidInputError
    where that is not what they must make, or where they share parameters.
    """
    shared = {id(p) for p in encoder.parameters()} & {id(p) for p in decoder.parameters()}
    if shared:
        raise InvalidInputError(
            f"network {name!r}: encoder and decoder share {len(shared)} parameters", field="network"
        )
    if stride < 1 or remainder not in (0, 1):
        raise InvalidInputError(
            f"network {name!r}: stride is {stride} and remainder {remainder}; stride must be "
            "at least 1 and remainder 0 or 1",
            field="stride",
        )
    preprocessing = Preprocessing(tuple(mean), tuple(std), is_bgr)
    spec = NetworkSpec(name, 0, stride, remainder, preprocessing)
    feature_channels, num_channels = _probe(spec, encoder, decoder)
    spec = replace(spec, feature_channels=feature_channels)
    return Network(spec, encoder, decoder, num_channels)


def as_features(encoded: Tensor | Sequence[Tensor]) -> Features:
    """What an encoder returned."""
    if isinstance(encoded, Tensor):
        return Features(encoded)
    tap, *skips = encoded
    return Features(tap, tuple(skips))


@torch.no_grad()
def _probe(spec: NetworkSpec, encoder: nn.Module, decoder: nn.Module) -> tuple[int, int]:
    """Channels of the features and of the logits."""
    modes = [(module, module.training) for part in (encoder, decoder) for module in part.modules()]
    parameter = next(encoder.parameters(), torch.empty(0))
    shape = (1, _NUM_COLOURS, *spec.frame_size(_PROBE_SIDE, _PROBE_SIDE))
    frames = torch.full(shape, 0.5, dtype=parameter.dtype, device=parameter.device)
    try:
        features = as_features(encoder.eval()(frames))
        logits = decoder.eval()(*(features.tap, *features.skips))
    finally:
        for module, mode in modes:
            module.training = mode
    for what, map_, is_right in (
        ("encoder", features.tap, features.tap.shape[2:] == (_PROBE_SIDE, _PROBE_SIDE)),
        ("decoder", logits, isinstance(logits, Tensor) and logits.dim() == 4),
    ):
        if not is_right:
            raise InvalidInputError(
                f"network {spec.name!r}: of frames {shape} the {what} makes "
                f"{tuple(getattr(map_, 'shape', ()))}; with stride {spec.stride} features are "
                f"(1, C, {_PROBE_SIDE}, {_PROBE_SIDE}), and logits have 4 dimensions",
                field=what,
            )
    return features.tap.shape[1], logits.shape[1]
