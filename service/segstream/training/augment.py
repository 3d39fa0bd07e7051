"""Random views of a labelled still: where the crop lies, and its colours."""

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from segstream.label_sets import IGNORE_INDEX
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.training.samples import Sample

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Colour:
    """Contrast and saturation as factors, brightness as a share of white.

    ``max_noise``: of the sensor, in grey levels.
    """

    contrast: float
    brightness: float
    saturation: float
    max_noise: float

    @classmethod
    def random(cls, rng: np.random.Generator, variation: float) -> "Colour":
        """Of a camera at another time of day; with a variation of 0, of the one that there was."""
        contrast, saturation = np.exp(variation * rng.normal(0, 0.2, 2))
        brightness = variation * rng.normal(0, 0.08)
        return cls(float(contrast), float(brightness), float(saturation), 4 * variation)

    def with_exposure(self, change: float) -> "Colour":
        """The same, brighter by this share of white."""
        return replace(self, brightness=self.brightness + change)

    def on(self, image: Image, rng: np.random.Generator) -> Image:
        """The image ``(h, w, 3)`` in these colours, under the noise of a sensor in daylight."""
        x = image.astype(np.float32)
        grey = x.mean(axis=2, keepdims=True)
        x = grey + (x - grey) * self.saturation
        x = (x - 110) * self.contrast + 110 + 255 * self.brightness
        x += np.float32(rng.uniform(0, self.max_noise)) * rng.standard_normal(x.shape, np.float32)
        return np.asarray(np.clip(x, 0, 255), np.uint8)


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Draws crops of ``height x width`` pixels; scale, place, flip and colours vary.

    ``colour_variation`` is 1 for other times of day, 0 for the colours that the frames have.
    """

    height: int
    width: int
    min_scale: float = 0.6
    max_scale: float = 1.8
    colour_variation: float = 1.0

    def still(self, sample: Sample, rng: np.random.Generator) -> tuple[Image, LabelMap]:
        """One crop ``(h, w, 3)`` and its labels ``(h, w)``."""
        view, colour = self.view(sample, rng)
        image = cv2.warpAffine(
            sample.image,
            view[:2],
            (self.width, self.height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        return colour.on(np.asarray(image), rng), self.label(sample, view)

    def view(self, sample: Sample, rng: np.random.Generator) -> tuple[Matrix, Colour]:
        """Scale, flip and position of a crop, as a 3x3 matrix from sample to crop; its colours."""
        height, width = sample.label.shape
        scale = np.exp(rng.uniform(np.log(self.min_scale), np.log(self.max_scale)))
        flip = -1.0 if rng.random() < 0.5 else 1.0
        x = _place(width * scale, self.width, rng)
        y = _place(height * scale, self.height, rng)
        x = x + width * scale if flip < 0 else x
        # Sizes count from the edges of pixels, cv2 from their centres.
        x, y = x + (flip * scale - 1) / 2, y + (scale - 1) / 2
        colour = Colour.random(rng, self.colour_variation)
        return np.array([[flip * scale, 0, x], [0, scale, y], [0, 0, 1]]), colour

    def label(self, sample: Sample, view: Matrix) -> LabelMap:
        """The labels ``(h, w)`` of the crop."""
        label = cv2.warpAffine(
            sample.label,
            view[:2],
            (self.width, self.height),
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(IGNORE_INDEX,),
        )
        return np.asarray(label, np.uint8)


def _place(size: float, crop: int, rng: np.random.Generator) -> float:
    """Offset of an image edge of ``size`` pixels in a crop: inside it, or centred at random."""
    slack = crop - size
    return float(rng.uniform(min(slack, 0), max(slack, 0)))
