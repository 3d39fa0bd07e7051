"""What models are called: by the names of their checkpoints."""

from collections.abc import Iterable
from pathlib import Path

from segstream.errors import InvalidInputError


def by_name(checkpoints: Iterable[str]) -> dict[str, str]:
    """Checkpoints, each a packaged one's name or a file, by their models' names.

    Raises InvalidInputError for two of one name.
    """
    named: dict[str, str] = {}
    for checkpoint in checkpoints:
        name = Path(checkpoint).stem
        if name in named:
            raise InvalidInputError(
                f"models: two are named {name!r}, the second is {checkpoint}", field="models"
            )
        named[name] = checkpoint
    return named
