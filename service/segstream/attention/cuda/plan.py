"""Decides how a call is computed: which kernel, how many thread blocks, split or not.

Nothing here depends on the batch or on the number of pages: an item's result is the same, bit for
bit, whatever stands beside it and however long the slot table is.
"""

from dataclasses import dataclass

from segstream.attention.arguments import VALUE_BLOCK
from segstream.attention.cuda.errors import KernelUnavailableError
from segstream.attention.cuda.operands import ELEMENTS, Operands
from segstream.attention.cuda.variants import (
    MAX_TENSOR_CORE_KEY_CHANNELS,
    MAX_TENSOR_CORE_WINDOW,
    MMA_DEPTH,
    CombineVariant,
    Element,
    PlainVariant,
    TensorCoreVariant,
    Variant,
)

_MAX_GRID_X = 2**31 - 1
_MAX_GRID_YZ = 65535
_MAX_OFFSET = (
    2**31 - 1
)  # of an element within a page, which the tensor-core kernel keeps in 32 bits
_BLOCKS_PER_MULTIPROCESSOR = 2


@dataclass(frozen=True)
class GpuTraits:
    """What the plan must know about a device."""

    architecture: int  # compute capability, 10 * major + minor
    multiprocessors: int
    max_shared_bytes: int  # of one thread block, after opting in


@dataclass(frozen=True)
class KernelLaunch:
    """One kernel of the plan."""

    variant: Variant
    grid: tuple[int, int, int]
    shared_bytes: int

    @property
    def threads(self) -> int:
        return self.variant.threads


@dataclass(frozen=True)
class Plan:
    """The kernels to launch, in order, and the form they compute in."""

    launches: tuple[KernelLaunch, ...]
    is_split: bool  # over the slot table; a combine kernel follows
    in_float: bool  # the query is read, and the result written, as fp32


def make_plan(operands: Operands, gpu: GpuTraits, *, allow_tensor_cores: bool = True) -> Plan:
    """The fastest plan that fits. Raises KernelUnavailableError where no kernel takes it."""
    variant = _tensor_core_variant(operands, gpu) if allow_tensor_cores else None
    return _plain_plan(operands, gpu) if variant is None else _fast_plan(operands, gpu, variant)


def _tensor_core_variant(operands: Operands, gpu: GpuTraits) -> TensorCoreVariant | None:
    element = ELEMENTS[operands.query.dtype]
    same_type = operands.query.dtype == operands.keys.dtype == operands.values.dtype
    channels = min(operands.value_channels, VALUE_BLOCK)
    if element is Element.FLOAT or not same_type or not operands.is_aligned:
        return None
    if operands.window > MAX_TENSOR_CORE_WINDOW:
        return None
    if operands.key_channels % MMA_DEPTH or operands.key_channels > MAX_TENSOR_CORE_KEY_CHANNELS:
        return None
    if channels % MMA_DEPTH or operands.value_channels % channels:
        return None
    variant = TensorCoreVariant(element, operands.window, operands.key_channels, channels)
    if gpu.architecture < variant.oldest_architecture:
        return None
    if variant.shared_bytes(gpu.architecture) > gpu.max_shared_bytes:
        return None
    return variant if _offsets_fit(operands) else None


def _offsets_fit(operands: Operands) -> bool:
    rows = operands.height + 2 * MAX_TENSOR_CORE_WINDOW
    columns = operands.width + 2 * MAX_TENSOR_CORE_WINDOW
    widest = max(operands.key_channels, operands.value_pixel_stride)
    return (
        rows * columns * widest <= _MAX_OFFSET
        and operands.batch * operands.value_blocks <= _MAX_GRID_YZ
        and operands.table_length <= _MAX_GRID_YZ
    )


def _fast_plan(operands: Operands, gpu: GpuTraits, variant: TensorCoreVariant) -> Plan:
    tiles = _tiles(operands, *variant.queries)
    resident = _BLOCKS_PER_MULTIPROCESSOR * gpu.multiprocessors
    # With a single page the two ways give the same bits, so nothing is lost by the short one.
    is_split = tiles * operands.value_blocks < resident and operands.table_length > 1
    parts = operands.table_length if is_split else 1
    attention = KernelLaunch(
        variant,
        (tiles, operands.batch * operands.value_blocks, parts),
        variant.shared_bytes(gpu.architecture),
    )
    if not is_split:
        return Plan((attention,), is_split=False, in_float=False)
    combine = CombineVariant(variant.element)
    pairs = operands.batch * operands.height * operands.width * operands.value_channels // 2
    blocks = -(-pairs // combine.threads)
    return Plan(
        (attention, KernelLaunch(combine, (blocks, 1, 1), 0)), is_split=True, in_float=False
    )


def _plain_plan(operands: Operands, gpu: GpuTraits) -> Plan:
    variant = PlainVariant(ELEMENTS[operands.keys.dtype], ELEMENTS[operands.values.dtype])
    grid = (
        operands.height * -(-operands.width // variant.strip),
        operands.batch * operands.value_blocks,
        1,
    )
    shared_bytes = variant.shared_bytes(operands.window, operands.key_channels)
    if shared_bytes > gpu.max_shared_bytes:
        raise KernelUnavailableError(
            f"window_size {operands.window} and "
            f"{operands.key_channels} key channels need {shared_bytes} bytes of shared memory; "
            f"the GPU has {gpu.max_shared_bytes}"
        )
    if grid[0] > _MAX_GRID_X or grid[1] > _MAX_GRID_YZ:
        raise KernelUnavailableError(
            f"a batch of {operands.batch} with "
            f"{operands.value_channels} value channels is more than one launch can hold"
        )
    return Plan((KernelLaunch(variant, grid, shared_bytes),), is_split=False, in_float=True)


def _tiles(operands: Operands, rows: int, columns: int) -> int:
    return -(-operands.height // rows) * -(-operands.width // columns)
