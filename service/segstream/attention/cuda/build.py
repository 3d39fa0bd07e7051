"""Builds the fatbin that spares a GPU machine the compilation at first use.

``python service/segstream/attention/cuda/build.py [DIRECTORY]``; needs nvcc, but no GPU, no torch
and nothing else of this package, so that setup.py can load it alone. The file's name carries a
digest of the source: a build of other source is never loaded.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

KERNEL_DIRECTORY = Path(__file__).parent / "kernels"
SOURCE = KERNEL_DIRECTORY / "prebuilt.cu"
ARCHITECTURES = (75, 80, 89, 90)
# The driver compiles it for what the binaries above do not cover: 8.7 (Orin), 10.0, 12.0, ...
PTX_ARCHITECTURE = 80
COMPILER_OPTIONS = ("-std=c++17", "-O3", f"-I{KERNEL_DIRECTORY}")

_USUAL_PLACES = ("/usr/local/cuda/bin/nvcc", "/opt/cuda/bin/nvcc")


class BuildError(RuntimeError):
    """nvcc is there but could not build the kernels; the message holds what it said."""


def find_nvcc() -> str | None:
    """nvcc on the path or where the CUDA toolkit puts it."""
    found = map(shutil.which, ("nvcc", *_USUAL_PLACES))
    return next((place for place in found if place), None)


def fatbin_path(directory: Path) -> Path:
    """Where the build of the present source belongs."""
    sources = sorted(KERNEL_DIRECTORY.glob("*.cu*"))
    text = b"\0".join(part for path in sources for part in (path.name.encode(), path.read_bytes()))
    return directory / f"kernels-{hashlib.sha256(text).hexdigest()[:16]}.fatbin"


def build_fatbin(directory: Path | None = None, *, nvcc: str | None = None) -> Path | None:
    """Compile the prebuilt kernels into ``directory`` (default: this folder).

    Returns the file, or None where there is no nvcc. Older builds in the directory are removed.
    Raises BuildError when nvcc fails.
    """
    directory = directory or Path(__file__).parent
    nvcc = nvcc or find_nvcc()
    if nvcc is None:
        return None
    target = fatbin_path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        built = Path(scratch) / target.name
        _run([nvcc, *COMPILER_OPTIONS, *_targets(), "-fatbin", "-o", str(built), str(SOURCE)])
        for stale in directory.glob("kernels-*.fatbin"):
            stale.unlink()
        shutil.copyfile(built, target)
    return target


def _targets() -> list[str]:
    binaries = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in ARCHITECTURES]
    ptx = f"-gencode=arch=compute_{PTX_ARCHITECTURE},code=compute_{PTX_ARCHITECTURE}"
    return ["--threads=0", *binaries, ptx]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{command[0]} failed with {done.returncode}: {done.stderr.strip()}")


def main(arguments: list[str]) -> int:
    """Build into the given directory, or into the package."""
    built = build_fatbin(Path(arguments[0]) if arguments else None)
    if built is None:
        print("no nvcc found: the kernels will be compiled at first use", file=sys.stderr)
        return 1
    print(f"{built} ({built.stat().st_size} bytes)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
