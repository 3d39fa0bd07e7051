"""The figures of an evaluation as pictures."""

import heapq
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from segstream.errors import UnavailableError
from segstream.label_sets import IGNORE_INDEX, LabelSet
from segstream.media.images import Image
from segstream.media.overlay import Tile, contact_sheet, draw_overlay
from segstream.training.evaluation import FrameResult
from segstream.training.side_by_side import Way

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_NUM_EXTREMES = 3
_METRICS = (("miou", "mIoU"), ("tc", "TC"), ("mvc8", "mVC8"))
_COLOURS = {
    "single_frame": "#9aa5b1",
    "logit_ema": "#e0a458",
    "control": "#7aa874",
    "memory": "#2f6690",
}


class Extremes:
    """Keeps the worst and the best frames of a run, by the mIoU of its last way."""

    def __init__(self) -> None:
        self._worst: list[tuple[float, int, FrameResult]] = []
        self._best: list[tuple[float, int, FrameResult]] = []
        self.miou: dict[Way, list[float]] = {}

    def add(self, result: FrameResult) -> None:
        for way, value in result.miou.items():
            self.miou.setdefault(way, []).append(value)
        value = list(result.miou.values())[-1]
        place = len(next(iter(self.miou.values())))
        for heap, key in ((self._worst, -value), (self._best, value)):
            heapq.heappush(heap, (key, place, result))
            if len(heap) > _NUM_EXTREMES:
                heapq.heappop(heap)

    @property
    def worst(self) -> list[FrameResult]:
        """The worst one first."""
        return [result for _, _, result in sorted(self._worst, key=lambda item: -item[0])]

    @property
    def best(self) -> list[FrameResult]:
        """The best one first."""
        return [result for _, _, result in sorted(self._best, key=lambda item: -item[0])]


def check_plotting() -> None:
    """Raise UnavailableError without matplotlib."""
    if find_spec("matplotlib") is None:
        raise UnavailableError("plots need matplotlib: pip install 'segstream[bench]'")


def draw_plots(
    result: Mapping[str, Any], extremes: Extremes, label_set: LabelSet, folder: Path
) -> list[Path]:
    """Write ``classes.png``, ``frames.png``, ``worst.png``, ``best.png`` and, where degraded frames
    were evaluated, ``degraded.png``; ``folder`` is made. Returns what was written."""
    folder.mkdir(exist_ok=True)
    written = [
        _plot_classes(result, folder / "classes.png"),
        _plot_frames(extremes, folder / "frames.png"),
    ]
    if result["degraded"]:
        written.append(_plot_degraded(result, folder / "degraded.png"))
    for name, frames in (("worst", extremes.worst), ("best", extremes.best)):
        page = _sheet(frames, label_set, f"{name} frames of {result['dataset']} {result['split']}")
        path = folder / f"{name}.png"
        cv2.imwrite(str(path), page[..., ::-1])
        written.append(path)
    return written


def _plot_classes(result: Mapping[str, Any], path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    axes = figure.add_subplot()
    models = {name: model for name, model in result["models"].items() if model}
    names = list(next(iter(models.values()))["iou"])
    series = {
        f"{name}: mIoU {model['miou']:.1f}": (name, list(model["iou"].values()))
        for name, model in models.items()
    }
    _draw_bars(axes, names, series)
    axes.set_ylabel("IoU, percent")
    axes.set_title(f"{result['dataset']} {result['split']}, {result['frames']} frames", loc="left")
    figure.savefig(path, dpi=110)
    return path


def _plot_frames(extremes: Extremes, path: Path) -> Path:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for way, values in extremes.miou.items():
        axes.plot(values, label=way.value, color=_COLOURS[way.value], linewidth=1.4)
    axes.set_xlabel("frame")
    axes.set_ylabel("mIoU of the frame, percent")
    axes.legend(frameon=False, ncols=4, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    return path


def _plot_degraded(result: Mapping[str, Any], path: Path) -> Path:
    from matplotlib.figure import Figure

    rows = {"clean": result["models"]} | result["degraded"]
    figure = Figure(figsize=(12, 9), layout="constrained")
    for place, (key, title) in enumerate(_METRICS, start=1):
        axes = figure.add_subplot(len(_METRICS), 1, place)
        ways = [way for way, model in result["models"].items() if model]
        series = {way: (way, [rows[row][way][key] or 0.0 for row in rows]) for way in ways}
        _draw_bars(axes, list(rows), series)
        axes.set_ylabel(f"{title}, percent")
    figure.savefig(path, dpi=110)
    return path


def _draw_bars(
    axes: "Axes", names: Sequence[str], series: Mapping[str, tuple[str, Sequence[float]]]
) -> None:
    """Groups of bars, one for each name; ``series`` by legend: the model and its values."""
    width = 0.8 / len(series)
    places = np.arange(len(names))
    for number, (legend, (model, values)) in enumerate(series.items()):
        axes.bar(
            places - 0.4 + (number + 0.5) * width,
            values,
            width,
            label=legend,
            color=_COLOURS[model],
        )
    axes.set_xticks(places, names, rotation=30, ha="right", fontsize=8)
    axes.set_ylim(0, 118)  # percent, and room for the legend
    axes.legend(frameon=False, ncols=4, fontsize=9, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def _sheet(frames: Sequence[FrameResult], label_set: LabelSet, title: str) -> Image:
    tiles, counts = [], np.zeros(256, np.int64)
    for frame in frames:
        sample = frame.sample
        counts += np.bincount(sample.label.ravel(), minlength=256)
        tiles.append(
            Tile(f"{sample.name}: labels", _overlay(sample.image, sample.label, label_set))
        )
        ways = list(frame.label_maps)
        for way in dict.fromkeys((ways[0], ways[-1])):
            overlay = _overlay(sample.image, frame.label_maps[way], label_set)
            tiles.append(Tile(f"{way.value}: mIoU {frame.miou[way]:.1f}", overlay))
    counts[IGNORE_INDEX] = 0
    shares = counts[: label_set.num_classes] / max(1, counts.sum())
    columns = len(tiles) // len(frames)
    return contact_sheet(tiles, label_set, shares.tolist(), title=title, columns=columns)


def _overlay(image: Image, label_map: np.ndarray, label_set: LabelSet) -> Image:
    return draw_overlay(image, np.asarray(label_map, np.uint8), label_set)
