"""Where kernels come from: the prebuilt fatbin, the cache of earlier compilations, NVRTC."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path
from threading import Lock

import platformdirs

from segstream.attention.cuda.build import fatbin_path
from segstream.attention.cuda.errors import KernelUnavailableError
from segstream.attention.cuda.nvrtc import Nvrtc, load_nvrtc
from segstream.attention.cuda.source import digest, headers, translation_unit
from segstream.attention.cuda.variants import PREBUILT, Variant
from segstream.cuda_driver import CudaError, Driver

_PACKAGE = Path(__file__).parent


def default_cache() -> Path | None:
    """Where compiled kernels are kept between runs; None for a user without a home."""
    try:
        path = platformdirs.user_cache_path("segstream")
    except RuntimeError:
        return None
    return path / "cuda" if path.is_absolute() else None  # older versions leave a ~ in it


class KernelLibrary:
    """The kernels of one device, loaded when first asked for. Calls need its current context."""

    def __init__(
        self,
        driver: Driver,
        architecture: int,
        *,
        prebuilt: Path | None = None,
        cache: Path | None = None,
    ) -> None:
        self._driver = driver
        self._architecture = architecture
        self._prebuilt = prebuilt or fatbin_path(_PACKAGE)
        self._cache = cache
        self._functions: dict[Variant, int] = {}
        self._missing: dict[Variant, str] = {}
        self._prebuilt_module: int | None = None
        self._prebuilt_reason = ""
        self._lock = Lock()

    def function(self, variant: Variant) -> int:
        """The variant's kernel.

        Raises KernelUnavailableError, with all reasons, where it cannot be had; that is remembered,
        as looking again at every call would take longer than the call.
        """
        with self._lock:
            if variant in self._missing:
                raise KernelUnavailableError(self._missing[variant])
            if variant not in self._functions:
                try:
                    self._functions[variant] = self._find(variant)
                except KernelUnavailableError as error:
                    self._missing[variant] = error.message
                    raise
            return self._functions[variant]

    def _find(self, variant: Variant) -> int:
        function = self._from_prebuilt(variant)
        if function is not None:
            return function
        try:
            return self._from_compiler(variant, load_nvrtc())
        except CudaError as error:
            reasons = f"{self._prebuilt_reason}; {error}"
            raise KernelUnavailableError(f"{variant.name}: {reasons}") from error

    def _from_prebuilt(self, variant: Variant) -> int | None:
        if variant not in PREBUILT:
            self._prebuilt_reason = "not one of the prebuilt kernels"
            return None
        if not self._prebuilt.exists():
            self._prebuilt_reason = "no prebuilt kernels"
            return None
        try:
            if self._prebuilt_module is None:
                self._prebuilt_module = self._driver.load_module(self._prebuilt.read_bytes())
            return self._driver.get_function(self._prebuilt_module, variant.name)
        except CudaError as error:  # built for other devices, or too new for this driver
            self._prebuilt_reason = str(error)
            return None

    def _from_compiler(self, variant: Variant, nvrtc: Nvrtc) -> int:
        cached = self._cached_path(variant, nvrtc)
        image = _read(cached)
        if image is not None:
            try:
                return self._load(image, variant)
            except CudaError:  # damaged: what is compiled below takes its place
                _remove(cached)
        image = nvrtc.compile(translation_unit([variant]), headers(), self._architecture)
        function = self._load(image, variant)
        _write_atomically(cached, image)
        return function

    def _load(self, image: bytes, variant: Variant) -> int:
        function = self._driver.get_function(self._driver.load_module(image), variant.name)
        if function is None:
            raise CudaError("it is not in its own compilation")
        return function

    def _cached_path(self, variant: Variant, nvrtc: Nvrtc) -> Path | None:
        cache = self._cache or default_cache()
        if cache is None:
            return None
        target = nvrtc.target(self._architecture)
        suffix = "cubin" if target.startswith("sm_") else "ptx"
        return cache / f"{variant.name}-{digest([variant])}-nvrtc{nvrtc.version}-{target}.{suffix}"


# A cache that cannot be read or written only costs time.


def _read(path: Path | None) -> bytes | None:
    with suppress(OSError):
        return path.read_bytes() if path else None
    return None


def _remove(path: Path | None) -> None:
    with suppress(OSError):
        if path:
            path.unlink()


def _write_atomically(path: Path | None, content: bytes) -> None:
    """Leaves a whole file or none."""
    if path is None:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except OSError:
            _remove(Path(name))
