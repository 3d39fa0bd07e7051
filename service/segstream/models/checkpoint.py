"""Checkpoints: this project's safetensors files and the published LMANet ``.pth`` files.

A safetensors file carries the network's configuration in its metadata. A published file is a flat
dictionary of tensors, read without unpickling anything but tensors; its configuration is told by
its shapes. Either way every key must find its place.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import CAMVID, CITYSCAPES, LABEL_SETS, LabelSet
from segstream.models.lmanet import LMANet, LMANetConfig, channels_last

_FORMAT = "segstream/1"
_PUBLISHED_SUFFIXES = {".pth", ".pt", ".tar"}
_PUBLISHED_PREFIXES = {
    "encoder.": "encoder.",
    "decoder.": "decoder.",
    "kv_M_r4.Key.": "memory_head.key.",
    "kv_M_r4.Value.": "memory_head.value.",
    "kv_Q_r4.Key.": "query_head.key.",
    "kv_Q_r4.Value.": "query_head.value.",
    "memory_module_local.const": "sink",
    "memory_fusion.bn1.": "fusion.query_bn.",
    "memory_fusion.bn2.": "fusion.memory_bn.",
    "memory_fusion.bn.": "fusion.bn.",
    "memory_fusion.conv_layer_1.": "fusion.query_conv.",
    "memory_fusion.conv_layer_2.": "fusion.memory_conv.",
    "memory_fusion.conv_layer_3.": "fusion.query_gate.",
    "memory_fusion.conv_layer_4.": "fusion.memory_gate.",
}
_PARALLEL_PREFIX = "module."  # of networks that were trained on several GPUs
# Left over from the encoder's own classification training; no network uses it.
_UNUSED_PREFIX = "encoder.output_conv."
_LABEL_SET_BY_CHANNELS = {20: CITYSCAPES, 12: CAMVID}
_PICKLED_NAME = re.compile(r"GLOBAL (\S+)")


def available() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(Path(entry.name).stem for entry in _packaged() if _is_checkpoint(entry))


def load(
    path_or_name: str | Path, *, memory_length: int | None = None, window_size: int | None = None
) -> LMANet:
    """An LMANet in eval mode from a file or from a checkpoint that comes with the package.

    ``memory_length`` (T) and ``window_size`` (P) replace the checkpoint's own. Raises
    NotFoundError, and InvalidInputError naming each missing, unexpected or misshapen key, or a T
    or P out of bounds.
    """
    path = Path(path_or_name)
    if path.is_file():
        return _load_file(path, memory_length, window_size)
    for entry in _packaged():
        if _is_checkpoint(entry) and Path(entry.name).stem == str(path_or_name):
            with as_file(entry) as packaged_path:
                return _load_file(packaged_path, memory_length, window_size)
    raise NotFoundError(
        f"no checkpoint {str(path_or_name)!r}: neither a file nor one of {available()}",
        field="model",
    )


def save(model: LMANet, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``model`` as safetensors, floats stored as ``dtype``; the file appears whole."""
    config = model.config
    metadata = {
        "format": _FORMAT,
        "label_set": config.label_set.name,
        "num_channels": str(config.num_channels),
        "memory_length": str(config.memory_length),
        "window_size": str(config.window_size),
    }
    tensors = {
        name: tensor.to(dtype if tensor.is_floating_point() else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, metadata)
    temporary.replace(path)


def _packaged() -> list[Traversable]:
    return list(files("segstream.checkpoints").iterdir())


def _is_checkpoint(entry: Traversable) -> bool:
    return entry.name.endswith(".safetensors")


def _load_file(path: Path, memory_length: int | None, window_size: int | None) -> LMANet:
    key_of: Callable[[str], str] = str
    if path.suffix == ".safetensors":
        state, settings = _read_safetensors(path)
    elif path.suffix in _PUBLISHED_SUFFIXES:
        (state, prefix), settings = _read_published(path), {}
        key_of = partial(_published_key, prefix)
    else:
        raise InvalidInputError(
            f"{path}: a checkpoint ends in .safetensors, .pth, .pt or .tar", field="model"
        )
    config = _config(path, state, settings)
    model = LMANet(
        replace(
            config,
            memory_length=config.memory_length if memory_length is None else memory_length,
            window_size=config.window_size if window_size is None else window_size,
        )
    )
    _check_keys(path, state, model.state_dict(), key_of)
    model.load_state_dict(state)
    return channels_last(model.eval().requires_grad_(False))


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InvalidInputError(
            f"{path}: not a safetensors file ({error})", field="model"
        ) from error
    if metadata.get("format") != _FORMAT:
        raise InvalidInputError(
            f"{path}: metadata 'format' is {metadata.get('format')!r}, must be {_FORMAT!r}",
            field="model",
        )
    return state, metadata


def _read_published(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors by their names here, and the prefix of all keys in the file."""
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
    state: dict[str, Tensor] = {}
    for key, tensor in content.items():
        name = _own_name(str(key).removeprefix(_PARALLEL_PREFIX))
        if not isinstance(tensor, Tensor):
            raise InvalidInputError(
                f"{path}: {key} is a {type(tensor).__name__}, must be a tensor", field="model"
            )
        if name in state:
            raise InvalidInputError(f"{path}: a second key stands for {key}", field="model")
        if not name.startswith(_UNUSED_PREFIX):
            state[name] = tensor
    is_parallel = any(str(key).startswith(_PARALLEL_PREFIX) for key in content)
    return state, _PARALLEL_PREFIX if is_parallel else ""


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


def _own_name(published: str) -> str:
    """The name of a published key here; a key without a place keeps its name."""
    for theirs, ours in _PUBLISHED_PREFIXES.items():
        if published.startswith(theirs):
            return ours + published.removeprefix(theirs)
    return published


def _published_key(prefix: str, name: str) -> str:
    """The key in a published file for a name here."""
    for theirs, ours in _PUBLISHED_PREFIXES.items():
        if name.startswith(ours):
            return prefix + theirs + name.removeprefix(ours)
    return prefix + name


def _config(path: Path, state: dict[str, Tensor], settings: dict[str, str]) -> LMANetConfig:
    label_set, num_channels = _label_set(path, state, settings), _num_channels(path, state)
    try:
        return LMANetConfig(
            label_set,
            num_channels,
            memory_length=int(settings.get("memory_length", 4)),
            window_size=int(settings.get("window_size", 21)),
            has_sink="sink" in state,
        )
    except (ValueError, InvalidInputError) as error:
        raise InvalidInputError(f"{path}: {error}", field="model") from error


def _num_channels(path: Path, state: dict[str, Tensor]) -> int:
    weight = state.get("decoder.output_conv.weight")
    if weight is None or weight.dim() != 4:
        raise InvalidInputError(
            f"{path}: no decoder.output_conv.weight of 4 dimensions; not an ERFNet LMANet",
            field="model",
        )
    return weight.shape[1]


def _label_set(path: Path, state: dict[str, Tensor], settings: dict[str, str]) -> LabelSet:
    if "label_set" in settings:
        label_set = LABEL_SETS.get(settings["label_set"])
        known: object = sorted(LABEL_SETS)
        given: object = settings["label_set"]
    else:
        given = _num_channels(path, state)
        label_set = _LABEL_SET_BY_CHANNELS.get(_num_channels(path, state))
        known = {n: labels.name for n, labels in _LABEL_SET_BY_CHANNELS.items()}
    if label_set is None:
        raise InvalidInputError(
            f"{path}: no label set for {given!r}, known: {known}", field="model"
        )
    return label_set


def _check_keys(
    path: Path, state: dict[str, Tensor], wanted: dict[str, Tensor], key_of: Callable[[str], str]
) -> None:
    """Every name has its place and fits it; ``key_of`` tells what the file calls a name."""
    problems = [f"missing {key_of(name)}" for name in wanted if name not in state]
    problems += [f"unexpected {key_of(name)}" for name in state if name not in wanted]
    for name, tensor in wanted.items():
        if name in state and (fault := _fault(state[name], tensor)):
            problems.append(f"{key_of(name)} {fault}")
    if problems:
        raise InvalidInputError(
            f"{path}: {len(problems)} keys do not fit: " + "; ".join(problems), field="model"
        )


def _fault(given: Tensor, wanted: Tensor) -> str:
    """What keeps a tensor from its place; empty if nothing does."""
    if given.shape != wanted.shape:
        return f"has shape {tuple(given.shape)}, must have {tuple(wanted.shape)}"
    if given.is_complex() or given.is_quantized or given.layout is not torch.strided:
        return f"is {given.dtype} ({given.layout}), must be dense real numbers"
    return ""
