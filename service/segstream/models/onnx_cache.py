"""Exported graphs kept between runs, in the user's cache folder."""

import hashlib
import logging
import os
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import platformdirs
import torch
from safetensors.numpy import load, save

from segstream.models.onnx_export import Graphs, export

if TYPE_CHECKING:
    from segstream.models.lmanet import LMANet

_log = logging.getLogger(__name__)

# Training makes new weights all the time; some 11 MB of graphs each must not pile up.
_MAX_FILES = 16
# What the graphs are made of besides the weights, and the layout of the file.
_SOURCES = ("erfnet.py", "memory.py", "onnx_export.py", "onnx_cache.py")
_CHECKSUM_BYTES = 32


def exported(model: "LMANet", digest: str) -> Graphs:
    """The graphs of ``model``, whose weights ``digest`` identifies.

    They are read from the cache if they are there and whole; if not they are made, and kept among
    the last 16.
    """
    path = _folder() / f"{digest}-{_source_digest()}-torch{torch.__version__}.graphs"
    graphs = _read(path)
    if graphs is None:
        started = time.perf_counter()
        graphs = export(model)
        seconds = time.perf_counter() - started
        _log.info("network exported to ONNX in %.1f s, kept in %s", seconds, path)
        _write(path, graphs)
    return graphs


def _folder() -> Path:
    return platformdirs.user_cache_path("segstream") / "onnx"


def _source_digest() -> str:
    digest = hashlib.blake2b(digest_size=8)
    for name in _SOURCES:
        digest.update((files("segstream.models") / name).read_bytes())
    return digest.hexdigest()


def _read(path: Path) -> Graphs | None:
    try:
        content = path.read_bytes()
    except OSError:
        return None
    with suppress(OSError):
        os.utime(path)
    checksum, body = content[:_CHECKSUM_BYTES], content[_CHECKSUM_BYTES:]
    if checksum != _checksum(body):
        _log.warning("the ONNX graphs in %s are damaged, and exported anew", path)
        return None
    return Graphs(**{name: graph.tobytes() for name, graph in load(body).items()})


def _write(path: Path, graphs: Graphs) -> None:
    """Leaves a whole file or none: a cache that cannot be written only costs time."""
    body = save({name: np.frombuffer(graph, np.uint8) for name, graph in asdict(graphs).items()})
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(_checksum(body) + body)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
        _trim(path.parent)


def _trim(folder: Path) -> None:
    """Delete all files but those that were used last."""
    files_by_age = sorted(folder.glob("*.graphs"), key=lambda path: path.stat().st_mtime)
    for path in files_by_age[:-_MAX_FILES]:
        path.unlink()


def _checksum(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_CHECKSUM_BYTES).digest()
