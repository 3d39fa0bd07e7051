"""Whether a plot can be drawn, asked before the measurement."""

from importlib.util import find_spec
from pathlib import Path

from segstream.errors import InvalidInputError, UnavailableError

PLOT_SUFFIXES = (".png", ".svg")


def check_plotting(path: Path) -> None:
    """Raise InvalidInputError for another kind of file, UnavailableError without matplotlib."""
    if path.suffix not in PLOT_SUFFIXES:
        raise InvalidInputError(
            f"plot {path} must end in {' or '.join(PLOT_SUFFIXES)}", field="plot"
        )
    if find_spec("matplotlib") is None:
        raise UnavailableError("a plot needs matplotlib: pip install 'segstream[bench]'")
