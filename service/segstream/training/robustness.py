"""The rows of the robustness table: a drive spoilt in seven ways, each at three strengths.

All rows but the last three spoil pixels; where frames are ``alternate``, every frame but each n-th
is spoilt. A dropped frame never arrives: what was shown before stays, and nothing is memorised.
The same row spoils the same frame in the same way, whatever was evaluated before.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from segstream.errors import InvalidInputError
from segstream.media.images import Image
from segstream.training import degradations
from segstream.training.degradations import Spoil


@dataclass(frozen=True, slots=True)
class Degradation:
    """One row. ``period`` 1 spoils every frame, n leaves each n-th, the first one among them.

    ``spoil`` None drops the frame.
    """

    name: str
    spoil: Spoil | None
    period: int = 1

    def __call__(self, image: Image, index: int) -> Image | None:
        """The frame at place ``index`` of its clip as it arrives; None if it does not."""
        if self.period > 1 and index % self.period == 0:
            return image
        if self.spoil is None:
            return None
        return self.spoil(image, np.random.default_rng((zlib.crc32(self.name.encode()), index)))


def _noise(sigma: float) -> Spoil:
    return lambda image, rng: degradations.noise(image, sigma, rng)


def _motion_blur(length: int) -> Spoil:
    return lambda image, rng: degradations.motion_blur(image, length, rng.uniform(0, 180))


def _jpeg(quality: int) -> Spoil:
    return lambda image, rng: degradations.jpeg(image, quality)


def _low_light(gamma: float) -> Spoil:
    return lambda image, rng: degradations.darken(image, gamma, 4, rng)


def _corrupt(side: int, sigma: float) -> Spoil:
    return lambda image, rng: degradations.noise(degradations.blur(image, side), sigma, rng)


def _blank(image: Image, rng: np.random.Generator) -> Image:
    return degradations.blank(image)


DEGRADATIONS = (
    Degradation("noise10", _noise(10)),
    Degradation("noise25", _noise(25)),
    Degradation("noise40", _noise(40)),
    Degradation("motion_blur9", _motion_blur(9)),
    Degradation("motion_blur", _motion_blur(15)),
    Degradation("motion_blur25", _motion_blur(25)),
    Degradation("jpeg20", _jpeg(20)),
    Degradation("jpeg10", _jpeg(10)),
    Degradation("jpeg5", _jpeg(5)),
    Degradation("low_light_mild", _low_light(1.8)),
    Degradation("low_light", _low_light(2.5)),
    Degradation("low_light_harsh", _low_light(3.2)),
    Degradation("alternate_corrupt_mild", _corrupt(5, 25), 2),
    Degradation("alternate_corrupt", _corrupt(9, 50), 2),
    Degradation("alternate_corrupt_harsh", _corrupt(15, 80), 2),
    Degradation("alternate_blank", _blank, 2),
    Degradation("alternate_blank_2of3", _blank, 3),
    Degradation("alternate_blank_3of4", _blank, 4),
    Degradation("alternate_dropped", None, 2),
    Degradation("alternate_dropped_2of3", None, 3),
    Degradation("alternate_dropped_3of4", None, 4),
)


def rows_named(names: Iterable[str]) -> tuple[Degradation, ...]:
    """The rows of these names, in their own order. Raises InvalidInputError."""
    wanted, known = set(names), [row.name for row in DEGRADATIONS]
    if unknown := sorted(wanted - set(known)):
        raise InvalidInputError(f"row is {unknown[0]!r}, must be one of {known}", field="row")
    return tuple(row for row in DEGRADATIONS if row.name in wanted)
