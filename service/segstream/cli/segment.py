"""``segstream segment``: a clip in, an overlay video and a table of figures out."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import rich.progress
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from segstream.cli.clip_segmentation import ClipJob, Progress, Report, segment_clip
from segstream.cli.errors import one_line_errors
from segstream.cli.local_server import local_server
from segstream.client import Client, IdSpace, ImageEncoding
from segstream.media.overlay import percent

_CONNECT_TIMEOUT_SECONDS = 5.0
_RESUME_TIMEOUT_SECONDS = 30.0


def segment(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video file of any usual format.")],
    output: Annotated[
        Path,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT.mp4",
            help="The overlay video to write: MP4, without sound. Replaces an earlier one.",
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="A folder for the label maps, one palette PNG per frame: 000000.png and so on. "
            "Replaces those of an earlier clip.",
        ),
    ] = None,
    contact_sheet: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.png",
            help="A PNG to write: nine frames over the clip and the classes' shares.",
        ),
    ] = None,
    server: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="The gRPC address of a running service. Without it, one is started here for the "
            "clip; SEGSTREAM_<NAME> in the environment configures it, see segstream serve --help.",
        ),
    ] = "",
    model: Annotated[
        str,
        typer.Option(metavar="NAME", help="A model of the service. Default: the service's first."),
    ] = "",
    frame_encoding: Annotated[
        ImageEncoding | None,
        typer.Option(
            help="How frames travel; jpeg changes pixels. "
            "Default: jpeg to --server, raw_rgb to a service started here."
        ),
    ] = None,
    max_height: Annotated[
        int,
        typer.Option(
            min=0,
            max=2**31 - 1,
            help="Scale higher frames down to this height for the network; it is faster. Label "
            "maps and overlay keep the clip's size. 0: no bound.",
        ),
    ] = 0,
    max_frames: Annotated[
        int, typer.Option(min=0, help="Stop after this many frames. 0: the whole clip.")
    ] = 0,
    opacity: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="How strongly classes tint the video: 0 not at all, 1 fully."
        ),
    ] = 0.55,
    id_space: Annotated[
        IdSpace,
        typer.Option(
            help="The numbers in the label maps: train_id counts the classes from 0, label_id is "
            "the data set's own numbering."
        ),
    ] = IdSpace.TRAIN_ID,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object.")
    ] = False,
) -> None:
    """Segment a video: write it with its classes in colour, and tell how long each stage took."""
    job = ClipJob(
        clip=clip,
        output=output,
        labels=labels,
        contact_sheet=contact_sheet,
        model=model,
        frame_encoding=frame_encoding or _default_encoding(server),
        max_height=max_height,
        max_frames=max_frames,
        opacity=opacity,
        id_space=id_space,
        # Nobody takes the place of a service started here.
        resume_timeout_seconds=_RESUME_TIMEOUT_SECONDS if server else 0.0,
    )
    with one_line_errors():
        report = _run(job, server)
    if as_json:
        typer.echo(json.dumps(asdict(report)))
    else:
        _print_report(report)


def _default_encoding(server: str) -> ImageEncoding:
    return ImageEncoding.JPEG if server else ImageEncoding.RAW_RGB


def _run(job: ClipJob, server: str) -> Report:
    job.check()
    console = Console(stderr=True)
    with (
        _service(server, console) as address,
        Client(address, connect_timeout_seconds=_CONNECT_TIMEOUT_SECONDS) as client,
        _progress(console) as on_progress,
    ):
        return segment_clip(client, job, on_progress=on_progress)


@contextmanager
def _service(server: str, console: Console) -> Iterator[str]:
    if server:
        yield server
        return
    with console.status("Starting the service") as status, local_server() as started:
        status.stop()
        yield started.grpc


class _FramesPerSecond(rich.progress.ProgressColumn):
    def render(self, task: rich.progress.Task) -> Text:
        return Text(f"{task.speed or 0.0:.1f} frames/s")


@contextmanager
def _progress(console: Console) -> Iterator[Progress]:
    columns = (
        rich.progress.TextColumn("Segmenting"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        _FramesPerSecond(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _print_report(report: Report) -> None:
    console = Console()
    console.print(_summary_table(report))
    console.print(_latency_table(report))


def _summary_table(report: Report) -> Table:
    table = Table(show_header=False, title=f"{report.clip}, {report.width}x{report.height}")
    table.add_row("overlay video", report.output)
    if report.labels is not None:
        table.add_row("label maps", report.labels)
    if report.contact_sheet is not None:
        table.add_row("contact sheet", report.contact_sheet)
    table.add_row("model", f"{report.model}, {report.memory_length} frames of memory")
    table.add_row("frames", str(report.num_frames))
    table.add_row("frames per second", f"{report.frames_per_second:.2f}")
    classes = (f"{seen.name} {percent(seen.share)}" for seen in report.classes)
    table.add_row("classes seen", ", ".join(classes))
    return table


def _latency_table(report: Report) -> Table:
    table = Table("stage", title="Milliseconds per frame")
    for name in ("p50", "p95", "p99"):
        table.add_column(name, justify="right")
    for stage, times in report.stages.items():
        seconds = (times.p50_seconds, times.p95_seconds, times.p99_seconds)
        table.add_row(stage, *(f"{1000 * value:.1f}" for value in seconds))
    return table
