"""The command line, where everything is put together.

Commands import torch when they run, so that help and the client's commands start at once.
"""

import typer

from segstream.cli.bench import app as bench
from segstream.cli.evaluate import evaluate
from segstream.cli.plan import plan
from segstream.cli.segment import segment
from segstream.cli.serve import serve
from segstream.cli.train import train
from segstream.cli.triton import triton

app = typer.Typer(
    help="Stateful streaming of video semantic segmentation: a network that remembers the last "
    "frames of each video, as a service.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    epilog="Start with: segstream segment CLIP -o OUT.mp4",
)
app.command()(serve)
app.command()(segment)
app.command()(train)
app.command()(evaluate)
app.command()(triton)
app.command()(plan)
app.add_typer(bench, name="bench")


def main() -> None:
    """The console script."""
    app()
