"""Refuses what cannot be written before the work begins, not after it."""

import os
from pathlib import Path

from segstream.errors import InvalidInputError


def check_writable(path: Path, name: str) -> None:
    """Raise InvalidInputError unless a file can be made at ``path``."""
    if path.is_dir():
        raise InvalidInputError(f"{name} {path} is a folder", field=name)
    _check_parent(path, name)


def check_checkpoint(path: Path, name: str) -> None:
    """Raise InvalidInputError unless a checkpoint can be made at ``path``."""
    check_writable(path, name)
    if path.suffix != ".safetensors":
        raise InvalidInputError(f"{name} {path} must end in .safetensors", field=name)


def check_writable_folder(path: Path, name: str) -> None:
    """Raise InvalidInputError unless ``path`` is a folder, or can be made, in a writable one."""
    if path.exists() and not path.is_dir():
        raise InvalidInputError(f"{name} {path} is a file", field=name)
    if path.is_dir() and not os.access(path, os.W_OK):
        raise InvalidInputError(f"{name} {path} is not writable", field=name)
    _check_parent(path, name)


def _check_parent(path: Path, name: str) -> None:
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise InvalidInputError(
            f"{name} {path} cannot be written: no writable folder {path.parent}", field=name
        )
