import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from segstream.cli import app
from tests.support.command import told
from tests.support.models import write_street_checkpoint


def evaluate(root: Path, checkpoint: Path, *arguments: str | Path) -> Result:
    given = ("evaluate", "--root", root, "--checkpoint", checkpoint, *arguments)
    return CliRunner().invoke(app, [str(argument) for argument in given])


def test_without_json_there_is_a_table(camvid: Path, checkpoint: Path) -> None:
    result = evaluate(camvid, checkpoint)
    assert result.exit_code == 0, result.output
    for text in ("single_frame", "memory", "mIoU", "sky"):
        assert text in result.stdout
    assert "Evaluating" in result.stderr
    assert "6/6" in result.stderr


def test_json_goes_to_a_file_beside_the_table(
    camvid: Path, checkpoint: Path, tmp_path: Path
) -> None:
    result = evaluate(camvid, checkpoint, "--json", tmp_path / "result.json")
    assert "mIoU" in result.stdout
    figures = json.loads((tmp_path / "result.json").read_text())
    assert (figures["dataset"], figures["split"], figures["frames"]) == ("camvid", "val", 6)
    assert set(figures["models"]) == {"single_frame", "logit_ema", "control", "memory"}
    assert figures["degraded"] == {}
    for model in figures["models"].values():
        assert set(model) == {"miou", "iou", "tc", "mvc8", "mvc16", "frames_per_second"}
        assert 0 <= model["miou"] <= 100
        assert 0 <= model["tc"] <= 100
        assert model["mvc8"] is None, "six frames have no window of eight"


def test_comparisons_may_be_left_out(camvid: Path, checkpoint: Path) -> None:
    result = evaluate(camvid, checkpoint, "--json", "-", "--no-baseline")
    assert set(json.loads(result.stdout)["models"]) == {"single_frame", "memory"}


def test_spoilt_frames_are_rows_of_their_own(
    camvid: Path, checkpoint: Path, tmp_path: Path
) -> None:
    for number in (2, 3, 4, 5):
        (camvid / "val" / f"{number:04d}.png").unlink()
    path = tmp_path / "result.json"
    result = evaluate(camvid, checkpoint, "--robustness", "--json", path)
    assert result.exit_code == 0, result.output
    degraded = json.loads(path.read_text())["degraded"]
    assert len(degraded) == 21
    for row in ("noise10", "motion_blur", "alternate_corrupt", "alternate_blank"):
        assert set(degraded[row]) == {"single_frame", "logit_ema", "control", "memory"}
        assert degraded[row]["memory"]["tc"] is not None
        assert row in result.stdout


def test_one_row_may_be_asked_for(camvid: Path, checkpoint: Path) -> None:
    result = evaluate(camvid, checkpoint, "--row", "alternate_dropped", "--json", "-")
    assert list(json.loads(result.stdout)["degraded"]) == ["alternate_dropped"]
    assert "row is 'fog'" in told(evaluate(camvid, checkpoint, "--row", "fog"))


def test_plots_are_written(camvid: Path, checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plots = tmp_path / "plots"
    result = evaluate(camvid, checkpoint, "--plots", plots)
    assert result.exit_code == 0, result.output
    pictures = {path.name: np.asarray(cv2.imread(str(path))) for path in plots.iterdir()}
    assert set(pictures) == {"classes.png", "frames.png", "worst.png", "best.png"}
    assert all(min(picture.shape[:2]) > 200 for picture in pictures.values())
    assert not np.array_equal(pictures["worst.png"], pictures["best.png"])


def test_the_same_command_gives_the_same_figures(camvid: Path, checkpoint: Path) -> None:
    first, second = (
        json.loads(evaluate(camvid, checkpoint, "--json", "-").stdout)["models"] for _ in range(2)
    )
    for way in first:
        for figures in (first, second):
            figures[way].pop("frames_per_second")
    assert first == second


def test_json_is_all_there_is_on_stdout(camvid: Path, checkpoint: Path) -> None:
    result = evaluate(camvid, checkpoint, "--json", "-")
    assert json.loads(result.stdout)["frames"] == 6
    assert "Evaluating" in result.stderr


def test_an_unknown_class_is_one_line(camvid: Path, checkpoint: Path) -> None:
    label = camvid / "valannot" / "0002.png"
    cv2.imwrite(str(label), np.full((72, 96), 99, np.uint8))
    assert told(evaluate(camvid, checkpoint)) == f"{label}: label 99 is none of 0..11"


def test_a_missing_split_is_one_line(camvid: Path, checkpoint: Path) -> None:
    assert "split 'test'" in told(evaluate(camvid, checkpoint, "--split", "test"))


def test_a_network_of_other_classes_is_refused(camvid: Path, tmp_path: Path) -> None:
    checkpoint = write_street_checkpoint(tmp_path)
    assert "classes of cityscapes, not of camvid" in told(evaluate(camvid, checkpoint))


def test_a_folder_for_plots_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere" / "plots"
    assert "no writable folder" in told(
        evaluate(tmp_path, tmp_path / "none.pth", "--plots", nowhere)
    )


def test_a_result_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    nowhere = tmp_path / "nowhere" / "result.json"
    result = evaluate(tmp_path, tmp_path / "none.pth", "--json", nowhere)
    assert "no writable folder" in told(result)
