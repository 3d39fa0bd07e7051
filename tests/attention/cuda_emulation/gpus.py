"""GPUs to play, and what they would run."""

import torch
from torch import Tensor

from segstream.attention.cuda.launch import attend
from segstream.attention.cuda.operands import Operands
from segstream.attention.cuda.plan import GpuTraits, make_plan
from segstream.attention.cuda.variants import Variant
from tests.attention.cuda_emulation.emulated_device import EmulatedDevice, EmulatedLibrary
from tests.attention.cuda_emulation.samples import Sample, reference

# With many multiprocessors the small samples here are split over the slot table, with one not.
A100 = GpuTraits(architecture=80, multiprocessors=108, max_shared_bytes=163 * 1024)
SMALL_AMPERE = GpuTraits(architecture=80, multiprocessors=1, max_shared_bytes=163 * 1024)
T4 = GpuTraits(architecture=75, multiprocessors=40, max_shared_bytes=64 * 1024)


def variants_of(samples: list[Sample], gpus: list[GpuTraits]) -> list[Variant]:
    plans = [make_plan(sample.operands(), gpu) for sample in samples for gpu in gpus]
    return list(dict.fromkeys(kernel.variant for plan in plans for kernel in plan.launches))


def run(library: EmulatedLibrary, operands: Operands, gpu: GpuTraits, *, seed: int = 1) -> Tensor:
    return attend(operands, EmulatedDevice(library, gpu, seed=seed))


def error(library: EmulatedLibrary, operands: Operands, gpu: GpuTraits) -> float:
    """The largest absolute error against float64; infinity where the result is not finite."""
    result = run(library, operands, gpu)
    if not torch.isfinite(result).all():
        return float("inf")
    return (result.double() - reference(operands)).abs().max().item()
