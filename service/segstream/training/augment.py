"""Random views of a labelled still: geometry for the single frame, camera motion for clips."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from segstream.label_sets import IGNORE_INDEX
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.training.camvid import Sample

Matrix = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Draws crops of ``height x width`` pixels; scales, drifts and colours vary within bounds."""

    height: int
    width: int
    min_scale: float = 0.6
    max_scale: float = 1.8
    max_drift: float = 6.0
    spoilt_share: float = 0.2

    def still(self, sample: Sample, rng: np.random.Generator) -> tuple[Image, LabelMap]:
        """One crop ``(h, w, 3)`` and its labels ``(h, w)``."""
        view = self._view(sample, rng)
        image, label = self._warp(sample, view)
        return _recolour(image, *_colour(rng), rng), label

    def clip(self, sample: Sample, length: int, rng: np.random.Generator) -> tuple[Image, LabelMap]:
        """A simulated clip ``(length, h, w, 3)`` that ends in the labelled crop ``(h, w)``.

        The camera drifts, zooms and rolls at a constant pace. Noise varies by frame, and now and
        then a frame is spoilt, the last one too, so that the memory learns what it is good for.
        """
        view = self._view(sample, rng)
        colour = _colour(rng)
        drift = rng.uniform(-self.max_drift, self.max_drift, 2)
        zoom, roll = rng.normal(0, 0.006), rng.normal(0, 0.3)
        frames = []
        for age in range(length - 1, -1, -1):
            jitter = rng.normal(0, 0.5, 2) if age else np.zeros(2)
            motion = _motion(self.width, self.height, age * drift + jitter, age * zoom, age * roll)
            image, label = self._warp(sample, motion @ view)
            image = _recolour(image, *colour, rng)
            frames.append(_spoil(image, rng) if rng.random() < self.spoilt_share else image)
        return np.stack(frames), label

    def _view(self, sample: Sample, rng: np.random.Generator) -> Matrix:
        """A random scale, flip and position of the crop, as a 3x3 matrix from sample to crop."""
        height, width = sample.label.shape
        scale = np.exp(rng.uniform(np.log(self.min_scale), np.log(self.max_scale)))
        flip = -1.0 if rng.random() < 0.5 else 1.0
        x = _place(width * scale, self.width, rng)
        y = _place(height * scale, self.height, rng)
        x = x + width * scale if flip < 0 else x
        return np.array([[flip * scale, 0, x], [0, scale, y], [0, 0, 1]])

    def _warp(self, sample: Sample, matrix: Matrix) -> tuple[Image, LabelMap]:
        size = (self.width, self.height)
        image = cv2.warpAffine(
            sample.image,
            matrix[:2],
            size,
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        label = cv2.warpAffine(
            sample.label,
            matrix[:2],
            size,
            flags=cv2.INTER_NEAREST,
            borderMode=cv2.BORDER_CONSTANT,
            borderValue=(IGNORE_INDEX,),
        )
        return np.asarray(image, np.uint8), np.asarray(label, np.uint8)


def _place(size: float, crop: int, rng: np.random.Generator) -> float:
    """Offset of an image edge of ``size`` pixels in a crop: inside it, or centred at random."""
    slack = crop - size
    return float(rng.uniform(min(slack, 0), max(slack, 0)))


def _motion(width: int, height: int, shift: Matrix, zoom: float, roll_degrees: float) -> Matrix:
    centre = (width / 2, height / 2)
    matrix = np.eye(3)
    matrix[:2] = cv2.getRotationMatrix2D(centre, roll_degrees, 1 + zoom)
    matrix[:2, 2] += shift
    return matrix


def _colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """Contrast, brightness and saturation."""
    contrast, saturation = np.exp(rng.normal(0, 0.2, 2))
    return float(contrast), float(rng.normal(0, 0.08)), float(saturation)


def _recolour(
    image: Image,
    contrast: float,
    brightness: float,
    saturation: float,
    rng: np.random.Generator,
) -> Image:
    x = image.astype(np.float32)
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * saturation
    x = (x - 110) * contrast + 110 + 255 * brightness
    x += rng.normal(0, rng.uniform(0, 4), x.shape).astype(np.float32)
    return np.asarray(np.clip(x, 0, 255), np.uint8)


def _spoil(image: Image, rng: np.random.Generator) -> Image:
    """The image under heavy noise, out of focus, or almost dark."""
    kind = rng.integers(3)
    if kind == 0:
        noisy = image + rng.normal(0, rng.uniform(10, 50), image.shape)
        return np.asarray(np.clip(noisy, 0, 255), np.uint8)
    if kind == 1:
        return np.asarray(cv2.GaussianBlur(image, (0, 0), rng.uniform(2, 5)), np.uint8)
    return np.asarray(image * rng.uniform(0.0, 0.3), np.uint8)
