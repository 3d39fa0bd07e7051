"""(A) again, over shapes, tables and borders that nobody thought of."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segstream.attention.cuda.plan import GpuTraits
from tests.attention.cuda_emulation.conftest import Build
from tests.attention.cuda_emulation.emulated_device import EmulatedLibrary
from tests.attention.cuda_emulation.gpus import A100, SMALL_AMPERE, error
from tests.attention.cuda_emulation.samples import Sample

NUM_SLOTS = 3
WINDOWS = (1, 3, 7)
FAST_DTYPES = (torch.float16, torch.bfloat16)
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}


def tables() -> st.SearchStrategy[tuple[tuple[int, ...], ...]]:
    slot = st.integers(-1, NUM_SLOTS - 1)
    rows = st.integers(1, 3).flatmap(
        lambda length: st.lists(st.tuples(*[slot] * length), min_size=1, max_size=2)
    )
    return rows.map(tuple)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    dtype = draw(st.sampled_from((*FAST_DTYPES, torch.float32)))
    is_fast = dtype in FAST_DTYPES
    return Sample(
        dtype=dtype,
        height=draw(st.integers(1, 10)),
        width=draw(st.integers(1, 20)),
        window=draw(st.sampled_from(WINDOWS)),
        key_channels=16 if is_fast else draw(st.integers(1, 9)),
        value_channels=64 if is_fast else draw(st.sampled_from((1, 3, 64, 128))),
        slots=draw(tables()),
        num_slots=NUM_SLOTS,
        sink=draw(st.none() | st.floats(-5, 5)),
        seed=draw(st.integers(0, 2**16)),
    )


@pytest.fixture(scope="module")
def kernels(build_source: Build) -> EmulatedLibrary:
    every = [
        Sample(dtype=dtype, window=window, slots=((0, 1),))
        for dtype in (*FAST_DTYPES, torch.float32)
        for window in WINDOWS
    ]
    return build_source("properties", every, [A100, SMALL_AMPERE])


@given(sample=samples(), gpu=st.sampled_from((A100, SMALL_AMPERE)))
@settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_agrees_with_float64(kernels: EmulatedLibrary, sample: Sample, gpu: GpuTraits) -> None:
    assert error(kernels, sample.operands(), gpu) <= TOLERANCE[sample.dtype]
