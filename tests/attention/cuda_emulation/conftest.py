from collections.abc import Callable

import pytest

from segstream.attention.cuda.plan import GpuTraits
from segstream.attention.cuda.source import translation_unit
from tests.attention.cuda_emulation.emulated_device import EmulatedLibrary
from tests.attention.cuda_emulation.gpus import variants_of
from tests.attention.cuda_emulation.ptx_translator import translate
from tests.attention.cuda_emulation.samples import Sample
from tests.attention.cuda_emulation.toolchain import Toolchain, device_compiler, host_compiler

Build = Callable[[str, list[Sample], list[GpuTraits]], EmulatedLibrary]


@pytest.fixture(scope="session")
def toolchain(tmp_path_factory: pytest.TempPathFactory) -> Toolchain:
    if host_compiler() is None:
        pytest.skip("the emulator needs a C++ compiler (g++)")
    return Toolchain(tmp_path_factory.mktemp("emulation"))


@pytest.fixture(scope="session")
def nvcc() -> None:
    if device_compiler() is None:
        pytest.skip("running real PTX needs nvcc (CUDA toolkit); no GPU is needed")


@pytest.fixture(scope="session")
def build_source(toolchain: Toolchain) -> Build:
    """Builds the kernels that these samples need, from source."""

    def build(name: str, samples: list[Sample], gpus: list[GpuTraits]) -> EmulatedLibrary:
        source = translation_unit(variants_of(samples, gpus))
        architecture = gpus[0].architecture
        return EmulatedLibrary(toolchain.source_library(name, source, architecture=architecture))

    return build


@pytest.fixture(scope="session")
def build_ptx(toolchain: Toolchain, nvcc: None) -> Build:
    """Builds the kernels that these samples need, from nvcc's PTX."""

    def build(name: str, samples: list[Sample], gpus: list[GpuTraits]) -> EmulatedLibrary:
        source = translation_unit(variants_of(samples, gpus))
        ptx = toolchain.ptx(name, source, architecture=gpus[0].architecture)
        return EmulatedLibrary(toolchain.translated_library(name, translate(ptx)))

    return build
