"""Installing from a source distribution into a clean environment, with and without a compiler."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from segstream.attention.cuda.build import find_nvcc

ROOT = Path(__file__).parents[3]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "service")
PACKAGE = ROOT / "service" / "segstream"
COMMON = PACKAGE / "csrc"
KERNELS = [PACKAGE / "attention" / "csrc", PACKAGE / "models" / "native" / "csrc"]
AARCH64_COMPILER = "aarch64-linux-gnu-g++"

USE = """
import torch
from segstream.attention import cpu, local_memory_attention
ones = torch.ones(1, 4, 4, 1)
slots = torch.zeros(1, 1, dtype=torch.int32)
for _ in range(2):
    readout = local_memory_attention(ones, 0 * ones, ones, slots, 3)
assert abs(readout[0, 0, 0, 0].item() - 4 / 9) < 1e-6
print(cpu.__file__, cpu.best_isa() is not None)
from segstream.models.native import library
assert (cpu.best_isa() is None) == (library.library() is None)
"""


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("sdist")
    ignored = shutil.ignore_patterns(
        *("*.so", "*.fatbin", "__pycache__", "*.egg-info", "*.safetensors")
    )
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, tree)
    built = tree / "service" / "segstream" / "attention"
    for earlier in (built / "earlier.so", built / "cuda" / "kernels-earlier.fatbin"):
        earlier.touch()
    build = f"from setuptools import build_meta; build_meta.build_sdist({str(out)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tree, check=True, capture_output=True)
    (archive,) = out.glob("*.tar.gz")
    return archive


def clean_environment(folder: Path) -> Path:
    """An environment with nothing of its own that sees this one's packages; returns its Python.

    A line in a .pth file adds this one's packages but not its .pth files, and so not an editable
    segstream.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin" / "python"
    (site,) = (folder / "lib").glob("python*/site-packages")
    (site / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


def install(archive: Path, python: Path, environment: dict[str, str]) -> None:
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--ignore-installed", "--quiet"]
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", *options]
    done = subprocess.run(
        [*command, str(archive)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def nvcc_works(environment: dict[str, str], scratch: Path) -> bool:
    """Whether it is there and has what it needs: it calls a C++ compiler of the path."""
    nvcc = shutil.which("nvcc", path=environment["PATH"]) or find_nvcc()
    if nvcc is None:
        return False
    source = scratch / "nothing.cu"
    source.write_text("__global__ void nothing() {}\n")
    command = [nvcc, "-cubin", "-o", str(scratch / "nothing.cubin"), str(source)]
    return not subprocess.run(command, env=environment, capture_output=True, check=False).returncode


def test_builds_stay_out_of_the_source_distribution(source_distribution: Path) -> None:
    with tarfile.open(source_distribution) as archive:
        names = archive.getnames()
    assert any(name.endswith("csrc/kernel.cpp") for name in names)
    assert any(name.endswith("models/native/csrc/kernel.cpp") for name in names)
    assert any(name.endswith("segstream/csrc/simd.h") for name in names)
    assert any(name.endswith("cuda/kernels/machine.cuh") for name in names)
    assert not [name for name in names if name.endswith((".so", ".fatbin"))]


@pytest.mark.parametrize("has_compiler", [True, False])
def test_installs_from_source(
    source_distribution: Path, tmp_path: Path, has_compiler: bool
) -> None:
    if has_compiler and not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    environment = dict(os.environ)
    if not has_compiler:
        environment |= {"PATH": str(tmp_path), "CXX": ""}
    python = clean_environment(tmp_path / "venv")
    install(source_distribution, python, environment)

    done = subprocess.run([python, "-I", "-c", USE], capture_output=True, text=True, check=True)
    file, has_kernel = done.stdout.split()
    assert Path(file).is_relative_to(tmp_path)
    assert has_kernel == str(has_compiler)
    for kernel in ("attention", "network"):
        assert done.stderr.count(f"no CPU {kernel} kernel") == (0 if has_compiler else 1)
    package = Path(file).parent
    assert (package / "cuda" / "kernels" / "machine.cuh").exists()
    assert not (package / "csrc").exists()
    fatbins = list((package / "cuda").glob("*.fatbin"))
    assert len(fatbins) == nvcc_works(environment, tmp_path)


@pytest.mark.parametrize("folder", KERNELS, ids=lambda folder: folder.parent.name)
@pytest.mark.parametrize("source", ["kernel.cpp", "dispatch.cpp"])
def test_compiles_for_aarch64(folder: Path, source: str, tmp_path: Path) -> None:
    compiler = shutil.which(AARCH64_COMPILER)
    if compiler is None:
        pytest.skip(f"no {AARCH64_COMPILER} (Debian: g++-aarch64-linux-gnu)")
    options = ["-std=c++17", "-O1", "-pthread", "-Wall", "-Wextra", "-Werror"]
    defines = ["-DSEGSTREAM_ISA=baseline", "-DSEGSTREAM_HAS_BASELINE"]
    command = [compiler, *options, *defines, f"-I{COMMON}", "-c", str(folder / source)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out.o")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
