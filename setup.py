"""Builds the CPU kernels along with the package: the attention, and the network's convolutions.

Each is a plain shared library that Python loads with ctypes: it needs a C++17 compiler, no torch
headers and no Python headers. The same source is compiled once per instruction set, and the
library chooses among them when it is loaded. Without a compiler the package installs all the same
and says in its log what it computes with instead.
"""

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

ROOT = Path("service", "segstream")
COMMON = ROOT / "csrc"


@dataclass(frozen=True)
class Library:
    """A folder ``csrc`` with ``kernel.cpp``, for each instruction set, and ``dispatch.cpp``."""

    name: str
    package: Path
    flags: tuple[str, ...]

    @property
    def sources(self) -> Path:
        """Where its sources lie."""
        return ROOT / self.package / "csrc"

    @property
    def extension(self) -> Extension:
        """What setuptools knows of it."""
        headers = [*self.sources.glob("*.h"), *COMMON.glob("*.h")]
        return Extension(
            ".".join(("segstream", *self.package.parts, self.name)),
            sources=[str(self.sources / name) for name in ("kernel.cpp", "dispatch.cpp")],
            depends=[str(path) for path in sorted(headers)],
            optional=True,
        )


LIBRARIES = (
    Library("libsegstream_attention", Path("attention"), ("-ffp-contract=fast",)),
    # Its sums are the same to the bit on every instruction set that fuses, because the source
    # alone says which multiply-adds are fused.
    Library("libsegstream_network", Path("models", "native"), ("-ffp-contract=off",)),
)
# Never -ffast-math: it undoes the rounding by which the kernels' exponential works.
FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-pthread", "-fvisibility=hidden", "-DNDEBUG", f"-I{COMMON}"),
    *("-fno-math-errno", "-fno-trapping-math"),
]
X86_LEVELS = {"x86_v3": "-march=x86-64-v3", "x86_v4": "-march=x86-64-v4"}


class BuildKernels(build_ext):
    """Compiles the kernels with whatever C++ compiler is on the path (or in ``CXX``)."""

    def get_ext_filename(self, fullname: str) -> str:
        return str(Path(*fullname.split(".")).with_suffix(".so"))

    def run(self) -> None:
        super().run()
        attention = Path(self.get_ext_fullpath(self.extensions[0].name))
        _build_cuda_kernels(attention.parent / "cuda", self.warn)

    def build_extension(self, ext: Extension) -> None:
        library = LIBRARIES[self.extensions.index(ext)]
        compiler = _find_compiler()
        levels = {"baseline": []}
        if sysconfig.get_platform().endswith("x86_64"):
            levels |= {
                level: [flag] for level, flag in X86_LEVELS.items() if _accepts(compiler, flag)
            }
        objects = Path(self.build_temp, library.name)
        objects.mkdir(parents=True, exist_ok=True)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)

        compile_ = [*compiler, *FLAGS, *library.flags, "-c"]
        kernel, dispatch = ext.sources
        has_levels = [f"-DSEGSTREAM_HAS_{level.upper()}" for level in levels]
        commands = {
            objects / "dispatch.o": [*compile_, *has_levels, dispatch],
            **{
                objects / f"{level}.o": [*compile_, *march, f"-DSEGSTREAM_ISA={level}", kernel]
                for level, march in levels.items()
            },
        }
        _run_all([[*command, "-o", str(to)] for to, command in commands.items()])
        # The baseline comes before the other levels: of an inline function that several of them
        # contain the linker keeps the first, and that one must run on every processor.
        _run_all([[*compiler, "-shared", "-pthread", *map(str, commands), "-o", str(target)]])


class BuildPackage(build_py):
    """Records in a wheel which commit it was built from."""

    def run(self) -> None:
        super().run()
        # A source tree that is used in place moves on.
        if not self.editable_mode and (revision := _revision()):
            Path(self.build_lib, "segstream", "revision.txt").write_text(f"{revision}\n")


def _revision() -> str:
    """As SEGSTREAM_REVISION says, for builds without git, else the commit checked out."""
    if told := os.environ.get("SEGSTREAM_REVISION"):
        return told
    if shutil.which("git") is None or not Path(".git").exists():
        return ""
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and every Python: the kernels are no modules of Python's."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", super().get_tag()[2])


def _build_cuda_kernels(directory: Path, warn: Callable[[str], None]) -> None:
    """Prebuild the CUDA kernels where nvcc is; elsewhere they are compiled at first use."""
    spec = spec_from_file_location("cuda_build", ROOT / "attention" / "cuda" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = module_from_spec(spec)
    spec.loader.exec_module(build)
    try:
        build.build_fatbin(directory)
    except build.BuildError as error:
        warn(str(error))


def _find_compiler() -> list[str]:
    named = shlex.split(os.environ.get("CXX", ""))
    for candidate in (named, ["c++"], ["g++"], ["clang++"]):
        if candidate and shutil.which(candidate[0]):
            return candidate
    raise CompileError("no C++ compiler: segstream will compute without its CPU kernels")


def _accepts(compiler: list[str], flag: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "empty.cpp")
        source.write_text("int nothing;\n")
        command = [*compiler, "-shared", "-fPIC", flag, str(source), "-o", str(source) + ".so"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _run_all(commands: list[list[str]]) -> None:
    """Run the commands side by side; raise CompileError when one fails."""
    processes = [subprocess.Popen(command) for command in commands]
    failed = [p.args for p in processes if p.wait()]
    if failed:
        raise CompileError(f"failed: {shlex.join(failed[0])}")


setup(
    ext_modules=[library.extension for library in LIBRARIES],
    cmdclass={
        "bdist_wheel": PlatformWheel,
        "build_ext": BuildKernels,
        "build_py": BuildPackage,
    },
)
