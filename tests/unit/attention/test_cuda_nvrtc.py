"""NVRTC compiles without a GPU, so where the library is installed these tests run for real."""

import pytest

from segstream.attention.cuda import nvrtc as module
from segstream.attention.cuda.errors import KernelUnavailableError
from segstream.attention.cuda.nvrtc import Nvrtc, load_nvrtc
from segstream.attention.cuda.source import headers, translation_unit
from segstream.attention.cuda.variants import PREBUILT, Element, TensorCoreVariant, Variant
from segstream.cuda_driver import CudaError

RARE = TensorCoreVariant(Element.HALF, 29, 48, 16)


@pytest.fixture
def nvrtc() -> Nvrtc:
    try:
        return load_nvrtc()
    except KernelUnavailableError as error:
        pytest.skip(f"{error} (comes with CUDA builds of torch, or pip's nvidia-cuda-nvrtc)")


@pytest.mark.parametrize("architecture", [75, 80, 90])
@pytest.mark.parametrize("variant", [*PREBUILT, RARE], ids=lambda v: v.name)
def test_kernels_compile_without_a_toolkit(
    nvrtc: Nvrtc, variant: Variant, architecture: int
) -> None:
    if architecture < variant.oldest_architecture:
        pytest.skip("not offered on this architecture")
    image = nvrtc.compile(translation_unit([variant]), headers(), architecture)
    assert image.startswith(b"\x7fELF")
    assert variant.name.encode() in image


def test_what_is_compiled_for_a_device(nvrtc: Nvrtc) -> None:
    newest = nvrtc.architectures()[-1]
    assert nvrtc.target(80) == "sm_80"
    assert nvrtc.target(999) == f"compute_{newest}"
    major, _, minor = nvrtc.version.partition(".")
    assert int(major) >= 12
    assert int(minor) >= 0


def test_a_device_newer_than_the_compiler_gets_ptx(nvrtc: Nvrtc) -> None:
    image = nvrtc.compile(translation_unit([PREBUILT[0]]), headers(), 999)
    assert b".target sm_" in image


def test_a_device_too_old_is_refused(nvrtc: Nvrtc) -> None:
    with pytest.raises(KernelUnavailableError, match="compute capability 20"):
        nvrtc.compile(translation_unit([PREBUILT[0]]), headers(), 20)


def test_the_compilers_words_are_passed_on(nvrtc: Nvrtc) -> None:
    with pytest.raises(CudaError, match="no_such_header"):
        nvrtc.compile('#include "no_such_header.cuh"', headers(), 80)


def test_without_the_library_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIBRARY_NAMES", ("libnosuchnvrtc.so",))
    monkeypatch.setattr(module, "_packaged_libraries", list)
    load_nvrtc.cache_clear()
    try:
        with pytest.raises(KernelUnavailableError, match="not installed"):
            load_nvrtc()
    finally:
        load_nvrtc.cache_clear()
