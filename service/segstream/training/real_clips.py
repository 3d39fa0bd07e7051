"""Clips as the camera took them: a labelled frame and those before it."""

from pathlib import Path

import cv2
import numpy as np

from segstream.errors import InvalidInputError, NotFoundError
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.training.clip_simulation import ClipSimulation
from segstream.training.samples import Sample, read_image


def real_clip(
    sample: Sample, length: int, simulation: ClipSimulation, rng: np.random.Generator
) -> tuple[Image, Image, LabelMap]:
    """A clip ``(length, h, w, 3)``, its last frame unspoilt ``(h, w, 3)``, its labels ``(h, w)``.

    One crop and one colour for all frames; each is spoilt as often as ``simulation`` says. A frame
    with fewer neighbours before it repeats the oldest one. Raises NotFoundError for a frame without
    any, and InvalidInputError for a neighbour of another size.
    """
    if not sample.past:
        raise NotFoundError(
            f"{sample.name}: no frame lies before it, so that no real clip ends in it; use "
            "simulated clips, or leave the first frame of each clip without a label"
        )
    view, colour = simulation.crop.view(sample, rng)
    past = sample.past[-(length - 1) :]
    past = (past[0],) * (length - 1 - len(past)) + past
    images = [*(_neighbour(sample, path) for path in past), sample.image]
    size = (simulation.crop.width, simulation.crop.height)
    frames = []
    for image, spoil in zip(images, simulation.spoils(length, rng), strict=True):
        crop = cv2.warpAffine(
            image, view[:2], size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        frame = colour.on(np.asarray(crop, np.uint8), rng)
        frames.append(spoil(frame, rng) if spoil else frame)
    return np.stack(frames), frame, simulation.crop.label(sample, view)


def _neighbour(sample: Sample, path: Path) -> Image:
    image = read_image(path)
    if image.shape != sample.image.shape:
        raise InvalidInputError(
            f"{path}: size {image.shape[:2]} differs from that of {sample.name}, "
            f"{sample.image.shape[:2]}"
        )
    return image
