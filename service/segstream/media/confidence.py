"""Confidence maps: of each pixel how sure the network is of its class, packed for the wire."""

import io
import zlib

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from segstream.errors import InvalidInputError
from segstream.media.decoding import refusing_unreadable

ConfidenceMap = NDArray[np.uint8]
"""The softmax of each pixel's class, (height, width); 255 = 1."""

_FIELD = "label_map.confidence"


def encode_confidence(confidence: ConfidenceMap) -> bytes:
    """Pack (H, W) as 8-bit grey PNG."""
    target = io.BytesIO()
    # Behind PNG's filters few byte strings repeat: runs alone are faster and pack tighter.
    picture = PIL.Image.fromarray(np.ascontiguousarray(confidence))
    picture.save(target, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    return target.getvalue()


def decode_confidence(data: bytes, width: int, height: int) -> ConfidenceMap:
    """Unpack (height, width); InvalidInputError for what is no such PNG of this size."""
    with refusing_unreadable(_FIELD, "PNG"):
        header = PngImageFile(io.BytesIO(data))
        if header.mode != "L" or header.size != (width, height):
            stated = "x".join(map(str, header.size))
            raise InvalidInputError(
                f"{_FIELD} is a PNG of {stated} and mode {header.mode}; it must be "
                f"{width}x{height} and grey",
                field=_FIELD,
            )
        header.verify()
        return np.array(PngImageFile(io.BytesIO(data)))
