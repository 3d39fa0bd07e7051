"""``segstream bench service``: a load on a service, over any of its wires."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from segstream.bench.wires import ENCODING_NAMES, FrameFormat, Wire
from segstream.cli.errors import one_line_errors
from segstream.cli.frame_size import parse_size
from segstream.cli.local_server import SERVE_COMMAND, local_server
from segstream.cli.output_files import check_writable
from segstream.errors import InvalidInputError

if TYPE_CHECKING:
    from segstream.bench.service import Percentiles, ServiceResult

# Sessions of a service started here, where their number is sought.
_MAX_STREAMS = 256


class FrameEncoding(StrEnum):
    """How the frames of a load travel."""

    JPEG = "jpeg"
    PNG = "png"
    RAW = "raw"


def service(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object.")
    ] = False,
    streams: Annotated[int, typer.Option(min=1, help="Sessions at once.")] = 1,
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Height and width of the frames.")
    ] = "512x1024",
    encoding: Annotated[
        FrameEncoding, typer.Option(help="How frames travel.")
    ] = FrameEncoding.JPEG,
    rate: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            metavar="FPS",
            help="Frames per second of each session, whatever the answers do. Without it the next "
            "frame goes when the last one is answered.",
        ),
    ] = None,
    duration: Annotated[float, typer.Option(min=0.1, help="Seconds to measure.")] = 20.0,
    warm_up: Annotated[
        float, typer.Option(min=0.0, help="Seconds of load before they begin.")
    ] = 5.0,
    think_time: Annotated[
        float,
        typer.Option(min=0.0, metavar="MS", help="Pause of a session after each answer."),
    ] = 0.0,
    wire: Annotated[Wire, typer.Option(help="How sessions reach the service.")] = Wire.GRPC,
    server: Annotated[
        str,
        typer.Option(
            metavar="HOST:PORT",
            help="A running service: its gRPC port, or its HTTP port for the other wires. Without "
            "it one is started here.",
        ),
    ] = "",
    objective_ms: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            metavar="MS",
            help="Find the largest number of sessions whose p95 latency is no higher.",
        ),
    ] = None,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the figures into this PNG or SVG."),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare",
            help="Beside the bare engine, and the same network in LitServe and in a FastAPI "
            "handler: closed loops over frames of JPEG, interleaved.",
        ),
    ] = False,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of --compare.")] = 5,
) -> None:
    """Drive sessions over gRPC, WebSocket or REST, and tell where the time of a frame goes."""
    with one_line_errors():
        import uvloop

        from segstream.bench.load import Load
        from segstream.bench.plotting import check_plotting
        from segstream.bench.service import run
        from segstream.bench.service_comparison import run_compared
        from segstream.bench.service_plot import plot

        frames = FrameFormat(*parse_size(size), _IMAGE_ENCODINGS[encoding.value])
        load = Load(streams, rate, think_time / 1000, warm_up, duration)
        if compare:
            _check_comparable(
                rate=rate,
                think_time=think_time or None,
                server=server or None,
                objective_ms=objective_ms,
                wire=None if wire is Wire.GRPC else wire,
                encoding=None if encoding is FrameEncoding.JPEG else encoding,
            )
        if plot_file is not None:
            check_writable(plot_file, "plot")
            check_plotting(plot_file)
        max_streams = streams if objective_ms is None else _MAX_STREAMS
        with (
            Console(stderr=True).status("preparing") as status,
            _address(server, wire, max_streams) as address,
        ):
            measuring: Any = (
                run_compared(address, frames, load, rounds=rounds, progress=status.update)
                if compare
                else run(
                    *(address, wire, frames, load),
                    objective_ms=objective_ms,
                    max_streams=max_streams,
                    progress=status.update,
                )
            )
            result = uvloop.run(measuring)
        if plot_file is not None:
            plot(result, plot_file)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print(result)


_IMAGE_ENCODINGS = {name: encoding for encoding, name in ENCODING_NAMES.items()}


def _check_comparable(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            raise InvalidInputError(
                f"{name} is {value}, but compare measures closed loops of JPEG frames over gRPC "
                "against a service started here: leave it out",
                field=name,
            )


@contextmanager
def _address(server: str, wire: Wire, max_streams: int) -> Iterator[str]:
    """Of the wire, at the service that is given or at one of our own."""
    if server:
        yield server
        return
    with local_server(command=(*SERVE_COMMAND, "--max-sessions", str(max_streams))) as started:
        yield started.grpc if wire is Wire.GRPC else started.http


def _print(result: "ServiceResult") -> None:
    table = Table("ms", *("p50", "p95", "p99"), title=_title(result), caption=_caption(result))
    for name, times in (
        *result["stage_ms"].items(),
        ("total", result["total_ms"]),
        ("latency of the client", result["latency_ms"]),
    ):
        table.add_row(name, *_figures(times))
    console = Console()
    console.print(table)
    if "objective" in result:
        objective = result["objective"]
        trials = Table("sessions", "p50 ms", "p95 ms", "p99 ms", "frames/s", "drops")
        trials.title = f"{objective['streams']} sessions hold {objective['p95_ms']:g} ms at p95"
        for trial in objective["trials"]:
            trials.add_row(
                str(trial["streams"]),
                *_figures(trial["latency_ms"]),
                f"{trial['frames_per_second']:.1f}",
                str(trial["drops"]),
            )
        console.print(trials)


def _title(result: "ServiceResult") -> str:
    return (
        f"{result['streams']} sessions, {result['size']} {result['encoding']} over "
        f"{result['wire']}: {result['frames_per_second']:.2f} frames/s"
    )


def _caption(result: "ServiceResult") -> str:
    memory, batch = result["memory_bytes_per_session"], result["mean_batch_size"]
    parts = [f"overhead {result['overhead_ms_median']:.1f} ms", f"{result['drops']} dropped"]
    if batch is not None:
        parts.append(f"{batch:.1f} frames a batch")
    if memory is not None:
        parts.append(f"{memory / 2**20:.1f} MiB of memory a session")
    if "throughput_ratio" in result:
        parts += [
            f"{result['throughput_ratio']:.3f} of the bare engine "
            f"({result['engine_only_frames_per_second']:.2f} frames/s)",
            f"{result['speedup_vs_litserve']:.2f} x LitServe",
            f"{result['speedup_vs_fastapi']:.2f} x FastAPI",
        ]
    return ", ".join(parts)


def _figures(times: "Percentiles") -> list[str]:
    return [f"{value:.1f}" for value in (times["p50"], times["p95"], times["p99"])]
