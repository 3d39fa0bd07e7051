import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig, load
from segstream.training.camvid import load_camvid
from segstream.training.config import (
    Clips,
    Precision,
    Schedule,
    Stage,
    TrainingConfig,
    as_published,
)
from segstream.training.run_folder import EpochReport
from segstream.training.trainer import Trainer, of_fold

SINGLE = TrainingConfig(epochs=2, batch_size=3, crop=(40, 48), evaluate_every=1)
MEMORY = replace(SINGLE, stage=Stage.MEMORY)


def new_model(
    *,
    seed: int = 0,
    memory_length: int = 2,
    window_size: int = 3,
    fusion: str = "residual-do1",
) -> LMANet:
    torch.manual_seed(seed)
    return LMANet(LMANetConfig(CAMVID, 12, memory_length, window_size, fusion=fusion))


def trainer(
    camvid: Path,
    out: Path,
    config: TrainingConfig,
    model: LMANet | None = None,
    teacher: LMANet | None = None,
) -> Trainer:
    samples = load_camvid(camvid, "train"), load_camvid(camvid, "val")
    return Trainer(model or new_model(), *samples, config, out, teacher=teacher)


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
    left = load(tmp_path / "run" / "model.safetensors").config
    assert left == replace(new_model().config, has_memory=False), "its memory is not trained"
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert log[0] == "epoch,loss,learning_rate,val_miou_percent"
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
        trainer(camvid, tmp_path / "run", SINGLE, new_model(**change))  # type: ignore[arg-type]
    assert (tmp_path / "run" / "config.json").read_text() == before


def test_a_run_states_what_it_began_with(camvid: Path, tmp_path: Path) -> None:
    trainer(camvid, tmp_path / "run", SINGLE)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["stage"], config["crop"]) == ("single", [40, 48])
    assert config["model"]["label_set"] == CAMVID.name
    assert config["model"]["fusion"] == "residual-do1"
    assert config["processes"] == 1
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


@pytest.mark.parametrize("clips", Clips)
@pytest.mark.parametrize("fusion", ["residual-do1", "sigmoid-do1"])
def test_the_memory_learns_from_any_clips(
    camvid: Path, tmp_path: Path, clips: Clips, fusion: str
) -> None:
    config = replace(MEMORY, clips=clips, epochs=1, precision=Precision.BFLOAT16)
    samples = load_camvid(camvid, "train")[1:]  # the first one has no past
    run = Trainer(new_model(fusion=fusion), samples, samples[:2], config, tmp_path / "run")
    (report,) = run.fit(lambda *_: None)
    assert np.isfinite(report.loss)
    assert load(run.checkpoint).config.fusion == fusion


def test_a_real_clip_needs_a_past(camvid: Path, tmp_path: Path) -> None:
    run = trainer(camvid, tmp_path / "run", replace(MEMORY, clips=Clips.REAL))
    with pytest.raises(NotFoundError, match="0000: no frame lies before it"):
        list(run.fit(lambda *_: None))


def test_batch_norms_keep_their_statistics_where_asked(camvid: Path, tmp_path: Path) -> None:
    run = trainer(camvid, tmp_path / "run", replace(SINGLE, epochs=1, freeze_batch_norm=True))
    list(run.fit(lambda *_: None))
    for before, after in zip(new_model().buffers(), run.model.buffers(), strict=True):
        assert torch.equal(before, after)


def test_what_is_not_trained_keeps_its_statistics(camvid: Path, tmp_path: Path) -> None:
    run = trainer(camvid, tmp_path / "run", replace(MEMORY, epochs=1))
    list(run.fit(lambda *_: None))
    buffers = dict(new_model().named_buffers())
    for name, after in run.model.named_buffers():
        if name.startswith(("encoder.", "decoder.")):
            assert torch.equal(buffers[name], after), name


def test_the_rate_falls_on_a_plateau_and_goes_on_from_there(camvid: Path, tmp_path: Path) -> None:
    config = replace(SINGLE, schedule=Schedule.PLATEAU, learning_rate=0.0, epochs=9, batch_size=6)
    config = replace(config, learning_rate=1e-12, evaluate_every=9)
    rates = [report.learning_rate for report in fit(camvid, tmp_path / "run", config)]
    assert rates[0] == pytest.approx(1e-12)
    assert rates == sorted(rates, reverse=True)


