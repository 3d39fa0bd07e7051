"""Checkpoints: this project's safetensors files and the published ``.pth`` files.

A safetensors file carries the network's name and configuration in its metadata, a published one
tells them by its keys and shapes. Either way every key must find its place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib.resources import as_file, files
from importlib.resources.abc import Traversable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import LABEL_SETS
from segstream.models.lmanet import LMANet, LMANetConfig, channels_last
from segstream.models.memory import KEY_CHANNELS
from segstream.models.network import NetworkBuilder, Preprocessing
from segstream.models.networks import build
from segstream.models.published import SUFFIXES, is_of_memory, read_published

_FORMAT = "segstream/1"
_COUNT = ".num_batches_tracked"
_NO_NETWORKS: Mapping[str, NetworkBuilder] = {}


class Outcome(StrEnum):
    """What came of a key. ``new``: the file need not have it; it begins as in a new network."""

    TAKEN = "taken"
    UNUSED = "unused"
    NEW = "new"
    MISSING = "missing"
    UNEXPECTED = "unexpected"
    MISSHAPEN = "misshapen"


_FAULTS = (Outcome.MISSING, Outcome.UNEXPECTED, Outcome.MISSHAPEN)


@dataclass(frozen=True, slots=True)
class Key:
    """One key of a file: what the file calls it, its name here, what came of it, and why."""

    key: str
    name: str
    outcome: Outcome
    shape: tuple[int, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Import:
    """A network made of a file, and what came of every key: of the file, and of the network.

    ``model`` has the weights of the file only if ``faults`` is empty.
    """

    model: LMANet
    keys: list[Key]

    @property
    def faults(self) -> list[Key]:
        return [key for key in self.keys if key.outcome in _FAULTS]


@dataclass(frozen=True, slots=True, eq=False)
class _Source:
    """What a file holds, with its tensors by their names here."""

    state: dict[str, Tensor]
    network: str
    config: LMANetConfig
    preprocessing: Preprocessing | None
    key_of: Callable[[str], str]
    unused: Mapping[str, str]


def available() -> list[str]:
    """Names of the checkpoints that come with the package."""
    return sorted(Path(entry.name).stem for entry in _packaged() if _is_checkpoint(entry))


def load(
    path_or_name: str | Path,
    *,
    memory_length: int | None = None,
    window_size: int | None = None,
    networks: Mapping[str, NetworkBuilder] = _NO_NETWORKS,
) -> LMANet:
    """An LMANet in eval mode from a file or from a checkpoint that comes with the package.

    ``memory_length`` (T) and ``window_size`` (P) replace the checkpoint's own; with
    ``memory_length`` a memory that is not trained yet is used all the same. ``networks`` are those
    that a checkpoint may name besides the package's own. Raises NotFoundError, and
    InvalidInputError naming each missing, unexpected or misshapen key, or a T or P out of bounds.
    """
    path = Path(path_or_name)
    if path.is_file():
        return _load_file(path, memory_length, window_size, networks)
    for entry in _packaged():
        if _is_checkpoint(entry) and Path(entry.name).stem == str(path_or_name):
            with as_file(entry) as packaged_path:
                return _load_file(packaged_path, memory_length, window_size, networks)
    raise NotFoundError(
        f"no checkpoint {str(path_or_name)!r}: neither a file nor one of {available()}",
        field="model",
    )


def import_file(
    path: Path,
    *,
    memory_length: int | None = None,
    window_size: int | None = None,
    networks: Mapping[str, NetworkBuilder] = _NO_NETWORKS,
) -> Import:
    """As ``load``, of a file, with an account of every key; keys that do not fit raise nothing."""
    source = _read(path)
    config = replace(
        source.config,
        memory_length=source.config.memory_length if memory_length is None else memory_length,
        window_size=source.config.window_size if window_size is None else window_size,
        has_memory=source.config.has_memory or memory_length is not None,
    )
    # Whatever the file lacks has the same weights each time.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build(source.network, config.num_channels, networks)
        if source.preprocessing is not None:
            network = network.with_preprocessing(source.preprocessing)
        model = LMANet(config, network)
    made = model.state_dict()
    keys = _account(source, made)
    imported = Import(model, keys)
    if not imported.faults:
        model.load_state_dict(made | source.state)
    channels_last(model.eval().requires_grad_(False))
    return imported


def save(model: LMANet, path: Path, *, dtype: torch.dtype = torch.float32) -> None:
    """Write ``model`` as safetensors, floats stored as ``dtype``; the file appears whole."""
    config = model.config
    metadata = {
        "format": _FORMAT,
        "network": model.spec.name,
        "preprocessing": model.spec.preprocessing.encode(),
        "label_set": config.label_set.name,
        "num_channels": str(config.num_channels),
        "memory_length": str(config.memory_length),
        "window_size": str(config.window_size),
        "fusion": config.fusion,
        "key_channels": str(config.key_channels),
        "has_memory": str(config.has_memory).lower(),
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


def _load_file(
    path: Path,
    memory_length: int | None,
    window_size: int | None,
    networks: Mapping[str, NetworkBuilder],
) -> LMANet:
    imported = import_file(
        path, memory_length=memory_length, window_size=window_size, networks=networks
    )
    if imported.faults:
        raise InvalidInputError(
            f"{path}: {len(imported.faults)} keys do not fit: "
            + "; ".join(map(_fault_text, imported.faults)),
            field="model",
        )
    return imported.model


def _fault_text(key: Key) -> str:
    return (
        f"{key.key} {key.note}" if key.outcome is Outcome.MISSHAPEN else f"{key.outcome} {key.key}"
    )


def _read(path: Path) -> _Source:
    if path.suffix in SUFFIXES:
        found = read_published(path)
        return _Source(found.state, found.network, found.config, None, found.key_of, found.unused)
    if path.suffix != ".safetensors":
        raise InvalidInputError(
            f"{path}: a checkpoint ends in .safetensors, .pth, .pt or .tar", field="model"
        )
    state, settings = _read_safetensors(path)
    try:
        preprocessing = (
            Preprocessing.decode(settings["preprocessing"]) if "preprocessing" in settings else None
        )
        config = _config(settings, has_sink="sink" in state)
    except (ValueError, KeyError, InvalidInputError) as error:
        raise InvalidInputError(f"{path}: metadata: {error}", field="model") from error
    return _Source(state, settings.get("network", "erfnet"), config, preprocessing, str, {})


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


def _config(settings: Mapping[str, str], *, has_sink: bool) -> LMANetConfig:
    label_set = LABEL_SETS.get(settings["label_set"])
    if label_set is None:
        raise InvalidInputError(
            f"no label set {settings['label_set']!r}, known: {sorted(LABEL_SETS)}"
        )
    return LMANetConfig(
        label_set,
        int(settings["num_channels"]),
        memory_length=int(settings["memory_length"]),
        window_size=int(settings["window_size"]),
        has_sink=has_sink,
        fusion=settings.get("fusion", "sigmoid-do1"),
        key_channels=int(settings.get("key_channels", KEY_CHANNELS)),
        has_memory=settings.get("has_memory", "true") == "true",
    )


def _account(source: _Source, wanted: Mapping[str, Tensor]) -> list[Key]:
    """What comes of every key; each name has its place and fits it, or there is a fault."""
    lacks_counts = not any(name.endswith(_COUNT) for name in source.state)
    keys = [Key(key, "", Outcome.UNUSED, (), note) for key, note in source.unused.items()]
    for name, tensor in wanted.items():
        key, shape = source.key_of(name), tuple(tensor.shape)
        if name in source.state:
            fault = _fault(source.state[name], tensor)
            outcome = Outcome.MISSHAPEN if fault else Outcome.TAKEN
            keys.append(Key(key, name, outcome, tuple(source.state[name].shape), fault))
        elif not source.config.has_memory and is_of_memory(name):
            keys.append(Key("", name, Outcome.NEW, shape, "the memory is still to be trained"))
        elif lacks_counts and name.endswith(_COUNT):
            keys.append(Key("", name, Outcome.NEW, shape, "torch before 0.4.1 did not count"))
        else:
            keys.append(Key(key, name, Outcome.MISSING, shape))
    keys += [
        Key(source.key_of(name), "", Outcome.UNEXPECTED, tuple(tensor.shape))
        for name, tensor in source.state.items()
        if name not in wanted
    ]
    return keys


def _fault(given: Tensor, wanted: Tensor) -> str:
    """What keeps a tensor from its place; empty if nothing does."""
    if given.shape != wanted.shape:
        return f"has shape {tuple(given.shape)}, must have {tuple(wanted.shape)}"
    if given.is_complex() or given.is_quantized or given.layout is not torch.strided:
        return f"is {given.dtype} ({given.layout}), must be dense real numbers"
    return ""
