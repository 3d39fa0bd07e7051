"""Masks as COCO packs them: runs down the columns, in a short text."""

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask


class CocoRle(TypedDict):
    """``size`` is [height, width]; ``counts`` are compressed run lengths in COCO's own letters."""

    size: list[int]
    counts: str


def encode_coco_rle(mask: NDArray[np.bool_]) -> CocoRle:
    """Pack a mask, (height, width)."""
    packed = coco_mask.encode(np.asfortranarray(mask, np.uint8))
    counts = packed["counts"]
    return {
        "size": [int(side) for side in packed["size"]],
        "counts": counts.decode() if isinstance(counts, bytes) else counts,
    }
