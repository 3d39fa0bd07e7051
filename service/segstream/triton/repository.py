"""A model repository and a folder of backends, as Triton reads them."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from segstream.model_names import by_name
from segstream.triton.contract import BACKEND

BACKEND_MODULE = '''"""Triton's backend ``lmanet``: all of it is in the package."""

from segstream.triton.backend import TritonPythonModel as TritonPythonModel
'''
"""All that the backend's folder holds; the rest is in the package."""

_TEMPLATE = "config.pbtxt"
_VERSION = "1"


def config(*, max_batch_size: int = 8, num_instances: int = 1) -> str:
    """``config.pbtxt`` of a model: the same on CPU and GPU, for any checkpoint."""
    template = (files("segstream.triton") / _TEMPLATE).read_text()
    return template.format(max_batch_size=max_batch_size, num_instances=num_instances)


def write_repository(
    folder: Path,
    checkpoints: Sequence[str],
    *,
    max_batch_size: int = 8,
    num_instances: int = 1,
    num_threads: int = 0,
    networks: Sequence[str] = (),
    runtime: str = "auto",
) -> None:
    """A model for each checkpoint, a name or a file, under the checkpoint's own name.

    Raises InvalidInputError for two of one name.
    """
    for name, checkpoint in by_name(checkpoints).items():
        path = Path(checkpoint)
        version = folder / name / _VERSION
        version.mkdir(parents=True)
        settings = {
            "checkpoint": str(path.resolve()) if path.is_file() else checkpoint,
            "networks": list(networks),
            "runtime": runtime,
            "num_threads": num_threads,
        }
        (version / "model.json").write_text(json.dumps(settings, indent=2) + "\n")
        (folder / name / "config.pbtxt").write_text(
            config(max_batch_size=max_batch_size, num_instances=num_instances)
        )


def write_backend(folder: Path) -> None:
    """The backend, in a folder of backends."""
    target = folder / BACKEND
    target.mkdir(parents=True)
    (target / "model.py").write_text(BACKEND_MODULE)
