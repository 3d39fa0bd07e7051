"""Compiles kernels at run time with NVRTC, the compiler library that CUDA builds of torch bring."""

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from segstream.attention.cuda.errors import KernelUnavailableError
from segstream.cuda_driver import CudaError

_LIBRARY_NAMES = ("libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so")
_SUCCESS = 0


class Nvrtc:
    """NVRTC calls with their return codes turned into exceptions."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        library.nvrtcGetErrorString.restype = ctypes.c_char_p

    @property
    def version(self) -> str:
        """Of the compiler, as ``13.0``."""
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def architectures(self) -> list[int]:
        """Compute capabilities (10 * major + minor) that can be compiled for, ascending."""
        count = ctypes.c_int()
        self._call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        found = (ctypes.c_int * count.value)()
        self._call("nvrtcGetSupportedArchs", found)
        return sorted(found)

    def target(self, architecture: int) -> str:
        """What is compiled for a device: ``sm_90`` is machine code, ``compute_90`` is PTX.

        Raises KernelUnavailableError for a device older than all that the compiler knows.
        """
        supported = [sm for sm in self.architectures() if sm <= architecture]
        if not supported:
            raise KernelUnavailableError(f"NVRTC does not know compute capability {architecture}")
        kind = "sm" if supported[-1] == architecture else "compute"
        return f"{kind}_{supported[-1]}"

    def compile(self, source: str, headers: dict[str, str], architecture: int) -> bytes:
        """A module image for a device: its machine code, or PTX where the device is too new.

        Raises CudaError with the compiler's log.
        """
        target = self.target(architecture)
        program = ctypes.c_void_p()
        names = (ctypes.c_char_p * len(headers))(*(name.encode() for name in headers))
        texts = (ctypes.c_char_p * len(headers))(*(text.encode() for text in headers.values()))
        self._call(
            "nvrtcCreateProgram",
            ctypes.byref(program),
            source.encode(),
            b"kernels.cu",
            ctypes.c_int(len(headers)),
            texts,
            names,
        )
        try:
            self._compile(program, [f"--gpu-architecture={target}", "--std=c++17"])
            return self._text(program, "CUBIN" if target.startswith("sm_") else "PTX")
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _compile(self, program: ctypes.c_void_p, options: list[str]) -> None:
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        code = self._library.nvrtcCompileProgram(program, len(options), encoded)
        if code != _SUCCESS:
            log = self._text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
            raise CudaError(f"NVRTC could not compile the kernel: {log}")

    def _text(self, program: ctypes.c_void_p, kind: str) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{kind}", program, text)
        return text.raw

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != _SUCCESS:
            reason = self._library.nvrtcGetErrorString(code)
            raise CudaError(f"{name} failed: {reason.decode()}")


@cache
def load_nvrtc() -> Nvrtc:
    """NVRTC from torch's CUDA packages or the system. Raises KernelUnavailableError without."""
    for candidate in (*_LIBRARY_NAMES, *_packaged_libraries()):
        try:
            return Nvrtc(ctypes.CDLL(candidate))
        except OSError:
            continue
    raise KernelUnavailableError("NVRTC (libnvrtc) is not installed")


def _packaged_libraries() -> list[str]:
    spec = find_spec("nvidia")
    roots = spec.submodule_search_locations if spec else None
    return [
        str(path)
        for root in roots or ()
        for path in sorted(Path(root).glob("*/lib/libnvrtc.so*"), reverse=True)
        if "alt" not in path.name
    ]
