"""Clips made of stills: a camera moves past a labelled frame, and frames are spoilt on the way.

The labelled frame is the last one. The frames before it are the same picture, seen by a camera
that drifts, zooms and rolls; a smooth random depth shifts near things more than far ones.
"""

from dataclasses import dataclass, field

import cv2
import numpy as np
import numpy.typing as npt

from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.training.augment import Augmentation, Colour
from segstream.training.degradations import Spoil, any_kind
from segstream.training.samples import Sample

Field = npt.NDArray[np.float32]
_DEPTH_KNOTS = 4


@dataclass(frozen=True, slots=True)
class ClipSimulation:
    """Draws clips of crops. Per frame: drift in pixels, zoom and exposure as shares, roll in °.

    ``spoilt_whole``: how often all frames of a clip are spoilt in the same way. ``spoilt_last`` and
    ``spoilt_past``: in the other clips, how often the last frame and each one before it is spoilt.
    """

    crop: Augmentation
    max_drift: float = 6.0
    zoom: float = 0.008
    roll: float = 0.3
    parallax: float = 0.35
    exposure: float = 0.02
    shake: float = 0.5
    spoilt_whole: float = 0.25
    spoilt_last: float = 0.35
    spoilt_past: float = 0.3

    def scene(self, sample: Sample, rng: np.random.Generator) -> "Scene":
        """A crop of the still and the camera's way to it."""
        return Scene(
            self,
            sample,
            *self.crop.view(sample, rng),
            drift=rng.uniform(-self.max_drift, self.max_drift, 2),
            zoom=float(rng.normal(0, self.zoom)),
            roll=float(rng.normal(0, self.roll)),
            exposure=float(rng.normal(0, self.exposure)),
            depth=_depth(self.crop.height, self.crop.width, self.parallax, rng),
        )

    def clip(
        self, sample: Sample, length: int, rng: np.random.Generator
    ) -> tuple[Image, Image, LabelMap]:
        """A clip ``(length, h, w, 3)``, its last frame unspoilt ``(h, w, 3)``, its labels."""
        scene = self.scene(sample, rng)
        spoils = self.spoils(length, rng)
        frames = [scene.frame(length - 1 - place, rng, spoil) for place, spoil in enumerate(spoils)]
        return np.stack(frames), scene.frame(0, rng), scene.label()

    def spoils(self, length: int, rng: np.random.Generator) -> list[Spoil | None]:
        """What spoils each frame of a clip, oldest first."""
        which, are_alike = self.which_are_spoilt(length, rng)
        if are_alike:
            return [any_kind(rng)] * length
        return [any_kind(rng) if is_spoilt else None for is_spoilt in which]

    def which_are_spoilt(self, length: int, rng: np.random.Generator) -> tuple[list[bool], bool]:
        """Of a clip's frames, oldest first; and whether all are, in the same way."""
        if rng.random() < self.spoilt_whole:
            return [True] * length, True
        shares = [self.spoilt_past] * (length - 1) + [self.spoilt_last]
        return [rng.random() < share for share in shares], False


@dataclass(frozen=True, slots=True)
class Scene:
    """One simulated clip, whose frames are drawn one by one."""

    simulation: ClipSimulation
    sample: Sample
    view: npt.NDArray[np.float64]
    colour: Colour
    drift: npt.NDArray[np.float64]
    zoom: float
    roll: float
    exposure: float
    depth: Field = field(repr=False)

    def frame(self, age: int, rng: np.random.Generator, spoil: Spoil | None = None) -> Image:
        """The frame ``(h, w, 3)`` that came ``age`` frames before the last one."""
        x, y = self._places(age, rng)
        image = cv2.remap(
            self.sample.image, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        coloured = self.colour.with_exposure(age * self.exposure).on(np.asarray(image), rng)
        return spoil(coloured, rng) if spoil else coloured

    def label(self) -> LabelMap:
        """The labels ``(h, w)`` of the last frame."""
        return self.simulation.crop.label(self.sample, self.view)

    def _places(self, age: int, rng: np.random.Generator) -> tuple[Field, Field]:
        """Where in the still each pixel of the frame lies."""
        crop = self.simulation.crop
        shift = age * self.drift + (rng.normal(0, self.simulation.shake, 2) if age else 0)
        motion = np.eye(3)
        motion[:2] = cv2.getRotationMatrix2D(
            (crop.width / 2, crop.height / 2), age * self.roll, 1 + age * self.zoom
        )
        inverse = np.linalg.inv(motion @ self.view)
        v, u = np.mgrid[: crop.height, : crop.width].astype(np.float32)
        u, v = u - self.depth * np.float32(shift[0]), v - self.depth * np.float32(shift[1])
        x, y = ((row[0] * u + row[1] * v + row[2]).astype(np.float32) for row in inverse[:2])
        return x, y


def _depth(height: int, width: int, parallax: float, rng: np.random.Generator) -> Field:
    """How much of the drift each pixel takes part in: 1 on average, smooth."""
    knots = rng.uniform(1 - parallax, 1 + parallax, (_DEPTH_KNOTS, _DEPTH_KNOTS))
    smooth = cv2.resize(knots.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return np.asarray(smooth, np.float32)
