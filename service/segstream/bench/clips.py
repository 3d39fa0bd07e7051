"""The video that benchmarks and drills are run on."""

import argparse
from pathlib import Path
from typing import Final

_DEFAULTS: Final = ("../shared/clips/camvid_val_480x360_15fps.mp4", "demo/bikes.mp4")


def add_clip(parser: argparse.ArgumentParser, root: Path) -> None:
    """The option ``--clip``; ``root``, the repository, is where its default is looked for.

    Parsing ends the program with one line where there is no such file.
    """
    clips = [root / name for name in _DEFAULTS]
    default = next(filter(Path.exists, clips), clips[-1])
    parser.add_argument("--clip", type=_video, default=str(default))  # as text: it is checked too


def _video(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"no video {path}: name another, or run 'make demo' once")
    return path
