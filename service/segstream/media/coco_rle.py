"""Masks as COCO packs them: runs down the columns, in a short text."""

import re
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from segstream.errors import InvalidInputError


class CocoRle(TypedDict):
    """``size`` is [height, width]; ``counts`` are compressed run lengths in COCO's own letters."""

    size: list[int]
    counts: str


# A number is of letters with 5 bits each, the lowest first; but for the last one they carry a mark.
_FIRST_LETTER, _BITS, _MARK, _SIGN = ord("0"), 5, 32, 16
_COUNTS = re.compile("(?:[P-o]{0,6}[0-O])*")


def encode_coco_rle(mask: NDArray[np.bool_]) -> CocoRle:
    """Pack a mask, (height, width)."""
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    counts = packed["counts"]
    return {
        "size": [int(side) for side in packed["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }


def decode_coco_rle(rle: CocoRle, field: str) -> NDArray[np.bool_]:
    """The mask, (height, width); InvalidInputError naming ``field`` if it is none.

    pycocotools trusts what it decodes, and its decoder is not up to numpy 2.
    """
    height, width = rle["size"]
    if not _COUNTS.fullmatch(rle["counts"]):
        raise InvalidInputError(f"{field} has counts that are no COCO RLE", field=field)
    counts = _numbers(rle["counts"].encode())
    # From the fourth on they count from the last but one; odd ones are those of the mask.
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    if (counts < 0).any() or (counts > height * width).any() or counts.sum() != height * width:
        raise InvalidInputError(
            f"{field} has runs that do not make up {width}x{height} pixels", field=field
        )
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _numbers(text: bytes) -> NDArray[np.int64]:
    letters = np.frombuffer(text, np.uint8).astype(np.int64) - _FIRST_LETTER
    ends = np.flatnonzero(letters < _MARK) + 1
    if not len(ends):
        return np.empty(0, np.int64)
    starts = np.append(0, ends[:-1])
    places = np.arange(len(letters)) - np.repeat(starts, ends - starts)
    bits = (letters & (_MARK - 1)) << (_BITS * places)
    numbers: NDArray[np.int64] = np.add.reduceat(bits, starts)
    is_negative = letters[ends - 1] & _SIGN != 0
    numbers -= is_negative.astype(np.int64) << (_BITS * (ends - starts))
    return numbers
