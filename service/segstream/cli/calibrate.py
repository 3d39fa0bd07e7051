"""``segstream calibrate``: a checkpoint in, the same with its classes calibrated out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from segstream.cli.data_sets import DATASET_HELP, Dataset, label_set_of, load_samples
from segstream.cli.errors import one_line_errors
from segstream.cli.networks import NetworkOption, networks_of
from segstream.cli.output_files import check_checkpoint
from segstream.cli.progress import counting

if TYPE_CHECKING:
    from torch import Tensor

    from segstream.label_sets import LabelSet
    from segstream.training.calibration import Calibration


def calibrate(
    checkpoint: Annotated[
        str,
        typer.Argument(help="The network: a file, or a name that comes with the package."),
    ],
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="OUT.safetensors", help="The file to write."),
    ],
    dataset: Annotated[Dataset, typer.Option(help=DATASET_HELP)] = Dataset.CAMVID,
    split: Annotated[
        str, typer.Option(help="What decides: train, as val is for judging.")
    ] = "train",
    network: NetworkOption = None,
) -> None:
    """Add to each class's logit what makes mIoU on the training frames largest.

    Training with class weights leaves a network that finds some classes too often and others too
    seldom. Only the bias of its last layer changes, and with it single frame and memory alike.
    """
    from segstream.models import load
    from segstream.models.checkpoint import save
    from segstream.training import calibration
    from segstream.training.samples import check_label_set

    with one_line_errors():
        check_checkpoint(output, "output")
        model = load(checkpoint, networks=networks_of(network))
        label_set = label_set_of(dataset, model.config.label_set)
        check_label_set(model.config.label_set, label_set)
        samples = load_samples(dataset, root, split, label_set)
        with counting("Calibrating") as progress:
            task = progress.add_task("", total=len(samples) + 1)  # the search counts as a frame
            calibrated, found = calibration.calibrate(
                model, samples, lambda: progress.advance(task)
            )
            progress.advance(task)
        save(calibrated, output)
        _print(found, label_set)


def _print(found: "Calibration", label_set: "LabelSet") -> None:
    table = Table("class", "bias", "IoU before", "after")
    rows = zip(label_set.labels, found.biases, found.before, found.after, strict=True)
    for label, bias, before, after in rows:
        table.add_row(label.name, f"{bias:+.3f}", _percent(before), _percent(after))
    table.add_section()
    table.add_row("mean", "", _percent(found.before.nanmean()), _percent(found.after.nanmean()))
    Console().print(table)


def _percent(iou: "Tensor") -> str:
    return "-" if iou.isnan() else f"{100 * iou:.2f}"
