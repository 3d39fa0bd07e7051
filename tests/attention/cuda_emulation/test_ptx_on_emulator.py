"""(B) What nvcc makes of the kernels, inline assembly included, run on the emulator."""

import pytest
import torch

from segstream.attention.cuda.plan import GpuTraits
from tests.attention.cuda_emulation.conftest import Build
from tests.attention.cuda_emulation.emulated_device import EmulatedLibrary
from tests.attention.cuda_emulation.gpus import A100, SMALL_AMPERE, T4, error
from tests.attention.cuda_emulation.ptx_translator import UnknownInstructionError, translate
from tests.attention.cuda_emulation.samples import Sample, strongly_negative

TABLE = ((2, 0), (-1, 1))
SAMPLES = {
    "erfnet": Sample(slots=TABLE, height=6, width=5, sink=0.5),
    "bf16": Sample(dtype=torch.bfloat16, window=5, slots=TABLE),
    "pspnet": Sample(
        key_channels=128, value_channels=128, score_scale=0.09, window=5, height=5, width=9
    ),
    "fp32": Sample(dtype=torch.float32, window=5, slots=TABLE, height=5, sink=0.5),
}
TURING_SAMPLES = {name: SAMPLES[name] for name in ("erfnet", "pspnet")}
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def ampere(build_ptx: Build) -> EmulatedLibrary:
    return build_ptx("ptx_sm80", list(SAMPLES.values()), [A100, SMALL_AMPERE])


@pytest.fixture(scope="module")
def turing(build_ptx: Build) -> EmulatedLibrary:
    return build_ptx("ptx_sm75", list(TURING_SAMPLES.values()), [T4])


@pytest.mark.parametrize("gpu", [SMALL_AMPERE, A100], ids=["whole", "split"])
@pytest.mark.parametrize("name", SAMPLES)
def test_agrees_with_float64(ampere: EmulatedLibrary, name: str, gpu: GpuTraits) -> None:
    sample = SAMPLES[name]
    assert error(ampere, sample.operands(), gpu) <= TOLERANCE[sample.dtype]


@pytest.mark.parametrize("name", TURING_SAMPLES)
def test_agrees_with_float64_on_turing(turing: EmulatedLibrary, name: str) -> None:
    sample = TURING_SAMPLES[name]
    assert error(turing, sample.operands(), T4) <= TOLERANCE[sample.dtype]


def test_scores_of_any_size(ampere: EmulatedLibrary) -> None:
    big = Sample(dtype=torch.bfloat16, window=5, score_scale=2500.0).operands()
    assert error(ampere, big, A100) <= TOLERANCE[torch.bfloat16]
    assert error(ampere, strongly_negative(big), A100) <= TOLERANCE[torch.bfloat16]


def test_an_unknown_instruction_is_refused() -> None:
    body = "\tmatch.any.sync.b32 %r1, %r2, -1;\n"
    with pytest.raises(UnknownInstructionError, match=r"match\.any"):
        translate(".visible .entry k(\n\t.param .u64 k_param_0\n)\n{\n" + body + "}\n")
