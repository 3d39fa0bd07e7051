"""The report as a page: one file, nothing loaded from elsewhere, no script."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from segstream.clips.report import ClipReport

WIDTH: Final = 960
SHARES_HEIGHT: Final = 300
STEADINESS_HEIGHT: Final = 140
_NUM_TICKS = 6


@dataclass(frozen=True, slots=True)
class Area:
    """A class's band in the chart of shares, as an SVG path."""

    name: str
    colour: str
    path: str


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark on the time axis."""

    x: float
    text: str


def report_page(report: ClipReport, video: str = "overlay") -> str:
    """HTML, with the overlay at ``video``. The clip's own words, as its name, are escaped."""
    seen = sorted((each for each in report.classes if each.share > 0), key=lambda each: -each.share)
    return _template().render(
        report=report,
        video=video,
        seen=seen,
        areas=share_areas(report),
        line=consistency_line(report.consistencies),
        ticks=_ticks(report),
        width=WIDTH,
        shares_height=SHARES_HEIGHT,
        steadiness_height=STEADINESS_HEIGHT,
        duration=_clock(report.num_frames / report.frames_per_second),
    )


def share_areas(report: ClipReport) -> list[Area]:
    """The classes seen, stacked from the bottom in train-id order."""
    num_points = len(report.timeline_seconds)
    floor = [0.0] * num_points
    areas = []
    for each in report.classes:
        if not each.share:
            continue
        top = [low + share for low, share in zip(floor, each.shares, strict=True)]
        points = [*_points(top), *reversed(_points(floor))]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points) + "Z"
        areas.append(Area(each.name, each.colour, path))
        floor = top
    return areas


def consistency_line(values: Sequence[float | None]) -> str:
    """An SVG path through the known values, 0 to 1, broken where there is none."""
    path, is_drawing = [], False
    for index, value in enumerate(values):
        if value is None:
            is_drawing = False
            continue
        x, y = _x(index, len(values)), (1 - value) * STEADINESS_HEIGHT
        path.append(f"{'L' if is_drawing else 'M'}{x:.1f} {y:.1f}")
        is_drawing = True
    return "".join(path)


def _points(shares: Sequence[float]) -> list[tuple[float, float]]:
    # A clip of one frame still gets an area: from edge to edge.
    if len(shares) == 1:
        shares = [shares[0], shares[0]]
    count = len(shares)
    return [(_x(index, count), (1 - share) * SHARES_HEIGHT) for index, share in enumerate(shares)]


def _x(index: int, count: int) -> float:
    return WIDTH * index / max(1, count - 1)


def _ticks(report: ClipReport) -> list[Tick]:
    duration = report.num_frames / report.frames_per_second
    return [
        Tick(WIDTH * index / (_NUM_TICKS - 1), _clock(duration * index / (_NUM_TICKS - 1)))
        for index in range(_NUM_TICKS)
    ]


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("segstream.clips"), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("report.html")
