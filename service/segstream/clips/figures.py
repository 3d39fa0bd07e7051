"""What a clip's label maps and times come to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict

from segstream.label_sets import LabelSet
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.media.temporal_consistency import View, grey_of, temporal_consistency


@dataclass(frozen=True, slots=True)
class ClassShare:
    """A class that was seen, and its part of all pixels of the clip."""

    name: str
    share: float


@dataclass(frozen=True, slots=True)
class Percentiles:
    """How long a stage took over the frames of the clip."""

    p50_seconds: float
    p95_seconds: float
    p99_seconds: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Percentiles":
        """Of at least one value."""
        return cls(*(float(value) for value in np.percentile(seconds, (50, 95, 99))))


class FrameFigures(BaseModel):
    """One frame: pixels of each train id (the last: of none), seconds of each stage.

    ``consistency`` is the temporal consistency with the frame before; None where there is none or
    nothing stood still.
    """

    model_config = ConfigDict(frozen=True)

    num_pixels: list[int]
    stage_seconds: dict[str, float]
    consistency: float | None = None


def count_pixels(label_map: LabelMap, num_classes: int) -> list[int]:
    """Pixels of each train id, then of all that have none."""
    counts = np.bincount(label_map.ravel(), minlength=256)
    seen = [int(count) for count in counts[:num_classes]]
    return [*seen, int(label_map.size) - sum(seen)]


class ConsistencyMeter:
    """Measures the temporal consistency of a clip, frame by frame."""

    def __init__(self) -> None:
        self._previous: View | None = None

    def measure(self, image: Image, label_map: LabelMap) -> float | None:
        """Of this frame, RGB (H, W, 3), and the one before; see FrameFigures."""
        before, self._previous = self._previous, View(grey_of(image), label_map)
        return None if before is None else temporal_consistency(before, self._previous)


def class_shares(num_pixels: Sequence[int]) -> list[float]:
    """Each class's part of all pixels, in train-id order, of counts as ``count_pixels`` gives."""
    total = max(1, sum(num_pixels))
    return [count / total for count in num_pixels[:-1]]


def classes_seen(num_pixels: Sequence[int], label_set: LabelSet) -> tuple[ClassShare, ...]:
    """The classes that have pixels, largest first."""
    names = (label.name for label in label_set.labels)
    pairs = zip(names, class_shares(num_pixels), strict=True)
    seen = [ClassShare(name, share) for name, share in pairs if share]
    return tuple(sorted(seen, key=lambda each: -each.share))


def stage_percentiles(seconds: Mapping[str, Sequence[float]]) -> dict[str, Percentiles]:
    """By stage."""
    return {name: Percentiles.of(values) for name, values in seconds.items()}
