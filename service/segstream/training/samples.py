"""Labelled frames, whatever data set they are of."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import cv2
import numpy as np
import numpy.typing as npt

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import IGNORE_INDEX, LabelSet
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap

_LONGEST_GAP_SECONDS = 0.2
"""Frames further apart than this are stills of a drive, not a video."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A labelled frame: RGB ``(H, W, 3)`` uint8 and train ids ``(H, W)`` uint8 (255 = ignore).

    ``clip`` tells drives apart, ``seconds`` is the frame's time in its clip, None if unknown.
    ``past`` are the images before it in the clip, oldest first, labelled or not.
    """

    name: str
    image: Image
    label: LabelMap
    clip: str = ""
    seconds: float | None = None
    past: tuple[Path, ...] = ()

    def is_followed_by(self, other: "Sample") -> bool:
        """Whether ``other`` is the next frame of the same video."""
        if self.clip != other.clip or self.seconds is None or other.seconds is None:
            return False
        return 0 < other.seconds - self.seconds <= _LONGEST_GAP_SECONDS


class LazySamples(Sequence[Sample]):
    """Samples that are read when they are asked for, and not kept."""

    def __init__(self, loaders: Sequence[Callable[[], Sample]]) -> None:
        self._loaders = loaders

    def __len__(self) -> int:
        return len(self._loaders)

    def __iter__(self) -> Iterator[Sample]:
        return (load() for load in self._loaders)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "LazySamples": ...
    def __getitem__(self, index: int | slice) -> "Sample | LazySamples":
        if isinstance(index, slice):
            return LazySamples(self._loaders[index])
        return self._loaders[index]()


def read_image(path: Path) -> Image:
    """RGB ``(H, W, 3)``. Raises NotFoundError and InvalidInputError."""
    return np.ascontiguousarray(_read(path, cv2.IMREAD_COLOR)[..., ::-1])


def read_labels(path: Path, table: npt.NDArray[np.int16], size: tuple[int, ...]) -> LabelMap:
    """Train ids ``(H, W)`` of a label image of this size: ``table[value]``, 255 to be ignored.

    ``table`` has 256 places; -1 marks a value that must not be there. Raises NotFoundError and
    InvalidInputError.
    """
    values = _read(path, cv2.IMREAD_GRAYSCALE)
    if values.shape != size:
        raise InvalidInputError(f"{path}: size {values.shape} differs from the frame's {size}")
    label = table[values]
    if label.min() < 0:
        unknown = sorted(set(values[label < 0].tolist()))
        known = [value for value in range(256) if table[value] >= 0]
        raise InvalidInputError(
            f"{path}: label {', '.join(map(str, unknown[:5]))} is none of {_spans(known)}"
        )
    return label.astype(np.uint8)


def train_id_table(label_set: LabelSet) -> npt.NDArray[np.int16]:
    """The table of label images that hold train ids, 255 = ignore."""
    table = np.full(256, -1, np.int16)
    table[: label_set.num_classes] = np.arange(label_set.num_classes)
    table[IGNORE_INDEX] = IGNORE_INDEX
    return table


def check_label_set(label_set: LabelSet, wanted: LabelSet) -> None:
    """Raise InvalidInputError for a network whose classes are not those of the data set."""
    if label_set != wanted:
        raise InvalidInputError(
            f"the checkpoint knows the classes of {label_set.name}, not of {wanted.name}"
        )


def _spans(values: list[int]) -> str:
    """``0..11, 255``."""
    spans: list[list[int]] = []
    for value in values:
        if spans and value == spans[-1][-1] + 1:
            spans[-1].append(value)
        else:
            spans.append([value])
    return ", ".join(f"{s[0]}..{s[-1]}" if len(s) > 1 else str(s[0]) for s in spans)


def _read(path: Path, flags: int) -> npt.NDArray[np.uint8]:
    if not path.is_file():
        raise NotFoundError(f"no image {path}")
    image = cv2.imread(str(path), flags)
    if image is None:
        raise InvalidInputError(f"{path} is not an image")
    return np.asarray(image, dtype=np.uint8)
