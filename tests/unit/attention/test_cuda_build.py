import subprocess
import sys
from pathlib import Path

import pytest

from segstream.attention.cuda import build
from segstream.attention.cuda.build import BuildError, build_fatbin, fatbin_path


def script(path: Path, body: str) -> str:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


WRITES_OUTPUT = 'while [ "$1" != -o ]; do shift; done; echo built > "$2"'


def test_the_build_names_its_source_and_replaces_older_ones(tmp_path: Path) -> None:
    nvcc = script(tmp_path / "nvcc", WRITES_OUTPUT)
    stale = tmp_path / "out" / "kernels-0123456789abcdef.fatbin"
    stale.parent.mkdir()
    stale.touch()
    built = build_fatbin(tmp_path / "out", nvcc=nvcc)
    assert built == fatbin_path(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [built.name]
    assert built.read_text() == "built\n"


def test_every_architecture_is_asked_for(tmp_path: Path) -> None:
    nvcc = script(tmp_path / "nvcc", f'echo "$@" > {tmp_path}/arguments; {WRITES_OUTPUT}')
    build_fatbin(tmp_path, nvcc=nvcc)
    arguments = (tmp_path / "arguments").read_text()
    for sm in (75, 80, 89, 90):
        assert f"code=sm_{sm}" in arguments
    assert "code=compute_80" in arguments


def test_without_nvcc_nothing_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    assert build_fatbin(tmp_path) is None
    assert build.main([str(tmp_path)]) == 1
    assert "at first use" in capsys.readouterr().err


def test_what_nvcc_says_is_passed_on(tmp_path: Path) -> None:
    nvcc = script(tmp_path / "nvcc", "echo no such architecture >&2; exit 3")
    with pytest.raises(BuildError, match="failed with 3: no such architecture"):
        build_fatbin(tmp_path / "out", nvcc=nvcc)
    assert not list((tmp_path / "out").glob("*.fatbin"))


def test_the_script_needs_neither_torch_nor_the_package(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = sys.modules['segstream'] = None;"
        f"runpy.run_path({build.__file__!r}, run_name='build')['fatbin_path']"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, cwd=tmp_path)
