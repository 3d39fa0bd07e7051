"""(A) The kernels' own source, compiled for the host, under the emulator's eyes."""

import ctypes

import pytest
import torch
from torch import Tensor

from segstream.attention import row_band
from segstream.attention.cuda.plan import GpuTraits
from segstream.attention.cuda.problem import Problem
from segstream.attention.cuda.source import translation_unit
from segstream.attention.cuda.variants import PREBUILT, Element, PlainVariant, TensorCoreVariant
from tests.attention.cuda_emulation.conftest import Build
from tests.attention.cuda_emulation.emulated_device import EmulatedLibrary
from tests.attention.cuda_emulation.gpus import A100, SMALL_AMPERE, T4, error, run
from tests.attention.cuda_emulation.samples import Sample, interleaved, strongly_negative
from tests.attention.cuda_emulation.toolchain import Toolchain

BF16, FP32 = torch.bfloat16, torch.float32
# Of different lengths, with gaps, and an item without any page.
TABLE = ((2, 0, 1), (-1, 1, -1), (-1, -1, -1))

SAMPLES = {
    "erfnet": Sample(),
    "table": Sample(height=6, width=18, slots=TABLE),
    "sink": Sample(height=6, width=5, slots=TABLE, sink=1.5),
    "unit variance": Sample(score_scale=1.0),
    "bf16": Sample(dtype=BF16, height=6, slots=((0, 2),)),
    "pspnet": Sample(key_channels=128, value_channels=128, score_scale=0.09, height=5, width=9),
    **{f"window {p}": Sample(window=p, height=7, width=11) for p in (1, 3, 5, 9, 13, 17, 29)},
    "48 key, 16 value channels": Sample(key_channels=48, value_channels=16, height=5),
    "128 value channels in one block": Sample(window=5, value_channels=128),
    "fp32": Sample(dtype=FP32, height=6),
    "fp32, odd channels": Sample(
        dtype=FP32, height=5, key_channels=5, value_channels=7, slots=TABLE, sink=-1.0
    ),
    "fp32, 128 value channels": Sample(dtype=FP32, window=5, value_channels=128, height=5),
    "window 33": Sample(window=33, height=3, width=9),
    "fp32 query, fp16 pool": Sample(dtype=FP32, pool_dtype=torch.float16, height=3),
    "bf16 query, fp32 pool": Sample(dtype=BF16, pool_dtype=FP32, height=3),
}
TURING_SAMPLES = {name: SAMPLES[name] for name in ("erfnet", "sink", "pspnet", "window 5", "bf16")}
# bf16 keeps 8 bits of the result and of every weight.
TOLERANCE = {torch.float16: 2e-3, BF16: 1.6e-2, FP32: 1e-5}
# Windows of 5 lie within the map at many pixels, so that no zero from outside softens the blow.
BIG = 1e4 / 4  # as a query scale at 16 channels: scores up to about 1e4


@pytest.fixture(scope="module")
def ampere(build_source: Build) -> EmulatedLibrary:
    return build_source("source_sm80", list(SAMPLES.values()), [A100, SMALL_AMPERE])


@pytest.fixture(scope="module")
def turing(build_source: Build) -> EmulatedLibrary:
    return build_source("source_sm75", list(TURING_SAMPLES.values()), [T4])


@pytest.mark.parametrize("name", SAMPLES)
def test_agrees_with_float64(ampere: EmulatedLibrary, name: str) -> None:
    sample = SAMPLES[name]
    assert error(ampere, sample.operands(), SMALL_AMPERE) <= TOLERANCE[sample.dtype]


@pytest.mark.parametrize("name", ["table", "sink"])
def test_agrees_with_float64_when_split_over_the_table(ampere: EmulatedLibrary, name: str) -> None:
    assert error(ampere, SAMPLES[name].operands(), A100) <= TOLERANCE[torch.float16]


def test_a_whole_frame_agrees_with_float64(ampere: EmulatedLibrary) -> None:
    """Of unit variance throughout, as the accuracy in docs/cuda_without_a_gpu.md is given for."""
    slots = ((2, 0, 1, 3),)
    frame = Sample(height=64, width=128, slots=slots, num_slots=4, score_scale=1.0).operands()
    query, keys, values = frame.query.double(), frame.keys.double(), frame.values.double()
    exact = row_band.forward(query, keys, values, frame.slots, frame.window, None)
    off_by = (run(ampere, frame, A100).double() - exact).abs().max().item()
    print(f"a whole frame is off by {off_by:.1e}")
    assert off_by <= TOLERANCE[torch.float16]


@pytest.mark.parametrize("name", TURING_SAMPLES)
def test_agrees_with_float64_on_turing(turing: EmulatedLibrary, name: str) -> None:
    sample = TURING_SAMPLES[name]
    assert error(turing, sample.operands(), T4) <= TOLERANCE[sample.dtype]


@pytest.mark.parametrize("gpu", [SMALL_AMPERE, A100], ids=["whole", "split"])
@pytest.mark.parametrize("sink", [None, 1e4, -1e4])
def test_scores_of_any_size(ampere: EmulatedLibrary, gpu: GpuTraits, sink: float | None) -> None:
    big = Sample(window=5, slots=((0, 1),), score_scale=BIG, sink=sink).operands()
    assert error(ampere, big, gpu) <= 2e-3
    assert error(ampere, strongly_negative(big), gpu) <= 2e-3


