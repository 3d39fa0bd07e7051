"""The kernels that can be had: one variant per element type and compile-time shape.

The names, the macro calls and the tile sizes repeat what ``kernels/*.cuh`` define; a test compares
the sizes with the C++ side.
"""

from dataclasses import dataclass
from enum import Enum

from segstream.attention.arguments import VALUE_BLOCK

MAX_TENSOR_CORE_WINDOW = 29
MAX_TENSOR_CORE_KEY_CHANNELS = 128
MMA_DEPTH = 16
# The first architecture with asynchronous copies and bf16 tensor cores; before it, half of both.
AMPERE = 80
OLDEST_TENSOR_CORES = 75

_PATCH = 4
_PATCHES_Y = 2
_WARP = 32
_KEY_TILE = 8
_CHUNK_BYTES = 16
_VALUE_PIXEL_BYTES = 128
_ROWS_PER_STAGE = 2
_MAX_REGISTER_QUERY_CHANNELS = 16
_STRIP = 8
_FLOAT_BYTES = 4


class Element(Enum):
    """How a tensor's numbers are stored; the value is the C++ type."""

    FLOAT = "float"
    HALF = "Half"
    BFLOAT16 = "BFloat16"

    @property
    def label(self) -> str:
        return {"float": "f32", "Half": "f16", "BFloat16": "bf16"}[self.value]


@dataclass(frozen=True)
class TensorCoreVariant:
    """Compile-time shape of the tensor-core kernel (``kernels/tensor_core.cuh``)."""

    element: Element
    window: int
    key_channels: int
    value_channels: int  # of one block
    header = "tensor_core.cuh"

    @property
    def name(self) -> str:
        shape = f"p{self.window}_k{self.key_channels}_v{self.value_channels}"
        return f"attention_{self.element.label}_{shape}"

    @property
    def instance(self) -> str:
        shape = f"{self.window}, {self.key_channels}, {self.value_channels}"
        return f"SEGSTREAM_TENSOR_CORE({self.name}, {self.element.value}, {shape})"

    @property
    def oldest_architecture(self) -> int:
        return AMPERE if self.element is Element.BFLOAT16 else OLDEST_TENSOR_CORES

    @property
    def keeps_queries_in_shared(self) -> bool:
        return self.key_channels > _MAX_REGISTER_QUERY_CHANNELS

    @property
    def patches(self) -> tuple[int, int]:
        """Warps of a thread block, as rows and columns of 4x4 queries."""
        return _PATCHES_Y, 2 if self.keeps_queries_in_shared else 4

    @property
    def queries(self) -> tuple[int, int]:
        """Queries of a thread block, as rows and columns."""
        return _PATCH * self.patches[0], _PATCH * self.patches[1]

    @property
    def threads(self) -> int:
        return _WARP * self.patches[0] * self.patches[1]

    def shared_bytes(self, architecture: int) -> int:
        """Dynamic shared memory of one thread block."""
        key_tiles = -(-(self.window + _PATCH - 1) // _KEY_TILE)
        halo_columns = self.queries[1] - _PATCH + _KEY_TILE * key_tiles
        row_bytes = halo_columns * (2 * self.key_channels + _VALUE_PIXEL_BYTES)
        ring = 3 if architecture >= AMPERE and not self.keeps_queries_in_shared else 2
        query_bytes = 2 * self.key_channels * _PATCH**2 * self.patches[0] * self.patches[1]
        return ring * _ROWS_PER_STAGE * row_bytes + self.keeps_queries_in_shared * query_bytes


@dataclass(frozen=True)
class CombineVariant:
    """Joins the parts of a split tensor-core kernel (``kernels/combine.cuh``)."""

    element: Element
    header = "combine.cuh"
    threads = 256
    oldest_architecture = OLDEST_TENSOR_CORES

    @property
    def name(self) -> str:
        return f"combine_{self.element.label}"

    @property
    def instance(self) -> str:
        return f"SEGSTREAM_COMBINE({self.name}, {self.element.value})"


@dataclass(frozen=True)
class PlainVariant:
    """The kernel for all other types and shapes (``kernels/plain.cuh``)."""

    key_element: Element
    value_element: Element
    header = "plain.cuh"
    threads = 128
    strip = _STRIP
    oldest_architecture = OLDEST_TENSOR_CORES

    @property
    def name(self) -> str:
        return f"plain_{self.key_element.label}_{self.value_element.label}"

    @property
    def instance(self) -> str:
        types = f"{self.key_element.value}, {self.value_element.value}"
        return f"SEGSTREAM_PLAIN({self.name}, {types})"

    def shared_bytes(self, window: int, key_channels: int) -> int:
        """Dynamic shared memory of one thread block."""
        weights_and_factors = (_STRIP + window - 1 + 1) * _STRIP
        queries = _STRIP * (key_channels + 1)
        return _FLOAT_BYTES * (weights_and_factors + queries)


Variant = TensorCoreVariant | CombineVariant | PlainVariant

_PUBLISHED_WINDOW = 21
_PUBLISHED_KEY_CHANNELS = (16, 128)  # on ERFNet, on PSPNet
_HALVES = (Element.HALF, Element.BFLOAT16)

# What a prebuilt fatbin holds: enough for the published networks, and a plain kernel for every
# shape. Other variants are compiled when they are first needed. kernels/prebuilt.cu spells it out.
PREBUILT: tuple[Variant, ...] = (
    *(
        TensorCoreVariant(element, _PUBLISHED_WINDOW, key_channels, VALUE_BLOCK)
        for element in _HALVES
        for key_channels in _PUBLISHED_KEY_CHANNELS
    ),
    *(CombineVariant(element) for element in _HALVES),
    *(PlainVariant(element, element) for element in Element),
)
