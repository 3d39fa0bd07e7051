import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from segstream.cli import app
from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig, load, save
from segstream.models.espnet import espnet
from tests.support.models import write_street_checkpoint

SHIPPED = "lmanet-erfnet-camvid"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "run"


def train(root: Path, out: Path, *arguments: str | Path) -> Result:
    small = ("--epochs", "1", "--batch-size", "3", "--crop", "40x48", "--memory-length", "2")
    given = ("train", "--root", root, "--out", out, *small, *arguments)
    return CliRunner().invoke(app, [str(argument) for argument in given])


def test_a_run_tells_where_its_checkpoint_is(camvid: Path, out: Path) -> None:
    result = train(camvid, out)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith(f"{out / 'model.safetensors'}: epoch 1  loss ")
    assert "val mIoU" in result.stderr
    config = load(out / "model.safetensors").config
    assert (config.memory_length, config.window_size) == (2, 7)


def test_json_is_all_there_is_on_stdout(camvid: Path, out: Path) -> None:
    figures = json.loads(train(camvid, out, "--json").stdout)
    assert set(figures) == {"checkpoint", "epoch", "loss", "learning_rate", "miou"}
    assert (figures["checkpoint"], figures["epoch"]) == (str(out / "model.safetensors"), 1)
    assert json.loads(train(camvid, out, "--json").stdout) == figures


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--window-size", "4"), "window_size must be odd and in 1..101, got 4"),
        (("--memory-length", "65"), "memory_length must be in 1..64, got 65"),
        (("--crop", "41x48"), "crop is '41x48', must be HEIGHTxWIDTH, multiples of 8"),
        (("--crop", "40"), "crop is '40', must be HEIGHTxWIDTH, multiples of 8"),
        (("--scales", "1"), "scales is '1', must be LEAST:MOST, like 0.8:1.25"),
        (("--scales", "1.2:0.8"), "scales is (1.2, 0.8), must be LEAST:MOST above 0"),
        (("--stage", "memory"), "the memory stage needs --init with a trained"),
        (("--init", "nowhere.pth"), "no checkpoint 'nowhere.pth'"),
        (("--teacher", "nowhere.pth"), "no checkpoint 'nowhere.pth'"),
        (
            ("--teacher", SHIPPED, "--stage", "memory", "--init", SHIPPED),
            "teacher is for the single stage",
        ),
        (("--root", "nowhere"), "CamVid split 'train': no folder nowhere/train"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    camvid: Path, out: Path, arguments: tuple[str, ...], told: str
) -> None:
    result = train(camvid, out, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: {told}")
    assert result.stderr.count("\n") == 1
    assert not out.exists()


def test_a_network_of_other_classes_is_refused(camvid: Path, out: Path, tmp_path: Path) -> None:
    result = train(camvid, out, "--init", write_street_checkpoint(tmp_path))
    assert result.stderr.startswith("Error: the checkpoint knows the classes of cityscapes")


def test_a_teacher_of_other_classes_is_refused(camvid: Path, out: Path, tmp_path: Path) -> None:
    result = train(camvid, out, "--teacher", write_street_checkpoint(tmp_path))
    assert result.stderr.startswith("Error: the checkpoint knows the classes of cityscapes")


def test_a_run_learns_from_a_teacher(camvid: Path, out: Path) -> None:
    assert train(camvid, out, "--teacher", SHIPPED).exit_code == 0
    config = json.loads((out / "config.json").read_text())
    assert config["teacher_weights"].startswith("sha256:")


def test_a_network_of_class_scores_is_given_gates(camvid: Path, out: Path, tmp_path: Path) -> None:
    single = tmp_path / "espnet.safetensors"
    config = LMANetConfig(CAMVID, 12, has_memory=False)
    save(LMANet(config, espnet(12)), single)
    result = train(camvid, out, "--stage", "memory", "--init", single)
    assert result.exit_code == 0, result.output
    trained = load(out / "model.safetensors").config
    assert (trained.fusion, trained.memory_length) == ("gated-scores", 2)
    assert trained.has_memory


def test_a_run_goes_on_with_its_own_network_only(camvid: Path, out: Path) -> None:
    train(camvid, out)
    result = train(camvid, out, "--window-size", "3")
    assert result.exit_code == 1
    assert "another configuration, model or initial weights" in result.stderr


def test_help_is_plain_text() -> None:
    text = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["train", "--help"]).output
    assert "single: train encoder and decoder" in text
    assert "`" not in text
