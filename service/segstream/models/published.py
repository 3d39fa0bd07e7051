"""Published ``.pth`` files: which network one holds, and what its tensors are called here.

Read without unpickling anything but tensors. A file tells its network by its keys and its number
of classes by its shapes.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import Tensor

from segstream.errors import InvalidInputError
from segstream.label_sets import CAMVID, CITYSCAPES, LabelSet
from segstream.models.lmanet import LMANetConfig
from segstream.models.pspnet import BLOCKS

SUFFIXES = {".pth", ".pt", ".tar"}

_PARALLEL_PREFIX = "module."  # of networks that were trained on several GPUs
_LABEL_SET_BY_CHANNELS = {20: CITYSCAPES, 12: CAMVID}
_PICKLED_NAME = re.compile(r"GLOBAL (\S+)")
_HEADS = {
    "kv_M_r4.Key.": "memory_head.key.",
    "kv_M_r4.Value.": "memory_head.value.",
    "kv_Q_r4.Key.": "query_head.key.",
    "kv_Q_r4.Value.": "query_head.value.",
    "memory_module_local.const": "sink",
}
_MEMORY = ("memory_head.", "query_head.", "fusion.", "sink")


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """The keys of one kind of file. ``mark`` is the key that tells the kind.

    prefixes: how a key here begins, by how it begins there; the first that fits counts.
    unused: why keys that begin so have no place here.
    """

    mark: str
    prefixes: Mapping[str, str]
    unused: Mapping[str, str]
    name: Callable[[Mapping[str, Tensor]], str]
    output: str
    num_silent_channels: int = 0
    fusion: str = "sigmoid-do1"
    key_channels: int = 16

    def own_name(self, key: str) -> str:
        """A key without a place keeps its name."""
        for theirs, ours in self.prefixes.items():
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        return key

    def published_key(self, name: str) -> str:
        """The inverse of ``own_name``."""
        for theirs, ours in self.prefixes.items():
            if name.startswith(ours):
                return theirs + name.removeprefix(ours)
        return name

    def reason_unused(self, key: str) -> str:
        """Why the key has no place here; empty if it may have one."""
        return next((why for start, why in self.unused.items() if key.startswith(start)), "")


def _pspnet_name(state: Mapping[str, Tensor]) -> str:
    depths = {blocks[2]: name for name, blocks in BLOCKS.items()}
    blocks = {name.split(".")[2] for name in state if name.startswith("encoder.layer3.")}
    return depths.get(len(blocks), "pspnet101")


_LAYOUTS = (
    _Layout(
        mark="encoder.initial_block.conv.weight",
        prefixes={
            "encoder.": "encoder.",
            "decoder.": "decoder.",
            **_HEADS,
            "memory_fusion.bn1.": "fusion.query_bn.",
            "memory_fusion.bn2.": "fusion.memory_bn.",
            "memory_fusion.bn.": "fusion.bn.",
            "memory_fusion.conv_layer_1.": "fusion.query_conv.",
            "memory_fusion.conv_layer_2.": "fusion.memory_conv.",
            "memory_fusion.conv_layer_3.": "fusion.query_gate.",
            "memory_fusion.conv_layer_4.": "fusion.memory_gate.",
        },
        unused={"encoder.output_conv.": "the encoder's own classifier, from its first training"},
        name=lambda _: "erfnet",
        output="decoder.output_conv.weight",
    ),
    _Layout(
        mark="encoder.layer0.0.weight",
        prefixes={
            "encoder.": "encoder.",
            "ppm.": "decoder.ppm.",
            "decoder.": "decoder.",
            **_HEADS,
            "memory_fusion.bn0.": "fusion.thin_bn.",
            "memory_fusion.bn.": "fusion.bn.",
            "memory_fusion.conv_layer_1.": "fusion.thin_conv.",
            "memory_fusion.conv_layer_3.": "fusion.query_gate.",
            "memory_fusion.conv_layer_4.": "fusion.memory_gate.",
        },
        unused={"memory_fusion.conv_layer_2.": "this fusion uses conv_layer_1 for both inputs"},
        name=_pspnet_name,
        output="decoder.cls.4.weight",
        num_silent_channels=1,
        fusion="sigmoid-down1",
        key_channels=128,
    ),
    _Layout(  # semseg's own, of the single frame
        mark="layer0.0.weight",
        prefixes={"layer": "encoder.layer", "ppm.": "decoder.ppm.", "cls.": "decoder.cls."},
        unused={"aux.": "the auxiliary head, of training only"},
        name=_pspnet_name,
        output="decoder.cls.4.weight",
        num_silent_channels=1,
        fusion="sigmoid-down1",
        key_channels=128,
    ),
    _Layout(
        mark="encoder.level1.conv.weight",
        prefixes={"br.": "encoder.br.", "encoder.": "encoder.", "": "decoder."},
        unused={},
        name=lambda _: "espnet",
        output="decoder.classifier.weight",
    ),
)


@dataclass(frozen=True, slots=True, eq=False)
class Published:
    """A published file: its tensors by their names here, and what they are said to be.

    ``unused`` are the keys that have no place, and why. ``key_of`` tells what the file calls a
    name.
    """

    state: dict[str, Tensor]
    network: str
    config: LMANetConfig
    key_of: Callable[[str], str]
    unused: dict[str, str] = field(default_factory=dict)


def read_published(path: Path) -> Published:
    """Raises InvalidInputError for a file that is none, or of an unknown network or classes."""
    content = _read_tensors(path)
    is_parallel = any(key.startswith(_PARALLEL_PREFIX) for key in content)
    prefix = _PARALLEL_PREFIX if is_parallel else ""
    layout = _layout(path, content)
    state: dict[str, Tensor] = {}
    unused: dict[str, str] = {}
    for key, tensor in content.items():
        plain = key.removeprefix(_PARALLEL_PREFIX)
        name = layout.own_name(plain)
        if name in state:
            raise InvalidInputError(f"{path}: a second key stands for {key}", field="model")
        if why := layout.reason_unused(plain):
            unused[key] = why
        else:
            state[name] = tensor
    config = _config(path, layout, state)

    def key_of(name: str) -> str:
        return prefix + layout.published_key(name)

    return Published(state, layout.name(state), config, key_of, unused)


def is_of_memory(name: str) -> bool:
    """Whether this key of an LMANet belongs to its memory, not to its single-frame network."""
    return name.startswith(_MEMORY)


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever the broken file provokes
        raise InvalidInputError(
            f"{path}: not a file of tensors ({_reason(error)})", field="model"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict):
        raise InvalidInputError(f"{path}: not a dictionary of tensors", field="model")
    for key, tensor in content.items():
        if not isinstance(tensor, Tensor):
            raise InvalidInputError(
                f"{path}: {key} is a {type(tensor).__name__}, must be a tensor", field="model"
            )
    return {str(key): tensor for key, tensor in content.items()}


def _reason(error: Exception) -> str:
    """What is wrong, without torch's advice on how to load it all the same."""
    if not isinstance(error, UnpicklingError):
        return f"{type(error).__name__}: {error}"
    found = _PICKLED_NAME.search(str(error))
    return (
        f"it holds {found[1]}, which is not loaded"
        if found
        else "it cannot be read as tensors alone"
    )


