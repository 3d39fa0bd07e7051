"""Sizes of frames, as options give them."""

import re

from segstream.errors import InvalidInputError


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of ``HxW``; InvalidInputError for anything else."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise InvalidInputError(f"size must be HxW in pixels, got {text!r}", field="size")
    return int(match[1]), int(match[2])
