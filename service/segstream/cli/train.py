"""``segstream train``: the single-frame network, then its memory."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segstream.cli.errors import one_line_errors
from segstream.cli.networks import NetworkOption, networks_of
from segstream.errors import InvalidInputError
from segstream.label_sets import CAMVID
from segstream.training.config import Stage, TrainingConfig

if TYPE_CHECKING:
    from segstream.models import LMANet
    from segstream.training.trainer import EpochReport, Trainer

_DEFAULT = TrainingConfig()
# The classes of CamVid and one channel for void, as in the published checkpoints.
_NUM_CHANNELS = CAMVID.num_classes + 1


def train(
    root: Annotated[Path, typer.Option(help="Folder of CamVid: train/, trainannot/, val/, ...")],
    out: Annotated[Path, typer.Option(help="Folder for the run; an interrupted run goes on.")],
    stage: Annotated[
        Stage,
        typer.Option(
            help="single: train encoder and decoder, frame by frame. memory: train, on simulated "
            "clips, the heads and the fusion that a trained network remembers with."
        ),
    ] = _DEFAULT.stage,
    init: Annotated[
        str, typer.Option(help="Checkpoint to start from; the memory stage needs one.")
    ] = "",
    network: NetworkOption = None,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every frame is seen.")] = (
        _DEFAULT.epochs
    ),
    batch_size: Annotated[int, typer.Option(min=1, help="Crops in one step.")] = (
        _DEFAULT.batch_size
    ),
    crop: Annotated[
        str, typer.Option(metavar="HEIGHTxWIDTH", help="Size of a crop; multiples of 8.")
    ] = f"{_DEFAULT.crop[0]}x{_DEFAULT.crop[1]}",
    learning_rate: Annotated[float, typer.Option(min=0, help="At its peak.")] = (
        _DEFAULT.learning_rate
    ),
    weight_decay: Annotated[float, typer.Option(min=0, help="As AdamW takes it.")] = (
        _DEFAULT.weight_decay
    ),
    memory_length: Annotated[int, typer.Option(min=1, help="Frames of memory, T.")] = 3,
    window_size: Annotated[int, typer.Option(min=1, help="Side of the window, P; odd.")] = 7,
    train_decoder: Annotated[
        bool, typer.Option(help="Memory stage: train the decoder as well.")
    ] = _DEFAULT.train_decoder,
    seed: Annotated[
        int, typer.Option(min=0, help="The same seed gives the same weights.")
    ] = _DEFAULT.seed,
    evaluate_every: Annotated[
        int, typer.Option(min=1, help="Measure mIoU after every so many epochs, and at the end.")
    ] = _DEFAULT.evaluate_every,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the last epoch's figures as one JSON object.")
    ] = False,
) -> None:
    """Train on CamVid's train split; mIoU is told on its val split.

    The folder of the run receives model.safetensors (the running average of the weights) and
    log.csv after every epoch. The same command goes on with a run that was interrupted.
    """
    from segstream.training.camvid import load_camvid
    from segstream.training.trainer import Trainer

    with one_line_errors():
        config = TrainingConfig(
            stage=stage,
            epochs=epochs,
            batch_size=batch_size,
            crop=_parse_crop(crop),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            train_decoder=train_decoder,
            seed=seed,
            evaluate_every=evaluate_every,
        )
        model = _model(stage, init, memory_length, window_size, seed, network)
        samples, val = load_camvid(root, "train"), load_camvid(root, "val")
        trainer = Trainer(model, samples, val, config, out)
        _fit(trainer)
        _print(trainer, as_json)


def _parse_crop(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    sides = tuple(int(side) if side.isdecimal() else 0 for side in (height, width))
    if not all(side > 0 and side % 8 == 0 for side in sides):
        raise InvalidInputError(f"crop is {text!r}, must be HEIGHTxWIDTH, multiples of 8")
    return sides[0], sides[1]


def _model(
    stage: Stage,
    init: str,
    memory_length: int,
    window_size: int,
    seed: int,
    network: list[str] | None,
) -> "LMANet":
    import torch

    from segstream.models import LMANet, LMANetConfig, load
    from segstream.training.camvid import check_classes

    if init:
        model = load(
            init,
            memory_length=memory_length,
            window_size=window_size,
            networks=networks_of(network),
        )
        check_classes(model.config.label_set)
        return model
    if stage is Stage.MEMORY:
        raise InvalidInputError("the memory stage needs --init with a trained single-frame network")
    torch.manual_seed(seed)
    return LMANet(LMANetConfig(CAMVID, _NUM_CHANNELS, memory_length, window_size))


def _fit(trainer: "Trainer") -> None:
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("epoch {task.fields[epoch]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=console,
    )
    total = trainer.config.epochs * trainer.steps_per_epoch
    with progress:
        task = progress.add_task("", total=total, epoch=trainer.epoch + 1, loss=float("nan"))

        def on_step(epoch: int, step: int, loss: float) -> None:
            done = epoch * trainer.steps_per_epoch + step + 1
            progress.update(task, completed=done, epoch=epoch + 1, loss=loss)

        for report in trainer.fit(on_step):
            console.print(_line(report), highlight=False)


def _line(report: "EpochReport") -> str:
    miou = "" if report.miou is None else f"  val mIoU {report.miou:.1f} %"
    return f"epoch {report.epoch}  loss {report.loss:.4f}{miou}"


def _print(trainer: "Trainer", as_json: bool) -> None:
    assert trainer.report is not None  # there is at least one epoch
    if as_json:
        figures = {"checkpoint": str(trainer.checkpoint), **asdict(trainer.report)}
        typer.echo(json.dumps(figures, indent=2))
    else:
        typer.echo(f"{trainer.checkpoint}: {_line(trainer.report)}")