def _layout(path: Path, content: Mapping[str, Tensor]) -> _Layout:
    for layout in _LAYOUTS:
        if layout.mark in content or _PARALLEL_PREFIX + layout.mark in content:
            return layout
    marks = ", ".join(layout.mark for layout in _LAYOUTS)
    raise InvalidInputError(
        f"{path}: not a network that is known here, which has one of the keys {marks}; for "
        "another one see docs/your_network.md",
        field="model",
    )


def _config(path: Path, layout: _Layout, state: Mapping[str, Tensor]) -> LMANetConfig:
    num_channels = _num_channels(path, layout, state)
    return LMANetConfig(
        _label_set(path, num_channels),
        num_channels,
        memory_length=3 if layout.fusion == "sigmoid-down1" else 4,
        has_sink="sink" in state,
        fusion=layout.fusion,
        key_channels=layout.key_channels,
        has_memory=any(map(is_of_memory, state)),
    )


def _num_channels(path: Path, layout: _Layout, state: Mapping[str, Tensor]) -> int:
    weight = state.get(layout.output)
    if weight is None or weight.dim() != 4:
        key = layout.published_key(layout.output)
        raise InvalidInputError(f"{path}: no {key} of 4 dimensions", field="model")
    is_transposed = not layout.num_silent_channels
    return weight.shape[1 if is_transposed else 0] + layout.num_silent_channels


def _label_set(path: Path, num_channels: int) -> LabelSet:
    label_set = _LABEL_SET_BY_CHANNELS.get(num_channels)
    if label_set is None:
        known = {n: labels.name for n, labels in _LABEL_SET_BY_CHANNELS.items()}
        raise InvalidInputError(
            f"{path}: no label set for {num_channels} channels, known: {known}", field="model"
        )
    return label_set
