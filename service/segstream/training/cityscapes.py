"""Cityscapes as it is downloaded: ``leftImg8bit_sequence/``, or ``leftImg8bit/``, and ``gtFine/``.

::

    leftImg8bit_sequence/SPLIT/CITY/CITY_SEQUENCE_FRAME_leftImg8bit.png   30 frames, 17 Hz
    gtFine/SPLIT/CITY/CITY_SEQUENCE_FRAME_gtFine_labelIds.png             of the 20th of them

Labels are taken from ``labelTrainIds`` images where they lie, else made of ``labelIds`` by the
table of cityscapesScripts (Cordts et al., CVPR 2016).
"""

import re
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import CITYSCAPES, IGNORE_INDEX
from segstream.training.samples import (
    LazySamples,
    Sample,
    read_image,
    read_labels,
    train_id_table,
)

_HERTZ = 17.0
_NUM_IDS = 34
_FRAME = re.compile(r"(?P<city>[^_]+)_(?P<sequence>\d+)_(?P<frame>\d+)_leftImg8bit")
_SEQUENCES, _STILLS = "leftImg8bit_sequence", "leftImg8bit"


def load_cityscapes(root: Path, split: str, *, past_length: int = 0) -> LazySamples:
    """The labelled frames of a split, each with the frames before it where sequences lie.

    Raises NotFoundError for a missing folder, a labelled frame that is not there, and, with
    ``past_length``, a labelled frame with fewer neighbours before it; InvalidInputError for a name
    that is not of Cityscapes' form, when a sample is read for unknown ids and another size.
    """
    frames = next(
        (root / name / split for name in (_SEQUENCES, _STILLS) if (root / name / split).is_dir()),
        None,
    )
    labels = root / "gtFine" / split
    if frames is None or not labels.is_dir():
        missing = labels if frames else root / _SEQUENCES / split
        raise NotFoundError(f"Cityscapes split {split!r}: no folder {missing}")
    found = sorted(labels.glob("*/*_gtFine_labelIds.png"))
    if not found:
        raise NotFoundError(f"Cityscapes split {split!r}: no *_gtFine_labelIds.png in {labels}")
    return LazySamples([_loader(frames, path, past_length) for path in found])


def label_id_table() -> npt.NDArray[np.int16]:
    """Train id of each label id, 255 for those that do not count, -1 for what is no id."""
    table = np.full(256, -1, np.int16)
    table[:_NUM_IDS] = IGNORE_INDEX
    table[[label.label_id for label in CITYSCAPES.labels]] = np.arange(CITYSCAPES.num_classes)
    return table


def _loader(frames: Path, label_path: Path, past_length: int) -> partial[Sample]:
    stem = label_path.name.removesuffix("_gtFine_labelIds.png")
    match = _FRAME.fullmatch(f"{stem}_leftImg8bit")
    if match is None:
        raise InvalidInputError(
            f"{label_path}: name is not CITY_SEQUENCE_FRAME_gtFine_labelIds.png"
        )
    folder, number, digits = frames / match["city"], int(match["frame"]), len(match["frame"])
    clip = f"{match['city']}_{match['sequence']}"
    path = folder / f"{stem}_leftImg8bit.png"
    if not path.is_file():
        raise NotFoundError(f"{label_path}: no frame {path}")
    past: list[Path] = []
    for before in range(number - 1, -1, -1):
        neighbour = folder / f"{clip}_{before:0{digits}}_leftImg8bit.png"
        if not neighbour.is_file():
            break
        past.insert(0, neighbour)
    if len(past) < past_length:
        raise NotFoundError(
            f"{path}: {len(past)} frames lie before it in {folder}, {past_length} are needed; they "
            f"come with {_SEQUENCES}"
        )
    train_ids = label_path.with_name(f"{stem}_gtFine_labelTrainIds.png")
    return partial(
        _load, path, label_path, train_ids, f"{clip}_{number}", number / _HERTZ, tuple(past)
    )


def _load(
    path: Path, ids: Path, train_ids: Path, clip: str, seconds: float, past: tuple[Path, ...]
) -> Sample:
    image = read_image(path)
    if train_ids.is_file():
        label = read_labels(train_ids, train_id_table(CITYSCAPES), image.shape[:2])
    else:
        label = read_labels(ids, label_id_table(), image.shape[:2])
    return Sample(path.stem.removesuffix("_leftImg8bit"), image, label, clip, seconds, past)
