from dataclasses import replace

import pytest
import torch

from segstream.attention.cuda.errors import KernelUnavailableError
from segstream.attention.cuda.operands import Operands
from segstream.attention.cuda.plan import GpuTraits, make_plan
from segstream.attention.cuda.variants import (
    CombineVariant,
    Element,
    PlainVariant,
    TensorCoreVariant,
)

H100 = GpuTraits(architecture=90, multiprocessors=132, max_shared_bytes=227 * 1024)
T4 = GpuTraits(architecture=75, multiprocessors=40, max_shared_bytes=64 * 1024)
TINY_GPU = replace(T4, multiprocessors=2)
HALF = torch.float16


def operands(
    dtype: torch.dtype = HALF,
    *,
    pool_dtype: torch.dtype | None = None,
    batch: int = 1,
    pages: int = 4,
    size: tuple[int, int] = (64, 128),
    key_channels: int = 16,
    value_channels: int = 64,
    window: int = 21,
) -> Operands:
    pool_dtype = pool_dtype or dtype
    values = (
        (1, *size, value_channels) if value_channels <= 64 else (1, value_channels // 64, *size, 64)
    )
    return Operands.of(
        torch.zeros(batch, *size, key_channels, dtype=dtype),
        torch.zeros(1, *size, key_channels, dtype=pool_dtype),
        torch.zeros(values, dtype=pool_dtype),
        torch.zeros(batch, pages, dtype=torch.int32),
        window,
        None,
    )


def test_erfnet_is_split_over_the_table_on_a_large_gpu() -> None:
    plan = make_plan(operands(batch=2), H100)
    attention, combine = plan.launches
    assert attention.variant == TensorCoreVariant(Element.HALF, 21, 16, 64)
    assert attention.grid == (8 * 8, 2, 4)
    assert attention.threads == 256
    assert combine.variant == CombineVariant(Element.HALF)
    assert combine.grid == (2 * 64 * 128 * 32 // 256, 1, 1)
    assert plan.is_split


def test_erfnet_is_whole_on_a_small_gpu() -> None:
    (attention,) = make_plan(operands(), TINY_GPU).launches
    assert attention.grid == (64, 1, 1)


def test_a_single_page_is_never_split() -> None:
    assert not make_plan(operands(pages=1), H100).is_split


@pytest.mark.parametrize("gpu", [H100, T4, TINY_GPU])
@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("pages", [2, 4, 9])
def test_the_way_does_not_depend_on_batch_or_table(gpu: GpuTraits, batch: int, pages: int) -> None:
    assert (
        make_plan(operands(batch=batch, pages=pages), gpu).is_split
        == make_plan(operands(), gpu).is_split
    )


def test_pspnet_has_a_block_per_64_channels() -> None:
    plan = make_plan(operands(size=(90, 90), key_channels=128, value_channels=2048), H100)
    (attention,) = plan.launches
    assert attention.variant == TensorCoreVariant(Element.HALF, 21, 128, 64)
    assert attention.grid == (12 * 12, 32, 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": torch.float32},
        {"pool_dtype": torch.float32},
        {"pool_dtype": torch.bfloat16},
        {"window": 31},
        {"key_channels": 24},
        {"key_channels": 144},
        {"value_channels": 40},
    ],
    ids=str,
)
def test_the_plain_kernel_takes_the_rest(changes: dict[str, object]) -> None:
    plan = make_plan(operands(size=(9, 17), **changes), H100)  # type: ignore[arg-type]
    (plain,) = plan.launches
    assert isinstance(plain.variant, PlainVariant)
    assert plain.grid == (9 * 3, 1, 1)
    assert plan.in_float


def test_bf16_needs_ampere() -> None:
    assert isinstance(make_plan(operands(torch.bfloat16), T4).launches[0].variant, PlainVariant)
    assert isinstance(
        make_plan(operands(torch.bfloat16), H100).launches[0].variant, TensorCoreVariant
    )


def test_misaligned_tensors_take_the_plain_kernel() -> None:
    aligned = operands(size=(9, 17))
    buffer = torch.zeros(aligned.keys.numel() + 1, dtype=HALF)
    shifted = replace(aligned, keys=buffer[1:].view(aligned.keys.shape))
    assert isinstance(make_plan(shifted, H100).launches[0].variant, PlainVariant)


def test_a_page_beyond_32_bit_offsets_takes_the_plain_kernel() -> None:
    huge = operands(size=(1, 1))
    shape = (1, 40000, 40000, 16)
    huge = replace(
        huge,
        query=torch.zeros(1, dtype=HALF).expand(shape),
        keys=torch.zeros(1, dtype=HALF).expand(shape),
        values=torch.zeros(1, dtype=HALF).expand(*shape[:3], 64),
    )
    assert isinstance(make_plan(huge, H100).launches[0].variant, PlainVariant)


def test_more_than_shared_memory_holds_is_refused() -> None:
    with pytest.raises(KernelUnavailableError, match="key channels need"):
        make_plan(operands(torch.float32, size=(1, 1), key_channels=4096), T4)


def test_more_than_a_grid_holds_is_refused() -> None:
    with pytest.raises(KernelUnavailableError, match="more than one launch"):
        make_plan(operands(torch.float32, size=(1, 1), batch=70000, pages=1), T4)
