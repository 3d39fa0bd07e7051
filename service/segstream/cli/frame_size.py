"""The size of frames as an option."""

import re

from segstream.errors import InvalidInputError


def parse_size(size: str) -> tuple[int, int]:
    """``HxW`` to height and width in pixels. Raises InvalidInputError."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size)
    if match is None:
        raise InvalidInputError(f"size must be HxW in pixels, got {size!r}", field="size")
    return int(match[1]), int(match[2])
