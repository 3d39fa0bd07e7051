from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from segstream.cli import app
from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig, load
from segstream.models.checkpoint import save


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    save(LMANet(LMANetConfig(CAMVID, 12, memory_length=2, window_size=3)), path)
    return path


def calibrate(checkpoint: Path, root: Path, output: Path) -> Result:
    given = ("calibrate", checkpoint, "--root", root, "-o", output)
    return CliRunner().invoke(app, [str(argument) for argument in given])


def test_a_calibrated_checkpoint_is_written(camvid: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "calibrated.safetensors"
    result = calibrate(checkpoint, camvid, output)
    assert result.exit_code == 0, result.output
    for text in ("sky", "bias", "mean"):
        assert text in result.stdout
    assert "6/6" in result.stderr
    assert load(output).config == load(checkpoint).config


@pytest.mark.parametrize("name", ["calibrated.pth", "missing/calibrated.safetensors"])
def test_a_file_that_cannot_be_written_is_one_line(
    camvid: Path, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    result = calibrate(checkpoint, camvid, tmp_path / name)
    assert (result.exit_code, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert name in line
