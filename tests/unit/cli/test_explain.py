import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from segstream.cli import app
from segstream.models import save
from tests.support.networks import ENTRY, make_patches_lmanet
from tests.unit.cli.conftest import HEIGHT, NUM_FRAMES, WIDTH


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "patches.safetensors"
    save(make_patches_lmanet(), path)
    return path


def explain(clip: Path, *arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(a) for a in ("explain", clip, *arguments)])


def test_picture_and_figures_of_a_pixel(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "look.png"
    options = ("--model", checkpoint, "--network", ENTRY, "-o", output, "--json")
    result = explain(clip, "--frame", "5", "--point", "0,20", *options)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert set(figures["frames"]) == {"3", "4"}
    assert figures["outside"] > 0, "the pixel is at the border"
    assert sum(figures["frames"].values()) + figures["outside"] == pytest.approx(1, abs=1e-4)
    assert sum(figures["classes"].values()) == pytest.approx(sum(figures["frames"].values()))
    picture = cv2.imread(str(output))
    assert picture is not None
    assert picture.shape[0] > 400
    assert np.ptp(picture) > 100


def test_table_names_the_frames(clip: Path, checkpoint: Path, tmp_path: Path) -> None:
    options = ("--model", checkpoint, "--network", ENTRY, "-o", tmp_path / "look.png")
    result = explain(clip, "--frame", "1", "--point", "30,20", *options)
    assert result.exit_code == 0, result.output
    assert "frame 0" in result.stdout
    assert "without memory" in result.stdout


@pytest.mark.parametrize(
    ("frame", "point", "told"),
    [
        ("5", f"{WIDTH},0", f"point is {WIDTH},0, must be in 0..{WIDTH - 1},0..{HEIGHT - 1}"),
        ("5", "here", "point is 'here', must be X,Y"),
        (str(NUM_FRAMES), "1,1", f"frame is {NUM_FRAMES}, but clip.mp4 ends before it"),
    ],
)
def test_what_is_not_there_is_named(
    clip: Path, checkpoint: Path, tmp_path: Path, frame: str, point: str, told: str
) -> None:
    output = tmp_path / "look.png"
    options = ("--model", checkpoint, "--network", ENTRY, "-o", output)
    result = explain(clip, "--frame", frame, "--point", point, *options)
    assert result.exit_code == 1
    assert told in result.stderr
    assert not output.exists()
