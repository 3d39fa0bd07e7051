from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from segstream.cli import app
from segstream.label_sets import CAMVID, CITYSCAPES
from segstream.models import LMANet, LMANetConfig, load
from segstream.models.checkpoint import save
from tests.support.command import told


def calibrate(checkpoint: Path, root: Path, output: Path) -> Result:
    given = ("calibrate", checkpoint, "--root", root, "-o", output)
    return CliRunner().invoke(app, [str(argument) for argument in given])


def test_a_calibrated_checkpoint_is_written(camvid: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "calibrated.safetensors"
    result = calibrate(checkpoint, camvid, output)
    assert result.exit_code == 0, result.output
    assert "7/7" in result.stderr
    before, after = load(checkpoint), load(output)
    assert after.config == before.config
    weights = after.state_dict()
    changed = {
        name for name, tensor in before.state_dict().items() if not tensor.equal(weights[name])
    }
    assert changed == {"decoder.output_conv.bias"}
    name = "output_conv.bias"
    biases = after.decoder.get_parameter(name) - before.decoder.get_parameter(name)
    for label, bias in zip(CAMVID.labels, biases, strict=False):
        line = next(line for line in result.stdout.splitlines() if f" {label.name} " in line)
        assert f"{bias:+.3f}" in line.replace("-0.000", "+0.000")
    assert " - " in next(line for line in result.stdout.splitlines() if " building " in line)


@pytest.mark.parametrize("name", ["calibrated.pth", "missing/calibrated.safetensors"])
def test_a_file_that_cannot_be_written_is_one_line(
    camvid: Path, checkpoint: Path, tmp_path: Path, name: str
) -> None:
    assert name in told(calibrate(checkpoint, camvid, tmp_path / name))


def test_other_classes_are_one_line(camvid: Path, tmp_path: Path) -> None:
    checkpoint = tmp_path / "streets.safetensors"
    save(LMANet(LMANetConfig(CITYSCAPES, 20)), checkpoint)
    result = calibrate(checkpoint, camvid, tmp_path / "calibrated.safetensors")
    assert "cityscapes" in told(result)
    assert not (tmp_path / "calibrated.safetensors").exists()
