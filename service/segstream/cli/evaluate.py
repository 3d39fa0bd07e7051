"""``segstream evaluate``: what a checkpoint is worth, with and without its memory."""

import json
from collections.abc import Callable, Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Column, Table

from segstream.checkpoints import DEFAULT
from segstream.cli.data_sets import DATASET_HELP, Dataset, label_set_of, load_samples
from segstream.cli.errors import one_line_errors
from segstream.cli.networks import NetworkOption, networks_of
from segstream.cli.output_files import check_writable, check_writable_folder
from segstream.cli.progress import counting

if TYPE_CHECKING:
    from segstream.training.evaluation import Evaluation, FrameResult
    from segstream.training.robustness import Degradation
    from segstream.training.side_by_side import Way

_STDOUT = Path("-")
_METRICS = (("miou", "mIoU"), ("tc", "TC"), ("mvc8", "mVC8"), ("mvc16", "mVC16"))


def evaluate(
    root: Annotated[Path, typer.Option(help="Folder of the data set.")],
    dataset: Annotated[Dataset, typer.Option(help=DATASET_HELP)] = Dataset.CAMVID,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "val",
    checkpoint: Annotated[
        str, typer.Option(help="The network: a file, or a name that comes with the package.")
    ] = DEFAULT,
    network: NetworkOption = None,
    has_baselines: Annotated[
        bool,
        typer.Option(
            "--baseline/--no-baseline",
            help="Tell of the averaged logits and of the control, whose memory is the present "
            "frame itself, as well.",
        ),
    ] = True,
    has_robustness: Annotated[
        bool,
        typer.Option(
            "--robustness",
            help="Also with noise, blur, JPEG, low light, and every other frame corrupted, blank "
            "or dropped, each at three strengths; takes 22 times as long.",
        ),
    ] = False,
    row: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Of the rows of --robustness only this one, for example noise10; may be repeated.",
        ),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option(
            "--json",
            metavar="FILE",
            help="Write the result to this file as JSON. With - it goes to stdout, and no table.",
        ),
    ] = None,
    plots: Annotated[
        Path | None,
        typer.Option(help="Folder for plots, and for overlays of the worst and best frames."),
    ] = None,
) -> None:
    """Measure accuracy and steadiness, single frame against memory, on a labelled split.

    All ways run side by side from the same weights, the frames in their order. Pixels labelled void
    do not count; the prediction is the best of the real classes. TC and mVC need consecutive
    frames.
    """
    from segstream.models import load
    from segstream.training.evaluation import Evaluation
    from segstream.training.evaluation_plots import Extremes, check_plotting, draw_plots
    from segstream.training.robustness import DEGRADATIONS, rows_named
    from segstream.training.samples import check_label_set
    from segstream.training.side_by_side import Way

    with one_line_errors():
        if json_file not in (None, _STDOUT):
            check_writable(json_file, "JSON file")
        if plots is not None:
            check_writable_folder(plots, "plots")
            check_plotting()
        model = load(checkpoint, networks=networks_of(network))
        label_set = label_set_of(dataset, model.config.label_set)
        check_label_set(model.config.label_set, label_set)
        samples = load_samples(dataset, root, split, label_set)
        evaluation, extremes = Evaluation(model, samples), Extremes()
        rows = DEGRADATIONS if has_robustness and not row else rows_named(row or ())
        ways = tuple(Way) if has_baselines else (Way.SINGLE_FRAME, Way.MEMORY)
        with counting("Evaluating") as progress:
            task = progress.add_task("", total=len(samples) * (1 + len(rows)))

            def on_frame(result: "FrameResult") -> None:
                progress.advance(task)

            def on_clean_frame(result: "FrameResult") -> None:
                extremes.add(result)
                progress.advance(task)

            result = {
                "dataset": dataset.value,
                "split": split,
                "frames": len(samples),
                "models": _figures(evaluation, ways, on_clean_frame),
                "degraded": {
                    spoilt.name: _figures(evaluation, ways, on_frame, spoilt) for spoilt in rows
                },
            }
        if plots is not None:
            draw_plots(result, extremes, label_set, plots)
        _hand_out(result, json_file)


def _figures(
    evaluation: "Evaluation",
    ways: "Collection[Way]",
    on_frame: "Callable[[FrameResult], None]",
    degrade: "Degradation | None" = None,
) -> dict[str, Any]:
    figures = evaluation.run(degrade=degrade, on_frame=on_frame, ways=ways)
    return {way.value: asdict(values) for way, values in figures.items()}


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
    console = Console()
    title = f"{result['dataset']} {result['split']}, {result['frames']} frames"
    table = Table("percent", *models, title=title)
    for name in models["single_frame"]["iou"]:
        table.add_row(name, *(f"{model['iou'][name]:.1f}" for model in models.values()))
    table.add_section()
    for key, name in _METRICS:
        table.add_row(name, *(_number(model[key]) for model in models.values()))
    table.add_row(
        "frames per second", *(f"{model['frames_per_second']:.1f}" for model in models.values())
    )
    console.print(table)
    if result["degraded"]:
        console.print(_degraded_table(result["degraded"]))


def _degraded_table(degraded: dict[str, Any]) -> Table:
    ways = next(iter(degraded.values()))
    table = Table(Column("mIoU / TC / mVC8", no_wrap=True), *ways, title="spoilt frames")
    for row, models in degraded.items():
        cells = (
            " / ".join(_number(model[key], 1) for key in ("miou", "tc", "mvc8"))
            for model in models.values()
        )
        table.add_row(row, *cells)
    return table


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