def test_published_settings() -> None:
    config = as_published(MEMORY)
    assert (config.learning_rate, config.weight_decay) == (2e-4, 1e-4)
    assert not config.decouples_weight_decay
    assert (config.schedule, config.clips) == (Schedule.PLATEAU, Clips.REAL)
    assert config.stage is Stage.MEMORY


def test_folds_divide_the_drives_between_the_stages(camvid: Path) -> None:
    samples = [
        replace(sample, clip="abc"[number % 3])
        for number, sample in enumerate(load_camvid(camvid, "train"))
    ]
    for fold in range(2):
        single, memory = (
            {sample.clip for sample in of_fold(samples, replace(stage, folds=2, fold=fold))}
            for stage in (SINGLE, MEMORY)
        )
        assert single | memory == {"a", "b", "c"}
        assert not single & memory
    with pytest.raises(InvalidInputError, match="folds is 4, but the training frames are of 3"):
        of_fold(samples, replace(SINGLE, folds=4))
    with pytest.raises(InvalidInputError, match=r"fold is 2, must be in 0\.\.1"):
        replace(SINGLE, folds=2, fold=2)


def test_the_network_learns_the_street(camvid: Path, tmp_path: Path) -> None:
    config = replace(SINGLE, epochs=25, learning_rate=5e-3, evaluate_every=25)
    run = trainer(camvid, tmp_path / "run", config)
    reports = list(run.fit(lambda *_: None))
    assert reports[-1].loss < reports[0].loss / 2


def test_a_teacher_is_learnt_from_where_labels_say_nothing(camvid: Path, tmp_path: Path) -> None:
    """All labels but one column are void; the teacher says building, a class no label has."""
    for path in (camvid / "trainannot").iterdir():
        label = np.array(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
        label[:, 1:] = 11
        cv2.imwrite(str(path), label)
    teacher = new_model(seed=1)
    weights = teacher.state_dict()
    weights["decoder.output_conv.weight"].zero_()
    weights["decoder.output_conv.bias"].zero_()[1] = 8.0
    config = replace(SINGLE, epochs=15, evaluate_every=15, learning_rate=5e-3)
    image = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    shares = []
    for name, heeded in (("with", teacher), ("without", None)):
        run = trainer(camvid, tmp_path / name, config, teacher=heeded)
        list(run.fit(lambda *_: None))
        best = load(run.checkpoint).segment_single(image).argmax(dim=1)
        shares.append(float((best == 1).float().mean()))
    assert shares[0] > 0.9 > 0.2 > shares[1]


def test_a_run_under_another_teacher_is_refused(camvid: Path, tmp_path: Path) -> None:
    trainer(camvid, tmp_path / "run", SINGLE, teacher=new_model(seed=1))
    with pytest.raises(InvalidInputError, match="another configuration"):
        trainer(camvid, tmp_path / "run", SINGLE, teacher=new_model(seed=2))


def test_dropout_is_a_share_of_the_networks_own(camvid: Path, tmp_path: Path) -> None:
    run = trainer(camvid, tmp_path / "run", replace(SINGLE, dropout=0.5))
    shares = {m.p for m in run.model.encoder.modules() if isinstance(m, torch.nn.Dropout2d)}
    assert sorted(shares) == pytest.approx([0.015, 0.15])


def test_crops_are_at_the_scales_asked_for(camvid: Path, tmp_path: Path) -> None:
    """At scale 1, where the crop is the frame, its columns are the frame's or their mirror."""
    config = replace(SINGLE, crop=(72, 96), scales=(1.0, 1.0))
    run = trainer(camvid, tmp_path / "run", config)
    batch = run.stage.draw(range(6), np.random.default_rng(0))
    for label, sample in zip(batch.labels.numpy(), run.train_samples, strict=True):
        assert any(np.array_equal(label, each) for each in (sample.label, sample.label[:, ::-1]))


def test_two_processes_train_one_model(camvid: Path, tmp_path: Path) -> None:
    """As ``torchrun`` starts them, on gloo: one run, one folder, one checkpoint."""
    arguments = [
        *("--root", camvid, "--out", tmp_path / "run", "--epochs", 2, "--batch-size", 2),
        *("--crop", "40x48", "--evaluate-every", 2, "--json"),
    ]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", 2, "--standalone"),
        *("-m", "segstream", "train", *arguments),
    ]
    finished = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert finished.returncode == 0, finished.stderr
    figures = json.loads(finished.stdout)
    assert figures["epoch"] == 2
    log = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert len(log) == 3, "one process writes for all"
    assert load(figures["checkpoint"]).config.num_channels == 12
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["processes"] == 2
