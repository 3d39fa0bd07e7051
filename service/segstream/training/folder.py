"""A data set of one's own, as folders.

::

    ROOT/SPLIT/CLIP/frames/NAME.png        all frames, their names in the order of the video
    ROOT/SPLIT/CLIP/labels/NAME.png        train ids as uint8, 255 = ignore; of some frames or all
    ROOT/SPLIT/CLIP/frames_per_second.txt  one number; without it frames are taken for stills

``.jpg`` and ``.jpeg`` frames will do as well. Frames without labels serve as the past of those that
have some.
"""

from functools import partial
from pathlib import Path

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import LabelSet
from segstream.training.samples import (
    LazySamples,
    Sample,
    read_image,
    read_labels,
    train_id_table,
)

_SUFFIXES = {".png", ".jpg", ".jpeg"}
_RATE_FILE = "frames_per_second.txt"


def load_folder(root: Path, split: str, label_set: LabelSet) -> LazySamples:
    """The labelled frames of a split, clip by clip.

    Raises NotFoundError for a missing folder, a split without labels and a label image without its
    frame; when a sample is read, InvalidInputError for unknown train ids and another size.
    """
    folder = root / split
    if not folder.is_dir():
        raise NotFoundError(f"split {split!r}: no folder {folder}")
    loaders = [
        loader
        for clip in sorted(path for path in folder.iterdir() if path.is_dir())
        for loader in _clip(clip, label_set)
    ]
    if not loaders:
        raise NotFoundError(f"split {split!r}: no CLIP/labels/*.png in {folder}")
    return LazySamples(loaders)


def _clip(clip: Path, label_set: LabelSet) -> list[partial[Sample]]:
    frames = sorted(p for p in (clip / "frames").glob("*") if p.suffix.lower() in _SUFFIXES)
    labels = {path.stem: path for path in sorted((clip / "labels").glob("*.png"))}
    if missing := sorted(labels.keys() - {path.stem for path in frames}):
        raise NotFoundError(f"{labels[missing[0]]}: no frame of this name in {clip / 'frames'}")
    rate = _frames_per_second(clip / _RATE_FILE)
    return [
        partial(
            _load,
            *(path, labels[path.stem], label_set, clip.name),
            seconds=None if rate is None else number / rate,
            past=tuple(frames[:number]),
        )
        for number, path in enumerate(frames)
        if path.stem in labels
    ]


def _frames_per_second(path: Path) -> float | None:
    if not path.is_file():
        return None
    text = path.read_text().strip()
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise InvalidInputError(f"{path}: {text[:40]!r} is no number above 0")
    return rate


def _load(
    frame_path: Path,
    label_path: Path,
    label_set: LabelSet,
    clip: str,
    *,
    seconds: float | None,
    past: tuple[Path, ...],
) -> Sample:
    image = read_image(frame_path)
    label = read_labels(label_path, train_id_table(label_set), image.shape[:2])
    return Sample(frame_path.stem, image, label, clip, seconds, past)
