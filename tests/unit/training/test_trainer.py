import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from segstream.errors import InvalidInputError
from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig, load
from segstream.training.camvid import load_camvid
from segstream.training.config import Stage, TrainingConfig
from segstream.training.evaluation import evaluate_single_frame, evaluate_stream
from segstream.training.trainer import EpochReport, Trainer

SINGLE = TrainingConfig(epochs=2, batch_size=3, crop=(40, 48), evaluate_every=1)
MEMORY = replace(SINGLE, stage=Stage.MEMORY, matching_epochs=1)


def new_model(*, seed: int = 0, memory_length: int = 2, window_size: int = 3) -> LMANet:
    torch.manual_seed(seed)
    return LMANet(LMANetConfig(CAMVID, 12, memory_length, window_size))


def trainer(
    camvid: Path, out: Path, config: TrainingConfig, model: LMANet | None = None
) -> Trainer:
    samples = load_camvid(camvid, "train"), load_camvid(camvid, "val")
    return Trainer(model or new_model(), *samples, config, out)


def fit(camvid: Path, out: Path, config: TrainingConfig) -> list[EpochReport]:
    return list(trainer(camvid, out, config).fit(lambda epoch, step, loss: None))


def changed(before: LMANet, after: LMANet) -> set[str]:
    """The parts of a network whose parameters differ."""
    theirs = dict(before.named_parameters())
    return {
        name.partition(".")[0]
        for name, parameter in after.named_parameters()
        if not torch.equal(parameter, theirs[name])
    }


def test_a_run_leaves_a_checkpoint_and_a_log(camvid: Path, tmp_path: Path) -> None:
    reports = fit(camvid, tmp_path / "run", SINGLE)
    assert [report.epoch for report in reports] == [1, 2]
    assert load(tmp_path / "run" / "model.safetensors").config == new_model().config
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert log[0] == "epoch,loss,val_miou_percent"
    assert len(log) == 3


def test_the_same_run_gives_the_same_weights(camvid: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        fit(camvid, tmp_path / name, SINGLE)
    first, second = (load(tmp_path / n / "model.safetensors") for n in ("first", "second"))
    assert not changed(first, second)


def test_an_interrupted_run_ends_where_an_undisturbed_one_does(
    camvid: Path, tmp_path: Path
) -> None:
    fit(camvid, tmp_path / "whole", SINGLE)
    next(trainer(camvid, tmp_path / "parts", SINGLE).fit(lambda *_: None))
    reports = fit(camvid, tmp_path / "parts", SINGLE)
    assert [report.epoch for report in reports] == [2]
    whole, parts = (load(tmp_path / n / "model.safetensors") for n in ("whole", "parts"))
    assert not changed(whole, parts)


def test_a_run_under_another_configuration_is_refused(camvid: Path, tmp_path: Path) -> None:
    trainer(camvid, tmp_path / "run", SINGLE)
    with pytest.raises(InvalidInputError, match="another configuration"):
        trainer(camvid, tmp_path / "run", replace(SINGLE, learning_rate=1e-4))


@pytest.mark.parametrize("change", [{"memory_length": 3}, {"window_size": 5}, {"seed": 1}])
def test_a_run_of_another_network_is_refused(
    camvid: Path, tmp_path: Path, change: dict[str, int]
) -> None:
    trainer(camvid, tmp_path / "run", SINGLE)
    before = (tmp_path / "run" / "config.json").read_text()
    with pytest.raises(InvalidInputError, match="another configuration, model or initial weights"):
        trainer(camvid, tmp_path / "run", SINGLE, new_model(**change))
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_a_run_states_what_it_began_with(camvid: Path, tmp_path: Path) -> None:
    trainer(camvid, tmp_path / "run", SINGLE)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["stage"], config["crop"]) == ("single", [40, 48])
    assert config["model"] == {
        "label_set": CAMVID.name,
        "num_channels": 12,
        "memory_length": 2,
        "window_size": 3,
        "has_sink": False,
        "fusion": "sigmoid-do1",
        "key_channels": 16,
        "has_memory": True,
    }
    assert config["initial_weights"].startswith("sha256:")


def test_a_finished_run_still_has_its_report(camvid: Path, tmp_path: Path) -> None:
    reports = fit(camvid, tmp_path / "run", SINGLE)
    again = trainer(camvid, tmp_path / "run", SINGLE)
    assert list(again.fit(lambda *_: None)) == []
    assert again.report == reports[-1]


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (SINGLE, {"encoder", "decoder"}),
        (MEMORY, {"memory_head", "query_head", "fusion"}),
        (replace(MEMORY, train_decoder=True), {"memory_head", "query_head", "fusion", "decoder"}),
    ],
)
def test_a_stage_trains_its_own_parts_only(
    camvid: Path, tmp_path: Path, config: TrainingConfig, parts: set[str]
) -> None:
    run = trainer(camvid, tmp_path / "run", config)
    list(run.fit(lambda *_: None))
    assert changed(new_model(), run.model) == parts


def test_the_network_learns_the_street(camvid: Path, tmp_path: Path) -> None:
    config = replace(SINGLE, epochs=25, learning_rate=5e-3, evaluate_every=25)
    run = trainer(camvid, tmp_path / "run", config)
    reports = list(run.fit(lambda *_: None))
    assert reports[-1].loss < reports[0].loss / 2


def test_the_first_frame_of_a_stream_is_a_single_frame(camvid: Path) -> None:
    model, samples = new_model().eval(), load_camvid(camvid, "val")[:1]
    single, stream = evaluate_single_frame(model, samples), evaluate_stream(model, samples)
    assert (single.counts == stream.counts).all()
