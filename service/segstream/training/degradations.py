"""What spoils frames: sensor noise, blur, compression, darkness. Images are RGB uint8 (H, W, 3)."""

from collections.abc import Callable

import cv2
import numpy as np

from segstream.media.images import Image

Spoil = Callable[[Image, np.random.Generator], Image]

_QUALITY = int(cv2.IMWRITE_JPEG_QUALITY)


def noise(image: Image, sigma: float, rng: np.random.Generator) -> Image:
    """Gaussian noise of this standard deviation, in grey levels, on each channel by itself."""
    grain = rng.standard_normal(image.shape, np.float32)
    return _clipped(image + np.float32(sigma) * grain)


def blur(image: Image, side: int) -> Image:
    """Out of focus: a Gaussian of ``side x side`` pixels; odd."""
    return np.asarray(cv2.GaussianBlur(image, (side, side), 0), np.uint8)


def motion_blur(image: Image, length: int, degrees: float) -> Image:
    """The mean along a line of ``length`` pixels in this direction."""
    kernel = np.zeros((length, length), np.float32)
    kernel[length // 2] = 1
    centre = ((length - 1) / 2, (length - 1) / 2)
    kernel = cv2.warpAffine(
        kernel, cv2.getRotationMatrix2D(centre, degrees, 1), (length, length)
    ).astype(np.float32)
    return np.asarray(
        cv2.filter2D(image, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REFLECT_101), np.uint8
    )


def jpeg(image: Image, quality: int) -> Image:
    """Through JPEG and back; quality 1..100."""
    coded = cv2.imencode(".jpg", image[..., ::-1], [_QUALITY, quality])[1]
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)
    assert decoded is not None
    return np.ascontiguousarray(decoded[..., ::-1], np.uint8)


def darken(image: Image, gamma: float, sigma: float, rng: np.random.Generator) -> Image:
    """Low light: ``255 (x / 255) ** gamma`` under the noise of a sensor."""
    return noise(_clipped(255 * (image.astype(np.float32) / 255) ** gamma), sigma, rng)


def blank(image: Image) -> Image:
    """Black."""
    return np.zeros_like(image)


def occlude(image: Image, rng: np.random.Generator) -> Image:
    """One to three flat patches, each up to a third of the frame's sides."""
    spoilt = image.copy()
    height, width = image.shape[:2]
    for _ in range(rng.integers(1, 4)):
        h, w = (int(rng.integers(side // 12, side // 3)) for side in (height, width))
        y, x = int(rng.integers(0, height - h)), int(rng.integers(0, width - w))
        spoilt[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return spoilt


def any_kind(rng: np.random.Generator) -> Spoil:
    """One kind at random, at a random strength, for training.

    Frames that it spoils have noise, directions and patches of their own.
    """
    kind = rng.choice(7, p=[0.25, 0.2, 0.2, 0.1, 0.1, 0.08, 0.07])
    if kind == 0:
        sigma = rng.uniform(8, 60)
        return lambda image, rng: noise(image, sigma, rng)
    if kind == 1:
        length = 2 * int(rng.integers(4, 11)) + 1
        return lambda image, rng: motion_blur(image, length, rng.uniform(0, 180))
    if kind == 2:
        side, sigma = 2 * int(rng.integers(2, 8)) + 1, rng.uniform(15, 70)
        return lambda image, rng: noise(blur(image, side), sigma, rng)
    if kind == 3:
        quality = int(rng.integers(5, 26))
        return lambda image, rng: jpeg(image, quality)
    if kind == 4:
        gamma, sigma = rng.uniform(1.5, 3.2), rng.uniform(2, 8)
        return lambda image, rng: darken(image, gamma, sigma, rng)
    return (lambda image, rng: blank(image)) if kind == 5 else occlude


def _clipped(image: np.ndarray) -> Image:
    return np.asarray(np.clip(image + 0.5, 0, 255), np.uint8)
