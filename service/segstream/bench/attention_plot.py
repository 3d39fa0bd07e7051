"""Draws what ``segstream bench attention`` found."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from segstream.bench.attention import (
    HALF_KERNEL,
    KERNEL,
    SGEMM,
    TRAINED_FALLBACK,
    TRAINED_KERNEL,
    BenchResult,
    CaseResult,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS = (KERNEL, HALF_KERNEL, TRAINED_KERNEL)
_COLOUR_OF_OURS, _COLOUR_OF_OTHERS = "#cc6633", "#8899aa"
_COLUMNS = 2


class _Bar(NamedTuple):
    name: str
    median_ms: float
    times_kernel: float | None

    @property
    def label(self) -> str:
        time = f"{self.median_ms:,.0f}" if self.median_ms >= 100 else f"{self.median_ms:.1f}"
        is_ours = self.name in _OURS or self.times_kernel is None
        return f"{time} ms" if is_ours else f"{time} ms  ({self.times_kernel:.1f} x)"


class _Panel(NamedTuple):
    title: str
    bars: list[_Bar]


def plot(result: BenchResult, path: Path) -> None:
    """Draw the medians of every case into an image file that passes ``plotting.check_plotting``."""
    from matplotlib.figure import Figure

    panels = [panel for case in result["cases"] for panel in _panels_of(case)]
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(11, 0.5 + 2.6 * rows), layout="constrained")
    figure.suptitle(
        f"Local memory attention on a CPU: {result['threads']} threads, "
        f"{result['instruction_set']}; medians, and how many times this kernel's (log scale)",
        fontsize=11,
    )
    places = max(len(panel.bars) for panel in panels)
    for index, panel in enumerate(panels, start=1):
        _draw(figure.add_subplot(rows, _COLUMNS, index), panel, places)
    figure.savefig(path, dpi=110)


def _panels_of(case: CaseResult) -> list[_Panel]:
    """The read-out of a case and, where it was measured, its training."""
    trained = (TRAINED_KERNEL, TRAINED_FALLBACK)
    bars = [
        _Bar(row["contender"], row["median_ms"], row["times_kernel"])
        for row in case["contenders"]
        if row["median_ms"] is not None and row["contender"] != SGEMM
    ]
    share = case["summary"]["kernel_of_sgemm"]
    rate = "" if share is None else f": {share:.2f} of sgemm"
    panels = [
        _Panel(case["case"] + rate, [bar for bar in bars if bar.name not in trained]),
        _Panel(f"{case['case']}: training", [bar for bar in bars if bar.name in trained]),
    ]
    return [panel for panel in panels if panel.bars]


def _draw(axes: "Axes", panel: _Panel, places: int) -> None:
    """Ours on top, then the fastest, with room for as many bars as the fullest panel has."""
    ours = [bar for bar in panel.bars if bar.name in _OURS]
    others = [bar for bar in panel.bars if bar.name not in _OURS]
    bars = [*sorted(others, key=lambda bar: bar.median_ms, reverse=True), *reversed(ours)]
    medians = [bar.median_ms for bar in bars]
    colours = [_COLOUR_OF_OURS if bar.name in _OURS else _COLOUR_OF_OTHERS for bar in bars]
    drawn = axes.barh([bar.name for bar in bars], medians, color=colours)
    axes.bar_label(drawn, [bar.label for bar in bars], padding=3, fontsize=9)
    axes.set_ylim(len(bars) - 0.5 - places, len(bars) - 0.5)
    axes.set_xscale("log")
    axes.set_xlim(min(medians) / 3, max(medians) * (max(medians) / min(medians)) ** 0.5 * 3)
    axes.tick_params(axis="y", labelsize=9, length=0)
    axes.xaxis.set_visible(False)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
    axes.set_title(panel.title, fontsize=10, loc="left")
