"""The kernels' one parameter, field by field as ``struct Problem`` in ``kernels/problem.cuh``."""

import ctypes

POINTERS = (
    "query",
    "keys",
    "values",
    "slots",
    "sink",
    "out",
    "partial_sums",
    "partial_stats",
)
STRIDES = ("key_page_stride", "value_page_stride", "value_block_stride")
SIZES = (
    "value_pixel_stride",
    "batch",
    "table_length",
    "num_slots",
    "height",
    "width",
    "window",
    "key_channels",
    "value_channels",
    "value_blocks",
)


class Problem(ctypes.Structure):
    """What one call computes; see the C++ side for the meaning of each field."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in POINTERS),
        *((name, ctypes.c_longlong) for name in STRIDES),
        *((name, ctypes.c_int) for name in SIZES),
    )
