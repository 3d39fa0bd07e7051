from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from segstream.attention.cuda import library as module
from segstream.attention.cuda.errors import KernelUnavailableError
from segstream.attention.cuda.library import KernelLibrary
from segstream.attention.cuda.source import digest
from segstream.attention.cuda.variants import PREBUILT, Element, TensorCoreVariant
from segstream.cuda_driver import CudaError

COMMON = PREBUILT[0]
RARE = TensorCoreVariant(Element.HALF, 5, 16, 64)


class FakeDriver:
    """Images are the names of the kernels they hold; loading ``bad`` fails."""

    def __init__(self) -> None:
        self.images: list[bytes] = []

    def load_module(self, image: bytes) -> int:
        if image == b"bad":
            raise CudaError("cuModuleLoadData failed: CUDA_ERROR_NO_BINARY_FOR_GPU")
        self.images.append(image)
        return len(self.images) - 1

    def get_function(self, handle: int, name: str) -> int | None:
        names = self.images[handle].decode().split()
        return 100 * handle + names.index(name) if name in names else None

    @contextmanager
    def current(self, context: int) -> Iterator[None]:
        yield


class FakeNvrtc:
    version = "13.0"

    def __init__(self) -> None:
        self.compiled: list[str] = []

    def target(self, architecture: int) -> str:
        return "sm_86" if architecture == 86 else "compute_90"

    def compile(self, source: str, headers: dict[str, str], architecture: int) -> bytes:
        assert "machine.cuh" in headers
        (name,) = [v.name for v in (COMMON, RARE) if f"({v.name}," in source]
        self.compiled.append(f"{name} sm{architecture}")
        return name.encode()


@pytest.fixture
def nvrtc(monkeypatch: pytest.MonkeyPatch) -> FakeNvrtc:
    nvrtc = FakeNvrtc()
    monkeypatch.setattr(module, "load_nvrtc", lambda: nvrtc)
    return nvrtc


@pytest.fixture
def no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KernelUnavailableError("NVRTC (libnvrtc) is not installed")

    monkeypatch.setattr(module, "load_nvrtc", fail)


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a user whom the system does not know."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)


def make(tmp_path: Path, prebuilt: bytes | None, *, architecture: int = 86) -> KernelLibrary:
    path = tmp_path / "kernels.fatbin"
    if prebuilt is not None:
        path.write_bytes(prebuilt)
    driver = FakeDriver()
    cache = tmp_path / "cache"
    return KernelLibrary(driver, architecture, prebuilt=path, cache=cache)  # type: ignore[arg-type]


@pytest.mark.usefixtures("no_nvrtc")
def test_prebuilt_kernels_need_no_compiler(tmp_path: Path) -> None:
    library = make(tmp_path, f"other {COMMON.name}".encode())
    assert library.function(COMMON) == 1
    assert library.function(COMMON) == 1


def test_without_a_build_kernels_are_compiled_for_the_device(
    tmp_path: Path, nvrtc: FakeNvrtc
) -> None:
    make(tmp_path, None).function(COMMON)
    assert nvrtc.compiled == [f"{COMMON.name} sm86"]


@pytest.mark.parametrize("prebuilt", [b"bad", b"other"], ids=["unloadable", "incomplete"])
def test_a_build_that_does_not_serve_is_passed_over(
    tmp_path: Path, nvrtc: FakeNvrtc, prebuilt: bytes
) -> None:
    make(tmp_path, prebuilt).function(COMMON)
    assert nvrtc.compiled == [f"{COMMON.name} sm86"]


def test_rare_shapes_are_compiled_once_and_kept(tmp_path: Path, nvrtc: FakeNvrtc) -> None:
    library = make(tmp_path, COMMON.name.encode())
    library.function(RARE)
    library.function(RARE)
    make(tmp_path, None).function(RARE)
    assert nvrtc.compiled == [f"{RARE.name} sm86"]
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.name == f"{RARE.name}-{digest([RARE])}-nvrtc13.0-sm_86.cubin"


