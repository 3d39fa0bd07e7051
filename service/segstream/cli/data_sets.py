"""Which data sets the commands know, and how they are loaded."""

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from segstream.label_sets import CAMVID, CITYSCAPES, LABEL_SETS, LabelSet

if TYPE_CHECKING:
    from segstream.training.samples import Sample

DATASET_HELP = (
    "camvid: train/, trainannot/, ... cityscapes: leftImg8bit_sequence/ or leftImg8bit/, gtFine/. "
    "folder: SPLIT/CLIP/frames/ and labels/, of one's own."
)


class Dataset(StrEnum):
    """Layouts of labelled frames."""

    CAMVID = "camvid"
    CITYSCAPES = "cityscapes"
    FOLDER = "folder"


def label_set_of(dataset: Dataset, own: LabelSet | None = None) -> LabelSet:
    """The classes of a data set; ``own`` are those of the network, which a folder's labels have."""
    return {Dataset.CAMVID: CAMVID, Dataset.CITYSCAPES: CITYSCAPES}.get(dataset, own or CAMVID)


def load_samples(
    dataset: Dataset, root: Path, split: str, label_set: LabelSet
) -> "Sequence[Sample]":
    """The labelled frames of a split. Raises NotFoundError and InvalidInputError."""
    from segstream.training.camvid import load_camvid
    from segstream.training.cityscapes import load_cityscapes
    from segstream.training.folder import load_folder

    if dataset is Dataset.CAMVID:
        return load_camvid(root, split)
    if dataset is Dataset.CITYSCAPES:
        return load_cityscapes(root, split)
    return load_folder(root, split, LABEL_SETS[label_set.name])
