"""How long installing from a source distribution takes, beyond the dependencies.

    python benchmarks/install.py

Compiles the kernels: for the CPU where there is a C++ compiler, for CUDA where there is nvcc.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP_OPTIONS = ("--no-build-isolation", "--no-deps", "--no-index", "--quiet")


def build_source_distribution(folder: Path) -> Path:
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        archive = build_source_distribution(Path(folder))
        target = Path(folder, "installed")
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install"]
        started = time.perf_counter()
        subprocess.run([*pip, *PIP_OPTIONS, "--target", target, archive], check=True)
        seconds = time.perf_counter() - started
        size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    print(f"installed {archive.name} in {seconds:.0f} s, {size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
