"""Cityscapes' real layout and folders of one's own, on small generated trees."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import CAMVID, CITYSCAPES, IGNORE_INDEX
from segstream.training.cityscapes import load_cityscapes
from segstream.training.folder import load_folder

SIZE = (16, 32)
STEM = "aachen_000003_000019"


def write(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), values)


@pytest.fixture
def cityscapes(tmp_path: Path) -> Path:
    """A snippet of 30 frames whose 20th is labelled; road, sky and a bridge."""
    folder = tmp_path / "leftImg8bit_sequence" / "train" / "aachen"
    for number in range(30):
        image = np.full((*SIZE, 3), number, np.uint8)
        write(folder / f"aachen_000003_{number:06}_leftImg8bit.png", image)
    ids = np.full(SIZE, 7, np.uint8)
    ids[:, 16:] = 23
    ids[:, 30:] = 15
    write(tmp_path / "gtFine" / "train" / "aachen" / f"{STEM}_gtFine_labelIds.png", ids)
    return tmp_path


def test_cityscapes_ids_become_train_ids(cityscapes: Path) -> None:
    (sample,) = load_cityscapes(cityscapes, "train")
    names = [label.name for label in CITYSCAPES.labels]
    assert sample.name == STEM
    assert (sample.label[:, :16] == names.index("road")).all()
    assert (sample.label[:, 16:30] == names.index("sky")).all()
    assert (sample.label[:, 30:] == IGNORE_INDEX).all()
    assert (sample.image == 19).all()


def test_cityscapes_knows_the_frames_before_the_labelled_one(cityscapes: Path) -> None:
    (sample,) = load_cityscapes(cityscapes, "train", past_length=19)
    assert [path.name[14:20] for path in sample.past] == [f"{n:06}" for n in range(19)]


def test_cityscapes_prefers_train_ids_that_are_there(cityscapes: Path) -> None:
    path = cityscapes / "gtFine" / "train" / "aachen" / f"{STEM}_gtFine_labelTrainIds.png"
    write(path, np.full(SIZE, 13, np.uint8))
    assert (load_cityscapes(cityscapes, "train")[0].label == 13).all()


def test_cityscapes_without_sequences_has_stills(cityscapes: Path) -> None:
    still = cityscapes / "leftImg8bit" / "train" / "aachen" / f"{STEM}_leftImg8bit.png"
    sequences = cityscapes / "leftImg8bit_sequence"
    still.parent.mkdir(parents=True)
    (sequences / "train" / "aachen" / still.name).rename(still)
    sequences.rename(cityscapes / "elsewhere")
    assert load_cityscapes(cityscapes, "train")[0].past == ()
    with pytest.raises(NotFoundError, match=r"0 frames lie before it.*3 are needed"):
        load_cityscapes(cityscapes, "train", past_length=3)


def test_cityscapes_names_a_missing_neighbour(cityscapes: Path) -> None:
    folder = cityscapes / "leftImg8bit_sequence" / "train" / "aachen"
    (folder / "aachen_000003_000016_leftImg8bit.png").unlink()
    with pytest.raises(NotFoundError, match=rf"{STEM}.*2 frames lie before it.*3 are needed"):
        load_cityscapes(cityscapes, "train", past_length=3)


def test_cityscapes_names_what_is_wrong(cityscapes: Path) -> None:
    with pytest.raises(NotFoundError, match="'val': no folder"):
        load_cityscapes(cityscapes, "val")
    labels = cityscapes / "gtFine" / "train" / "aachen" / f"{STEM}_gtFine_labelIds.png"
    write(labels, np.full(SIZE, 40, np.uint8))
    with pytest.raises(InvalidInputError, match=r"labelIds.png: label 40 is none of 0\.\.33"):
        load_cityscapes(cityscapes, "train")[0]
    write(labels, np.zeros((8, 8), np.uint8))
    with pytest.raises(InvalidInputError, match=r"size \(8, 8\) differs from the frame's"):
        load_cityscapes(cityscapes, "train")[0]
    labels.rename(labels.with_name("street_gtFine_labelIds.png"))
    with pytest.raises(InvalidInputError, match="name is not CITY_SEQUENCE_FRAME"):
        load_cityscapes(cityscapes, "train")


def test_cityscapes_names_a_missing_frame(cityscapes: Path) -> None:
    frame = cityscapes / "leftImg8bit_sequence" / "train" / "aachen" / f"{STEM}_leftImg8bit.png"
    frame.unlink()
    with pytest.raises(NotFoundError, match=f"no frame .*{frame.name}"):
        load_cityscapes(cityscapes, "train")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two clips of four frames, every second one labelled, the first clip at 10 Hz."""
    for clip in ("a", "b"):
        for number in range(4):
            frame = tmp_path / "val" / clip / "frames" / f"{number}.jpg"
            write(frame, np.full((*SIZE, 3), 40 * number, np.uint8))
            if number % 2:
                label = np.full(SIZE, number, np.uint8)
                write(tmp_path / "val" / clip / "labels" / f"{number}.png", label)
    (tmp_path / "val" / "a" / "frames_per_second.txt").write_text("10\n")
    return tmp_path


def test_a_folder_holds_clips(folder: Path) -> None:
    samples = load_folder(folder, "val", CAMVID)
    assert [(sample.clip, sample.name) for sample in samples] == [
        *(("a", "1"), ("a", "3"), ("b", "1"), ("b", "3"))
    ]
    assert [path.stem for path in samples[1].past] == ["0", "1", "2"]
    assert samples[0].is_followed_by(samples[1])
    assert not samples[1].is_followed_by(samples[2])
    assert not samples[2].is_followed_by(samples[3]), "nothing says how far apart they are"
    assert (samples[1].label == 3).all()
    assert len(samples[1:]) == 3


def test_a_folder_names_what_is_wrong(folder: Path) -> None:
    with pytest.raises(NotFoundError, match="'train': no folder"):
        load_folder(folder, "train", CAMVID)
    rate = folder / "val" / "a" / "frames_per_second.txt"
    rate.write_text("fast")
    with pytest.raises(InvalidInputError, match="'fast' is no number above 0"):
        load_folder(folder, "val", CAMVID)
    rate.unlink()
    write(folder / "val" / "b" / "labels" / "1.png", np.full(SIZE, 11, np.uint8))
    with pytest.raises(InvalidInputError, match=r"label 11 is none of 0\.\.10, 255"):
        list(load_folder(folder, "val", CAMVID))
    (folder / "val" / "b" / "frames" / "3.jpg").unlink()
    with pytest.raises(NotFoundError, match=r"3\.png: no frame of this name"):
        load_folder(folder, "val", CAMVID)


def test_a_folder_without_labels_is_refused(tmp_path: Path) -> None:
    (tmp_path / "val" / "a" / "frames").mkdir(parents=True)
    with pytest.raises(NotFoundError, match="no CLIP/labels"):
        load_folder(tmp_path, "val", CAMVID)