def test_plain_scores_of_any_size(ampere: EmulatedLibrary) -> None:
    big = Sample(dtype=FP32, window=5, height=7, score_scale=BIG).operands()
    # Scores of 1e4 have a spacing of 1e-3 in fp32; so has the relative error of the weights.
    assert error(ampere, big, A100) <= 2e-3
    assert error(ampere, strongly_negative(big), A100) <= 2e-3


@pytest.mark.parametrize("gpu", [SMALL_AMPERE, A100], ids=["whole", "split"])
@pytest.mark.parametrize("dtype", [torch.float16, FP32])
@pytest.mark.parametrize("sink", [None, 0.5])
def test_an_item_is_bit_identical_in_any_company(
    ampere: EmulatedLibrary, gpu: GpuTraits, dtype: torch.dtype, sink: float | None
) -> None:
    alone = Sample(dtype=dtype, height=3, slots=((0,),), sink=sink, num_slots=1)
    page = alone.operands()
    company = Sample(dtype=dtype, height=3, slots=((0, 2), (-1, 1)), sink=sink).operands()
    for mine, theirs in ((page.keys, company.keys), (page.values, company.values)):
        theirs[1] = mine[0]
    company.query[1] = page.query[0]
    assert torch.equal(run(ampere, company, gpu)[1], run(ampere, page, gpu)[0])


@pytest.mark.parametrize("gpu", [SMALL_AMPERE, A100], ids=["whole", "split"])
def test_the_order_of_warps_and_lanes_does_not_matter(
    ampere: EmulatedLibrary, gpu: GpuTraits
) -> None:
    operands = Sample(height=5, slots=((0, 2),)).operands()
    results = [run(ampere, operands, gpu, seed=seed) for seed in (1, 2, 3)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_pages_may_lie_apart(ampere: EmulatedLibrary) -> None:
    operands = Sample(height=5, slots=((2, 0),)).operands()
    apart = interleaved(operands)
    assert apart.keys.stride(0) > operands.keys.stride(0)
    assert torch.equal(run(ampere, apart, SMALL_AMPERE), run(ampere, operands, SMALL_AMPERE))


def test_a_misaligned_pool_is_read_all_the_same(ampere: EmulatedLibrary) -> None:
    sample = Sample(dtype=FP32, pool_dtype=torch.float16, height=3)
    operands = sample.operands()
    moved = shifted(operands.keys)
    assert moved.data_ptr() % 16
    result = run(ampere, type(operands)(**{**vars(operands), "keys": moved}), A100)
    assert torch.equal(result, run(ampere, operands, A100))


def shifted(tensor: Tensor) -> Tensor:
    """The same numbers, one element further on in memory."""
    buffer = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)
    return buffer[1:].view(tensor.shape).copy_(tensor)


@pytest.mark.parametrize("name", ["erfnet", "pspnet"])
def test_matrices_are_loaded_without_bank_conflicts(ampere: EmulatedLibrary, name: str) -> None:
    loads, conflicts = ampere.matrix_loads, ampere.bank_conflicts
    run(ampere, SAMPLES[name].operands(), SMALL_AMPERE)
    assert ampere.matrix_loads > loads
    assert ampere.bank_conflicts == conflicts


def test_python_repeats_the_kernels_figures(toolchain: Toolchain) -> None:
    variants = [v for v in PREBUILT if isinstance(v, TensorCoreVariant)]
    variants += [TensorCoreVariant(variants[0].element, p, 32, 16) for p in (1, 5, 29)]
    tiles = [f"Tile<{v.window}, {v.key_channels}, {v.value_channels}>" for v in variants]
    figures = ["kThreads", "kSharedBytes", "kQueriesY", "kQueriesX"]
    table = ", ".join(f"{tile}::{figure}" for tile in tiles for figure in figures)
    offsets = ", ".join(f"offsetof(Problem, {name})" for name, *_ in Problem._fields_)
    source = f"""
#include <cstddef>
#include "tensor_core.cuh"
extern "C" const int figures[] = {{{table}}};
extern "C" const int offsets[] = {{{offsets}, sizeof(Problem)}};
"""
    for architecture in (75, 80):
        path = toolchain.source_library(
            f"figures_{architecture}", source, architecture=architecture
        )
        library = ctypes.CDLL(str(path))
        want = [
            figure
            for v in variants
            for figure in (v.threads, v.shared_bytes(architecture), *v.queries)
        ]
        assert list((ctypes.c_int * len(want)).in_dll(library, "figures")) == want
        want = [getattr(Problem, name).offset for name, *_ in Problem._fields_]
        want.append(ctypes.sizeof(Problem))
        assert list((ctypes.c_int * len(want)).in_dll(library, "offsets")) == want


def test_plain_shared_memory_is_enough_and_no_more(toolchain: Toolchain) -> None:
    sample = Sample(dtype=FP32, height=2, width=9, window=5)
    variant = PlainVariant(Element.FLOAT, Element.FLOAT)
    assert variant.shared_bytes(sample.window, sample.key_channels) == 4 * (13 * 8 + 8 * 17)
    source = translation_unit([variant])
    library = EmulatedLibrary(toolchain.source_library("plain", source))
    assert error(library, sample.operands(), A100) <= 1e-5
