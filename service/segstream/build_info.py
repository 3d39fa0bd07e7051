"""What runs here: versions, and the commit that the package was built from."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class BuildInfo:
    """``revision`` is the git commit, "unknown" for a package that was not built from a commit."""

    version: str
    revision: str
    python: str
    torch: str

    @classmethod
    def here(cls) -> "BuildInfo":
        """Of this installation. Imports nothing heavy."""
        recorded = files("segstream").joinpath("revision.txt")  # written by setup.py into wheels
        return cls(
            version=version("segstream"),
            revision=recorded.read_text().strip() if recorded.is_file() else "unknown",
            python=platform.python_version(),
            torch=version("torch"),
        )
