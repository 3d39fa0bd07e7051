"""Images of few values as runs: how many pixels, row by row, have the same value, and which.

Deflated in zlib's format, which browsers unpack too: for n runs, 4 n bytes of lengths and n values.
A length is an unsigned number of 32 bits; all lowest bytes come first, then all second ones, and so
on, for the upper ones are hardly ever anything but 0.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from segstream.errors import InvalidInputError
from segstream.media.decoding import refusing_unreadable

_LEVEL = 6
_LENGTH = np.dtype("<u4")
_RUN_BYTES = _LENGTH.itemsize + 1


def pack_runs(image: NDArray[np.uint8]) -> bytes:
    """Pack (H, W) of any size but 0."""
    pixels = image.ravel()
    starts = np.append(0, np.flatnonzero(pixels[1:] != pixels[:-1]) + 1)
    lengths = np.diff(starts, append=len(pixels)).astype(_LENGTH)
    planes = lengths.view(np.uint8).reshape(-1, _LENGTH.itemsize).T
    return zlib.compress(planes.tobytes() + pixels[starts].tobytes(), _LEVEL)


def unpack_runs(data: bytes, width: int, height: int, field: str) -> NDArray[np.uint8]:
    """The inverse, (height, width); InvalidInputError naming ``field`` for anything else."""
    num_pixels = width * height
    with refusing_unreadable(field, "deflate"):
        inflating = zlib.decompressobj()
        packed = inflating.decompress(data, max(1, _RUN_BYTES * num_pixels))
        is_whole = inflating.eof and not inflating.unused_data
    num_runs, rest = divmod(len(packed), _RUN_BYTES)
    if rest or not is_whole:
        raise InvalidInputError(f"{field} is truncated, or no runs of a label map", field=field)
    planes, values = np.split(np.frombuffer(packed, np.uint8), [_LENGTH.itemsize * num_runs])
    planes = planes.reshape(_LENGTH.itemsize, num_runs)
    lengths = np.ascontiguousarray(planes.T).view(_LENGTH).ravel().astype(np.int64)
    if lengths.sum() != num_pixels:
        raise InvalidInputError(
            f"{field} has runs of {lengths.sum()} pixels; {width}x{height} has {num_pixels}",
            field=field,
        )
    return np.repeat(values, lengths).reshape(height, width)
