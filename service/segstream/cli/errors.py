"""How a command tells what went wrong: one line, and an exit code other than 0."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from segstream.errors import SegstreamError


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn the errors that a user can do something about into ``Error: ...`` and exit code 1."""
    try:
        yield
    except (SegstreamError, OSError) as error:
        typer.echo(f"Error: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from error
