"""How the service scales: sessions, image size, memory length and window size.

    python benchmarks/scaling.py [--json] [--plot docs/images/scaling.png] [--seconds S]

Starts a service of its own with the shipped checkpoint at several memory lengths T and window sizes
P, and measures closed loops over gRPC with JPEG frames: each point for ``--seconds`` after a
warm-up, those with much work for longer. Everything but the number of sessions and the image size
is measured at 360x480 with one session. Some five minutes.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from rich.console import Console
from rich.table import Table

from segstream.bench.load import Load
from segstream.bench.service import run
from segstream.bench.wires import FrameFormat, Wire
from segstream.checkpoints import DEFAULT
from segstream.cli.local_server import SERVE_COMMAND, local_server
from segstream.models import load
from segstream.models.checkpoint import save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (360, 480)
MEMORY_LENGTH, WINDOW_SIZE = 4, 21
SESSIONS = (1, 2, 4, 8, 16, 32)
SIZES = ((120, 160), (240, 320), (360, 480), (512, 1024), (720, 1280))
MEMORY_LENGTHS = (1, 2, 4, 8)
WINDOW_SIZES = (5, 11, 21, 31)

_MIB = 2**20
_COLOUR, _SECOND_COLOUR = "#cc6633", "#4477aa"


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement: what is varied, and how."""

    axis: str
    value: int | str
    streams: int = 1
    size: tuple[int, int] = SIZE
    memory_length: int = MEMORY_LENGTH
    window_size: int = WINDOW_SIZE

    @property
    def model(self) -> str:
        return f"T{self.memory_length}-P{self.window_size}"


def points() -> Iterator[Point]:
    for streams in SESSIONS:
        yield Point("sessions", streams, streams=streams)
    for height, width in SIZES:
        yield Point("image size", f"{height}x{width}", size=(height, width))
    for length in MEMORY_LENGTHS:
        yield Point("memory length T", length, memory_length=length)
    for window in WINDOW_SIZES:
        yield Point("window size P", window, window_size=window)


def measure(address: str, seconds: float, progress: Callable[[str], None]) -> list[dict[str, Any]]:
    rows = []
    for point in points():
        progress(f"{point.axis}: {point.value}")
        frames = FrameFormat(*point.size, model=point.model)
        # So long that many sessions and large frames have their say too.
        work = point.streams * point.size[0] * point.size[1] / (SIZE[0] * SIZE[1])
        longer = seconds * max(1.0, work / 4)
        load = Load(point.streams, warm_up_seconds=longer / 2, seconds=longer)
        result = uvloop.run(run(address, Wire.GRPC, frames, load))
        rows.append({"axis": point.axis, "value": point.value} | result)
    return rows


def write_models(folder: Path) -> list[str]:
    """The shipped checkpoint with each memory length and window size; their files."""
    files = {point.model: (point.memory_length, point.window_size) for point in points()}
    for name, (length, window) in files.items():
        model = load(DEFAULT, memory_length=length, window_size=window)
        save(model, folder / f"{name}.safetensors")
    return [str(folder / f"{name}.safetensors") for name in files]


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 6.4), layout="constrained")
    figure.suptitle(
        f"The service on {os.cpu_count()} cores, closed loops of JPEG frames; one session, "
        f"{SIZE[0]}x{SIZE[1]}, T = {MEMORY_LENGTH}, P = {WINDOW_SIZE} where nothing else is said",
        fontsize=11,
    )
    panels = figure.subplots(2, 3).flat
    sessions = of_axis(rows, "sessions")
    draw(next(panels), sessions, "sessions", "frames/s in all", rate, log=True)
    latency = next(panels)
    draw(latency, sessions, "sessions", "latency, ms", percentile("p50"), label="p50", log=True)
    draw(
        *(latency, sessions, "sessions", "latency, ms", percentile("p95")),
        label="p95",
        colour=_SECOND_COLOUR,
        log=True,
    )
    latency.legend(frameon=False)
    memory = next(panels)
    draw(memory, of_axis(rows, "image size"), "image size", "memory of a session, MiB", mebibytes)
    for axis in ("image size", "memory length T", "window size P"):
        panel = next(panels)
        draw(panel, of_axis(rows, axis), axis, "latency, ms", percentile("p50"))
    figure.savefig(path, dpi=110)


def draw(
    axes: "Axes",
    rows: Sequence[dict[str, Any]],
    name: str,
    quantity: str,
    value: Callable[[dict[str, Any]], float],
    *,
    label: str = "",
    colour: str = _COLOUR,
    log: bool = False,
) -> None:
    places = [abscissa(row) for row in rows]
    axes.plot(places, [value(row) for row in rows], marker="o", color=colour, label=label)
    if log:
        axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(row["value"]) for row in rows])
    if name == "image size":
        axes.tick_params(axis="x", labelsize=8, rotation=30)
    axes.minorticks_off()
    axes.autoscale(axis="y")  # over what was drawn before as well
    axes.set_ylim(bottom=0)
    axes.set_xlabel(name)
    axes.set_title(quantity, fontsize=10, loc="left")
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def of_axis(rows: Sequence[dict[str, Any]], axis: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["axis"] == axis]


def abscissa(row: dict[str, Any]) -> int:
    """Of an image size, its pixels."""
    if isinstance(row["value"], int):
        return row["value"]
    height, width = map(int, row["value"].split("x"))
    return height * width


def rate(row: dict[str, Any]) -> float:
    return float(row["frames_per_second"])


def mebibytes(row: dict[str, Any]) -> float:
    return float(row["memory_bytes_per_session"] / _MIB)


def percentile(name: str) -> Callable[[dict[str, Any]], float]:
    return lambda row: float(row["latency_ms"][name])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--plot", type=Path, help="image file for the curves")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each point")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Console(stderr=True).status("") as status:
        models = [flag for file in write_models(Path(folder)) for flag in ("--model", file)]
        command = (*SERVE_COMMAND, "--max-sessions", str(max(SESSIONS)), *models)
        with local_server(command=command, start_timeout_seconds=600) as server:
            rows = measure(server.grpc, options.seconds, status.update)
    if options.plot is not None:
        plot(rows, options.plot)
    if options.json:
        print(json.dumps({"points": rows}))
        return
    table = Table("", "", "frames/s", "p50 ms", "p95 ms", "p99 ms", "MiB a session")
    for row in rows:
        table.add_row(
            *(row["axis"], str(row["value"]), f"{rate(row):.1f}"),
            *(f"{row['latency_ms'][name]:.0f}" for name in ("p50", "p95", "p99")),
            f"{mebibytes(row):.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
