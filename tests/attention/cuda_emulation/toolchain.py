"""Builds what the emulation suite runs: kernel source, or translated PTX, as host libraries."""

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from segstream.attention.cuda.build import COMPILER_OPTIONS, KERNEL_DIRECTORY, find_nvcc

EMULATOR = Path(__file__).parent / "emulator"
HOST_OPTIONS = ("-std=c++17", "-fPIC", "-Wall", "-Wextra", "-Wno-unknown-pragmas")


def host_compiler() -> str | None:
    return shutil.which("g++") or shutil.which("c++")


def device_compiler() -> str | None:
    return find_nvcc()


class Toolchain:
    """Compilers with a scratch directory. A failing build raises with the compiler's words."""

    def __init__(self, scratch: Path, *, emulator_source: Path | None = None) -> None:
        self.scratch = scratch
        self._emulator_source = emulator_source or EMULATOR / "emulator.cpp"
        self._machine_options = ["-march=x86-64-v3"] if _has_x86_64_v3() else []

    def emulator_object(self) -> Path:
        """The emulator itself, built once."""
        target = self.scratch / "emulator.o"
        if not target.exists():
            self._host("-O3", "-c", str(self._emulator_source), "-o", str(target))
        return target

    def source_library(
        self, name: str, source: str, *, architecture: int = 80, kernels: Path = KERNEL_DIRECTORY
    ) -> Path:
        """CUDA source, compiled for the host against the emulated machine."""
        target = self.scratch / f"{name}.so"
        text = self.scratch / f"{name}.cu.cpp"
        text.write_text(source)
        self._host(
            "-O1",
            "-shared",
            "-DSEGSTREAM_EMULATOR",
            f"-DSEGSTREAM_EMULATED_ARCH={architecture}0",
            f"-I{kernels}",
            str(text),
            str(self.emulator_object()),
            "-o",
            str(target),
        )
        return target

    def translated_library(self, name: str, translated: str) -> Path:
        """C++ made from PTX, compiled for the host."""
        target = self.scratch / f"{name}.so"
        text = self.scratch / f"{name}.ptx.cpp"
        text.write_text(translated)
        # Unoptimised: most of the time goes into compiling, not into running.
        self._host("-O0", "-shared", str(text), str(self.emulator_object()), "-o", str(target))
        return target

    def ptx(
        self, name: str, source: str, *, architecture: int, kernels: Path = KERNEL_DIRECTORY
    ) -> str:
        """What nvcc makes of CUDA source, before the assembler."""
        target = self.scratch / f"{name}.ptx"
        self._nvcc(
            name, source, kernels, f"-arch=compute_{architecture}", "-ptx", "-o", str(target)
        )
        return target.read_text()

    def resource_usage(self, name: str, source: str, *, architecture: int) -> str:
        """The assembler's report on registers, spills and shared memory."""
        target = self.scratch / f"{name}.cubin"
        options = (f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v", "-o", str(target))
        return self._nvcc(name, source, KERNEL_DIRECTORY, *options)

    def _nvcc(self, name: str, source: str, kernels: Path, *options: str) -> str:
        nvcc = device_compiler()
        assert nvcc, "needs nvcc"
        text = self.scratch / f"{name}.cu"
        text.write_text(source)
        # The caller's kernels come first, so that they hide the package's.
        return _run([nvcc, f"-I{kernels}", *COMPILER_OPTIONS, *options, str(text)])

    def _host(self, *options: str) -> str:
        compiler = host_compiler()
        assert compiler, "needs a C++ compiler"
        return _run([compiler, *HOST_OPTIONS, *self._machine_options, f"-I{EMULATOR}", *options])


def _has_x86_64_v3() -> bool:
    flags = Path("/proc/cpuinfo")
    return flags.exists() and {"avx2", "f16c", "fma"} <= set(flags.read_text().split())


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return done.stderr
