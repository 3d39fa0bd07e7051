"""The command line, where everything is put together.

Commands import torch when they run, so that help and the client's commands start at once.
"""

from typing import Annotated

import typer

from segstream.build_info import BuildInfo
from segstream.cli.bench import app as bench
from segstream.cli.calibrate import calibrate
from segstream.cli.convert import convert
from segstream.cli.evaluate import evaluate
from segstream.cli.explain import explain
from segstream.cli.keys import app as keys
from segstream.cli.plan import plan
from segstream.cli.segment import segment
from segstream.cli.serve import serve
from segstream.cli.train import train
from segstream.cli.triton import triton


def _tell_version(is_asked: bool) -> None:
    if is_asked:
        info = BuildInfo.here()
        typer.echo(
            f"segstream {info.version} (revision {info.revision}, Python {info.python}, "
            f"torch {info.torch})"
        )
        raise typer.Exit


app = typer.Typer(
    help="Stateful streaming of video semantic segmentation: a network that remembers the last "
    "frames of each video, as a service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: segstream segment CLIP -o OUT.mp4",
)


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_tell_version, is_eager=True, help="Say what runs here, and exit."
        ),
    ] = False,
) -> None:
    pass


app.command()(serve)
app.command()(segment)
app.command()(train)
app.command()(calibrate)
app.command()(evaluate)
app.command()(explain)
app.command()(convert)
app.command()(triton)
app.command()(plan)
app.add_typer(bench, name="bench")
app.add_typer(keys, name="keys")


def main() -> None:
    """The console script."""
    app()
