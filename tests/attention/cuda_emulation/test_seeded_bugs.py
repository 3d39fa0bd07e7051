"""(D) Every planted bug must be caught: by a broken rule, or by a wrong result."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from segstream.attention.cuda.operands import Operands
from segstream.attention.cuda.plan import GpuTraits
from segstream.attention.cuda.source import translation_unit
from tests.attention.cuda_emulation.emulated_device import EmulatedLibrary, EmulationError
from tests.attention.cuda_emulation.gpus import A100, SMALL_AMPERE, T4, error, variants_of
from tests.attention.cuda_emulation.ptx_translator import translate
from tests.attention.cuda_emulation.samples import Sample, interleaved, strongly_negative
from tests.attention.cuda_emulation.seeded_bugs import KERNEL_BUGS, WRAPPER_BUGS, Bug
from tests.attention.cuda_emulation.toolchain import Toolchain

# Small, and yet with every edge: several tiles and value blocks, absent pages, big scores, a sink.
WINDOW = 9
FAST = Sample(window=WINDOW, height=5, width=17, slots=((2, -1, 0), (-1, 1, -1)), sink=0.5)
BLOCKS = Sample(window=WINDOW, height=3, width=5, value_channels=128)
BIG = Sample(window=WINDOW, height=4, width=5, score_scale=2500.0)
# Large enough for windows that lie within the map, where no zero from outside softens the blow.
NEGATIVE = Sample(window=WINDOW, height=9, width=9, score_scale=2500.0)
PLAIN = Sample(dtype=torch.float32, window=WINDOW, height=3, width=10, slots=((1, 2),))
KERNEL_SAMPLES = [FAST, BLOCKS, PLAIN]
TOLERANCE = 2e-3

Check = tuple[Operands, GpuTraits]
BLOCKS_OPERANDS, FAST_OPERANDS = BLOCKS.operands(), FAST.operands()
# Calls that a right kernel passes, the cheapest first.
KERNEL_CHECKS: list[Check] = [
    (BLOCKS_OPERANDS, SMALL_AMPERE),
    (interleaved(BLOCKS_OPERANDS), SMALL_AMPERE),
    (PLAIN.operands(), SMALL_AMPERE),
    (BIG.operands(), SMALL_AMPERE),
    (strongly_negative(NEGATIVE.operands()), SMALL_AMPERE),
    (FAST_OPERANDS, A100),
    (FAST_OPERANDS, SMALL_AMPERE),
]
ONE_PAGE = FAST.with_changes(slots=((1,),), sink=None)
ONE_PAGE_OPERANDS = ONE_PAGE.operands()
WRAPPER_GPUS = {75: T4, 80: A100}


def find_fault(library: EmulatedLibrary, checks: list[Check]) -> str | None:
    """What gives the library away, or None."""
    for operands, gpu in checks:
        try:
            off_by = error(library, operands, gpu)
        except EmulationError as fault:
            return str(fault)
        if off_by > TOLERANCE:
            return f"off by {off_by:.3g}"
    return None


@pytest.fixture(scope="module")
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor() as pool:
        yield pool


@pytest.fixture(scope="module")
def kernel_libraries(
    toolchain: Toolchain, workers: ThreadPoolExecutor, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Future[Path]]:
    """All faulty builds of the source, started at once."""
    source = translation_unit(variants_of(KERNEL_SAMPLES, [A100, SMALL_AMPERE]))
    toolchain.emulator_object()

    def build(number: int, bug: Bug) -> Path:
        kernels = bug.plant(tmp_path_factory.mktemp("bug") / "kernels")
        return toolchain.source_library(f"kernel_bug_{number}", source, kernels=kernels)

    return {
        name: workers.submit(build, i, bug) for i, (name, bug) in enumerate(KERNEL_BUGS.items())
    }


@pytest.fixture(scope="module")
def wrapper_libraries(
    toolchain: Toolchain,
    nvcc: None,
    workers: ThreadPoolExecutor,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Future[Path]]:
    """All faulty builds through nvcc, started at once."""
    toolchain.emulator_object()

    def build(number: int, bug: Bug) -> Path:
        kernels = bug.plant(tmp_path_factory.mktemp("bug") / "kernels")
        name = f"wrapper_bug_{number}"
        source = translation_unit(variants_of([ONE_PAGE], [WRAPPER_GPUS[bug.architecture]]))
        ptx = toolchain.ptx(name, source, architecture=bug.architecture, kernels=kernels)
        return toolchain.translated_library(name, translate(ptx))

    return {
        name: workers.submit(build, i, bug) for i, (name, bug) in enumerate(WRAPPER_BUGS.items())
    }


def test_the_sound_kernels_pass(toolchain: Toolchain) -> None:
    source = translation_unit(variants_of(KERNEL_SAMPLES, [A100, SMALL_AMPERE]))
    library = EmulatedLibrary(toolchain.source_library("sound", source))
    assert find_fault(library, KERNEL_CHECKS) is None


@pytest.mark.parametrize("name", KERNEL_BUGS)
def test_a_bug_in_a_kernel_is_caught(kernel_libraries: dict[str, Future[Path]], name: str) -> None:
    library = EmulatedLibrary(kernel_libraries[name].result())
    fault = find_fault(library, KERNEL_CHECKS)
    print(fault)
    assert fault is not None


@pytest.mark.parametrize("name", WRAPPER_BUGS)
def test_a_bug_in_a_wrapper_is_caught(
    wrapper_libraries: dict[str, Future[Path]], name: str
) -> None:
    library = EmulatedLibrary(wrapper_libraries[name].result())
    gpu = WRAPPER_GPUS[WRAPPER_BUGS[name].architecture]
    fault = find_fault(library, [(ONE_PAGE_OPERANDS, gpu)])
    print(fault)
    assert fault is not None
