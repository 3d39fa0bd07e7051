"""``segstream bench``: performance beside its alternatives, in one interleaved run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from segstream.cli.bench_service import service
from segstream.cli.errors import one_line_errors
from segstream.cli.frame_size import parse_size
from segstream.cli.output_files import check_writable

if TYPE_CHECKING:
    from segstream.bench.attention import BenchResult, Summary
    from segstream.bench.model import BenchResult as ModelResult

app = typer.Typer(
    help="Measure performance beside its alternatives, in one interleaved run.",
    no_args_is_help=True,
)
app.command()(service)


@app.command()
def attention(
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object.")
    ] = False,
    plot_file: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw the medians into this PNG or SVG."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few rounds, fewer cases.")] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to compute with. Default: torch's choice.")
    ] = None,
) -> None:
    """Compare the local memory attention with other ways to compute it, side by side."""
    from segstream.bench.attention import run
    from segstream.bench.attention_plot import plot
    from segstream.bench.plotting import check_plotting

    with one_line_errors():
        if plot_file is not None:
            check_writable(plot_file, "plot")
            check_plotting(plot_file)
        with Console(stderr=True).status("preparing") as status:
            result = run(quick=quick, threads=threads, progress=status.update)
        if as_json:
            typer.echo(json.dumps(result, indent=2))
        else:
            _print(result)
        if plot_file is not None:
            plot(result, plot_file)


@app.command()
def model(
    size: Annotated[
        str, typer.Option(metavar="HxW", help="Height and width of the frames.")
    ] = "512x1024",
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as one JSON object.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads to compute with. Default: torch's choice.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=3, help="Rounds to measure.")] = 15,
) -> None:
    """Compare the engines that can run the whole network on CPU, side by side."""
    from segstream.bench.model import run

    with one_line_errors():
        height, width = parse_size(size)
        with Console(stderr=True).status("preparing") as status:
            result = run(height, width, threads=threads, rounds=rounds, progress=status.update)
    if as_json:
        typer.echo(json.dumps(result, indent=2))
    else:
        _print_model(result)


def _print_model(result: "ModelResult") -> None:
    table = Table(
        *("engine", "median, ms", "useful GFLOP/s"),
        title=f"{result['size']}, {result['threads']} threads",
        caption=f"{result['speedup_vs_onnxruntime']:.2f} x ONNX Runtime, "
        f"{result['speedup_vs_eager']:.2f} x eager, {result['flops_ratio_vs_sgemm']:.2f} x sgemm "
        f"({result['sgemm_gflops']:.0f} GFLOP/s), {result['memory_overhead_ratio']:.2f} x the "
        "single-frame network",
    )
    for name, engine in result["engines"].items():
        table.add_row(name, f"{engine['ms_median']:.1f}", f"{engine['useful_gflops']:.0f}")
    Console().print(table)


def _print(result: "BenchResult") -> None:
    console = Console()
    for case in result["cases"]:
        table = Table(
            "contender",
            *("median, ms", "GFLOP/s", "x kernel", "of sgemm", "max error"),
            title=f"{case['case']}, {result['threads']} threads, {result['instruction_set']}",
            caption=_caption(case["summary"]),
        )
        for row in case["contenders"]:
            if row["skipped"] is not None:
                table.add_row(row["contender"], f"left out: {row['skipped']}")
                continue
            table.add_row(
                row["contender"],
                f"{row['median_ms']:.2f}",
                _figure(row["gflops"], ".1f"),
                _figure(row["times_kernel"], ".2f"),
                _figure(row["of_sgemm"], ".2f"),
                _figure(row["max_error"], ".1e"),
            )
        console.print(table)


def _caption(summary: "Summary") -> str:
    parts = (
        ("row-band / this kernel", summary["row_band_times_kernel"], ".1f"),
        ("fallback / this kernel", summary["fallback_times_kernel"], ".1f"),
        ("the same, trained", summary["trained_fallback_times_kernel"], ".1f"),
        ("this kernel / sgemm", summary["kernel_of_sgemm"], ".2f"),
    )
    return ", ".join(
        f"{name} {value:{format_}}" for name, value, format_ in parts if value is not None
    )


def _figure(value: float | None, format_: str) -> str:
    return "" if value is None else f"{value:{format_}}"
