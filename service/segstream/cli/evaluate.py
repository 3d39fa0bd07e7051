"""``segstream evaluate``: what a checkpoint is worth, with and without its memory."""

import json
import time
from collections.abc import Callable, Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from segstream.checkpoints import DEFAULT
from segstream.cli.errors import one_line_errors
from segstream.cli.networks import NetworkOption, networks_of
from segstream.cli.output_files import check_writable

if TYPE_CHECKING:
    from segstream.models import LMANet
    from segstream.training.camvid import Sample
    from segstream.training.metrics import ConfusionMatrix


_STDOUT = Path("-")


class Dataset(StrEnum):
    """Data sets that can be evaluated on."""

    CAMVID = "camvid"


def evaluate(
    root: Annotated[Path, typer.Option(help="Folder of the data set: val/, valannot/, ...")],
    dataset: Annotated[Dataset, typer.Option(help="What the folder holds.")] = Dataset.CAMVID,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    checkpoint: Annotated[
        str, typer.Option(help="The network: a file, or a name that comes with the package.")
    ] = DEFAULT,
    network: NetworkOption = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the result to this file as JSON. With - it goes to stdout, and no table.",
        ),
    ] = None,
) -> None:
    """Measure mIoU, single frame against memory, on a labelled split in the order of its frames.

    Pixels labelled void do not count; the prediction is the best of the real classes.
    """
    from segstream.models import load
    from segstream.training.camvid import check_classes, load_camvid
    from segstream.training.evaluation import evaluate_single_frame, evaluate_stream

    with one_line_errors():
        if json_file not in (None, _STDOUT):
            check_writable(json_file, "JSON file")
        model = load(checkpoint, networks=networks_of(network))
        check_classes(model.config.label_set)
        samples = load_camvid(root, split)
        with _progress() as progress:
            result = {
                "dataset": dataset.value,
                "split": split,
                "frames": len(samples),
                "models": {
                    "single_frame": _measure(evaluate_single_frame, model, samples, progress),
                    "memory": _measure(evaluate_stream, model, samples, progress),
                },
            }
        _hand_out(result, json_file)


def _measure(
    run: "Callable[[LMANet, Iterable[Sample]], ConfusionMatrix]",
    model: "LMANet",
    samples: "list[Sample]",
    progress: Progress,
) -> dict[str, Any]:
    started = time.perf_counter()
    confusion = run(model, progress.track(samples))
    seconds = time.perf_counter() - started
    names = [label.name for label in model.config.label_set.labels]
    return {
        "miou": 100 * confusion.miou(),
        "iou": dict(zip(names, (100 * confusion.iou()).tolist(), strict=True)),
        "frames_per_second": len(samples) / seconds,
    }


def _progress() -> Progress:
    return Progress(
        TextColumn("Evaluating"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


def _hand_out(result: dict[str, Any], json_file: Path | None) -> None:
    text = json.dumps(result, indent=2)
    if json_file == _STDOUT:
        typer.echo(text)
        return
    if json_file is not None:
        json_file.write_text(text + "\n")
    _print(result)


def _print(result: dict[str, Any]) -> None:
    models = result["models"]
    table = Table("percent", *models, title=f"{result['dataset']} {result['split']}")
    for name in models["memory"]["iou"]:
        table.add_row(name, *(f"{model['iou'][name]:.1f}" for model in models.values()))
    table.add_section()
    table.add_row("mIoU", *(f"{model['miou']:.2f}" for model in models.values()))
    table.add_row(
        "frames per second", *(f"{model['frames_per_second']:.1f}" for model in models.values())
    )
    Console().print(table)
