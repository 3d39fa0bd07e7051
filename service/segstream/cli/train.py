"""``segstream train``: the single-frame network, then its memory."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from segstream.cli.data_sets import DATASET_HELP, Dataset, label_set_of, load_samples
from segstream.cli.errors import one_line_errors
from segstream.cli.networks import NetworkOption, networks_of
from segstream.errors import InvalidInputError
from segstream.label_sets import LabelSet
from segstream.training.config import Clips, Precision, Schedule, Stage, TrainingConfig

if TYPE_CHECKING:
    from segstream.models import LMANet
    from segstream.training.run_folder import EpochReport
    from segstream.training.trainer import Trainer

_DEFAULT = TrainingConfig()


def train(
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    out: Annotated[Path, typer.Option(help="Folder for the run; an interrupted run goes on.")],
    dataset: Annotated[Dataset, typer.Option(help=DATASET_HELP)] = Dataset.CAMVID,
    stage: Annotated[
        Stage,
        typer.Option(
            help="single: train encoder and decoder, frame by frame. memory: train, on clips, the "
            "heads and the fusion that a trained network remembers with."
        ),
    ] = _DEFAULT.stage,
    init: Annotated[
        str, typer.Option(help="Checkpoint to start from; the memory stage needs one.")
    ] = "",
    network: NetworkOption = None,
    teacher: Annotated[
        str,
        typer.Option(
            help="Single stage: checkpoint of a network with the same classes, whose view of each "
            "crop is learnt besides the labels (distillation)."
        ),
    ] = "",
    teacher_weight: Annotated[
        float, typer.Option(min=0, help="How much the teacher's view counts; the labels' is 1.")
    ] = _DEFAULT.teacher_weight,
    published: Annotated[
        bool,
        typer.Option(
            help="Train as LMANet was published: Adam at 2e-4, weight decay 1e-4, rate x 0.8 on a "
            "plateau, real clips, T = 3, P = 21, fusion sigmoid-do1. Goes before other options."
        ),
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="Times that every frame is seen.")] = (
        _DEFAULT.epochs
    ),
    batch_size: Annotated[
        int, typer.Option(min=1, help="Crops or clips in one step, of all processes together.")
    ] = _DEFAULT.batch_size,
    crop: Annotated[
        str, typer.Option(metavar="HEIGHTxWIDTH", help="Size of a crop; multiples of 8.")
    ] = f"{_DEFAULT.crop[0]}x{_DEFAULT.crop[1]}",
    scales: Annotated[
        str,
        typer.Option(
            metavar="LEAST:MOST",
            help="How much the frame is scaled before a crop is taken. Default: 0.6:1.8, in the "
            "memory stage 0.95:1.1.",
        ),
    ] = "",
    learning_rate: Annotated[float, typer.Option(min=0, help="At its peak.")] = (
        _DEFAULT.learning_rate
    ),
    weight_decay: Annotated[float, typer.Option(min=0, help="As AdamW takes it.")] = (
        _DEFAULT.weight_decay
    ),
    schedule: Annotated[Schedule, typer.Option(help="Of the learning rate.")] = _DEFAULT.schedule,
    class_weight_offset: Annotated[
        float,
        typer.Option(min=0, help="c in a class's weight 1 / ln(c + its share); 0 = all alike."),
    ] = _DEFAULT.class_weight_offset,
    dropout: Annotated[
        float,
        typer.Option(min=0, max=1, help="Share of the network's own dropout; less for short runs."),
    ] = _DEFAULT.dropout,
    precision: Annotated[Precision, typer.Option(help="Of the convolutions.")] = _DEFAULT.precision,
    memory_length: Annotated[int, typer.Option(min=1, help="Frames of memory, T.")] = 3,
    window_size: Annotated[int, typer.Option(min=1, help="Side of the window, P; odd.")] = 7,
    fusion: Annotated[
        str,
        typer.Option(
            help="Memory stage: residual-do1, signed-residual-do1, gated-scores, or the published "
            "sigmoid-do1. Empty takes the first for ERFNet, the third for networks whose features "
            "are class scores, and the second for others."
        ),
    ] = "",
    clips: Annotated[
        Clips,
        typer.Option(
            help="Memory stage. cached: simulated from stills, each encoded once. simulated: anew "
            "each time. real: the frames before the labelled one."
        ),
    ] = _DEFAULT.clips,
    matching_weight: Annotated[
        float,
        typer.Option(
            min=0,
            help="Memory stage: how much its features are drawn to those of the unspoilt frame.",
        ),
    ] = _DEFAULT.matching_weight,
    spoilt_whole: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Memory stage: how often all frames of a clip are spoilt alike."
        ),
    ] = _DEFAULT.spoilt_whole,
    spoilt_last: Annotated[
        float, typer.Option(min=0, max=1, help="Else how often its last frame is spoilt.")
    ] = _DEFAULT.spoilt_last,
    spoilt_past: Annotated[
        float, typer.Option(min=0, max=1, help="And how often each frame before it.")
    ] = _DEFAULT.spoilt_past,
    train_decoder: Annotated[
        bool, typer.Option(help="Memory stage: train the decoder as well.")
    ] = _DEFAULT.train_decoder,
    freeze_batch_norm: Annotated[
        bool, typer.Option(help="Keep the running statistics of what is trained.")
    ] = _DEFAULT.freeze_batch_norm,
    folds: Annotated[
        int,
        typer.Option(
            min=0,
            help="Deal the drives out to so many groups: the single stage leaves one out, the "
            "memory stage takes it alone. 0 = all drives.",
        ),
    ] = _DEFAULT.folds,
    fold: Annotated[int, typer.Option(min=0, help="Which group that is, from 0.")] = _DEFAULT.fold,
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
    """Train on the train split of a data set; mIoU is told on its val split.

    The folder of the run receives model.safetensors (the running average of the weights), log.csv
    and log.png after every epoch. The same command goes on with a run that was interrupted. On
    several GPUs: torchrun --nproc-per-node N -m segstream train ...
    """
    from segstream.training.config import as_published
    from segstream.training.distributed import Group
    from segstream.training.trainer import Trainer

    with one_line_errors():
        config = TrainingConfig(
            stage=stage,
            epochs=epochs,
            batch_size=batch_size,
            crop=_parse_crop(crop),
            scales=_parse_scales(scales),
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            schedule=schedule,
            class_weight_offset=class_weight_offset,
            teacher_weight=teacher_weight,
            dropout=dropout,
            precision=precision,
            clips=clips,
            matching_weight=matching_weight,
            spoilt_whole=spoilt_whole,
            spoilt_last=spoilt_last,
            spoilt_past=spoilt_past,
            train_decoder=train_decoder,
            freeze_batch_norm=freeze_batch_norm,
            folds=folds,
            fold=fold,
            seed=seed,
            evaluate_every=evaluate_every,
        )
        if published:
            config, window_size, fusion = as_published(config), 21, "sigmoid-do1"
        label_set = label_set_of(dataset)
        model = _model(config, init, label_set, memory_length, window_size, fusion, network)
        teaching = _teacher(config, teacher, model, network)
        samples, val = (load_samples(dataset, root, s, label_set) for s in ("train", "val"))
        group = Group()
        trainer = Trainer(model, samples, val, config, out, group, teaching)
        _fit(trainer)
        if group.is_first:
            _print(trainer, as_json)
        group.close()


def _parse_crop(text: str) -> tuple[int, int]:
    height, _, width = text.partition("x")
    sides = tuple(int(side) if side.isdecimal() else 0 for side in (height, width))
    if not all(side > 0 and side % 8 == 0 for side in sides):
        raise InvalidInputError(f"crop is {text!r}, must be HEIGHTxWIDTH, multiples of 8")
    return sides[0], sides[1]


def _parse_scales(text: str) -> tuple[float, float] | None:
    if not text:
        return None
    least, _, most = text.partition(":")
    try:
        return float(least), float(most)
    except ValueError:
        raise InvalidInputError(f"scales is {text!r}, must be LEAST:MOST, like 0.8:1.25") from None


def _model(
    config: TrainingConfig,
    init: str,
    label_set: LabelSet,
    memory_length: int,
    window_size: int,
    fusion: str,
    network: list[str] | None,
) -> "LMANet":
    import torch

    from segstream.models import LMANet, LMANetConfig, load
    from segstream.training.memory_start import fusion_to_train, with_fusion
    from segstream.training.samples import check_label_set

    if init:
        model = load(init, networks=networks_of(network))
        check_label_set(model.config.label_set, label_set)
        model.config = replace(model.config, memory_length=memory_length, window_size=window_size)
        is_memory = config.stage is Stage.MEMORY
        return with_fusion(model, fusion or fusion_to_train(model)) if is_memory else model
    if config.stage is Stage.MEMORY:
        raise InvalidInputError("the memory stage needs --init with a trained single-frame network")
    torch.manual_seed(config.seed)
    # One channel more than classes, for void, as in the published checkpoints.
    num_channels = label_set.num_classes + 1
    return LMANet(LMANetConfig(label_set, num_channels, memory_length, window_size))


def _teacher(
    config: TrainingConfig, path: str, model: "LMANet", network: list[str] | None
) -> "LMANet | None":
    from segstream.models import load
    from segstream.training.samples import check_label_set

    if not path:
        return None
    if config.stage is Stage.MEMORY:
        raise InvalidInputError("teacher is for the single stage")
    teacher = load(path, networks=networks_of(network))
    check_label_set(teacher.config.label_set, model.config.label_set)
    if teacher.config.num_channels != model.config.num_channels:
        raise InvalidInputError(
            f"teacher has logits of {teacher.config.num_channels} channels, the network of "
            f"{model.config.num_channels}"
        )
    return teacher


def _fit(trainer: "Trainer") -> None:
    if not trainer.group.is_first:
        for _ in trainer.fit(lambda epoch, step, loss: None):
            pass
        return
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=console,
    )
    with progress:
        samples, steps = len(trainer.train_samples), trainer.config.epochs * trainer.steps_per_epoch
        encoding = progress.add_task("clips", total=samples, loss=float("nan"), visible=False)
        training = progress.add_task("epoch 1", total=steps, loss=float("nan"))

        def on_sample() -> None:
            progress.update(encoding, advance=1, visible=True)

        def on_step(epoch: int, step: int, loss: float) -> None:
            done = epoch * trainer.steps_per_epoch + step + 1
            name = f"epoch {epoch + 1}"
            progress.update(training, description=name, completed=done, loss=loss)

        for report in trainer.fit(on_step, on_sample):
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
