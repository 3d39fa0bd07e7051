"""Draws what ``segstream bench service`` found."""

from pathlib import Path
from typing import TYPE_CHECKING

from segstream.bench.service import MODEL_STAGES, Objective, ServiceResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MODEL, _OVERHEAD, _LIMIT = "#8899aa", "#cc6633", "#333333"


def plot(result: ServiceResult, path: Path) -> None:
    """Stages of a frame and, where an objective was sought, latency over the number of sessions."""
    from matplotlib.figure import Figure

    objective = result.get("objective")
    figure = Figure(figsize=(11 if objective else 6.5, 3.6), layout="constrained")
    figure.suptitle(
        f"{result['streams']} sessions, {result['size']} {result['encoding']} over "
        f"{result['wire']}: {result['frames_per_second']:.1f} frames/s",
        fontsize=11,
    )
    columns = 2 if objective else 1
    _draw_stages(figure.add_subplot(1, columns, 1), result)
    if objective:
        _draw_objective(figure.add_subplot(1, columns, 2), objective)
    figure.savefig(path, dpi=120)


def _draw_stages(axes: "Axes", result: ServiceResult) -> None:
    stages = result["stage_ms"]
    names = list(stages)
    medians = [stages[name]["p50"] for name in names]
    beyond = [stages[name]["p99"] - stages[name]["p50"] for name in names]
    colours = [_MODEL if name in MODEL_STAGES else _OVERHEAD for name in names]
    drawn = axes.barh(
        names, medians, color=colours, xerr=[[0.0] * len(names), beyond], ecolor=_LIMIT
    )
    axes.bar_label(drawn, [f" {value:.1f}" for value in medians], padding=3, fontsize=9)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("ms: median, and up to the 99th percentile")
    axes.set_title("network grey, all else orange", fontsize=10, loc="left")


def _draw_objective(axes: "Axes", objective: Objective) -> None:
    trials = objective["trials"]
    sessions = [trial["streams"] for trial in trials]
    for name, style in (("p50", "--"), ("p95", "-")):
        values = [trial["latency_ms"][name] for trial in trials]  # type: ignore[literal-required]
        axes.plot(sessions, values, style, marker="o", color=_OVERHEAD, label=name)
    axes.axhline(objective["p95_ms"], color=_LIMIT, linewidth=1, linestyle=":", label="objective")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("sessions")
    axes.set_ylabel("latency, ms")
    axes.set_title(f"{objective['streams']} sessions hold the objective", fontsize=10, loc="left")
    axes.legend(frameon=False, fontsize=9)