def test_another_compiler_or_device_compiles_anew(tmp_path: Path, nvrtc: FakeNvrtc) -> None:
    make(tmp_path, None).function(RARE)
    nvrtc.version = "13.1"
    make(tmp_path, None).function(RARE)
    make(tmp_path, None, architecture=99).function(RARE)
    assert len(nvrtc.compiled) == 3
    assert sum(path.suffix == ".ptx" for path in (tmp_path / "cache").iterdir()) == 1


@pytest.mark.parametrize("content", [b"bad", b"", b"other"], ids=["unloadable", "empty", "foreign"])
def test_a_damaged_kernel_in_the_cache_is_compiled_anew(
    tmp_path: Path, nvrtc: FakeNvrtc, content: bytes
) -> None:
    make(tmp_path, None).function(RARE)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.write_bytes(content)
    make(tmp_path, None).function(RARE)
    assert kept.read_bytes() == RARE.name.encode()
    assert len(nvrtc.compiled) == 2


def test_an_unreadable_kernel_in_the_cache_is_compiled_anew(
    tmp_path: Path, nvrtc: FakeNvrtc
) -> None:
    make(tmp_path, None).function(RARE)
    (kept,) = (tmp_path / "cache").iterdir()
    kept.unlink()
    kept.mkdir()
    make(tmp_path, None).function(RARE)
    assert len(nvrtc.compiled) == 2
    assert list((tmp_path / "cache").iterdir()) == [kept]


def test_what_cannot_be_loaded_is_not_kept(
    tmp_path: Path, nvrtc: FakeNvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvrtc, "compile", lambda *_: b"bad")
    with pytest.raises(KernelUnavailableError, match="NO_BINARY_FOR_GPU"):
        make(tmp_path, None).function(RARE)
    assert not (tmp_path / "cache").exists()


def test_a_missing_kernel_is_looked_for_once(
    tmp_path: Path, nvrtc: FakeNvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = make(tmp_path, None)
    monkeypatch.setattr(nvrtc, "compile", lambda *_: b"other")
    with pytest.raises(KernelUnavailableError, match="not in its own compilation"):
        library.function(RARE)
    monkeypatch.undo()
    with pytest.raises(KernelUnavailableError, match="not in its own compilation"):
        library.function(RARE)


def test_the_cache_is_where_the_user_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert module.default_cache() == tmp_path / "home" / ".cache" / "segstream" / "cuda"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert module.default_cache() == tmp_path / "elsewhere" / "segstream" / "cuda"


@pytest.mark.usefixtures("homeless")
def test_a_user_without_a_home_has_no_cache(nvrtc: FakeNvrtc) -> None:
    assert module.default_cache() is None
    library = KernelLibrary(FakeDriver(), 86)  # type: ignore[arg-type]
    library.function(RARE)
    assert nvrtc.compiled == [f"{RARE.name} sm86"]


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, nvrtc: FakeNvrtc) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    make(tmp_path, None).function(RARE)
    assert len(nvrtc.compiled) == 1


def test_a_failed_write_leaves_nothing(
    tmp_path: Path, nvrtc: FakeNvrtc, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    make(tmp_path, None).function(RARE)
    assert not list((tmp_path / "cache").iterdir())


@pytest.mark.usefixtures("no_nvrtc")
@pytest.mark.parametrize(
    ("prebuilt", "reason"),
    [(None, "no prebuilt kernels"), (b"bad", "NO_BINARY_FOR_GPU")],
)
def test_all_reasons_are_told(tmp_path: Path, prebuilt: bytes | None, reason: str) -> None:
    with pytest.raises(KernelUnavailableError, match=reason) as caught:
        make(tmp_path, prebuilt).function(COMMON)
    assert "NVRTC (libnvrtc) is not installed" in str(caught.value)
