import itertools
from pathlib import Path

import cv2
import numpy as np
import pytest

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import IGNORE_INDEX
from segstream.training.camvid import load_camvid
from tests.unit.training.conftest import CAR, HEIGHT, ROAD, SKY, WIDTH


def test_samples_come_in_the_order_of_the_drive(camvid: Path) -> None:
    samples = load_camvid(camvid, "val")
    assert [sample.name for sample in samples] == [f"{number:04d}" for number in range(6)]
    assert samples[0].image.shape == (HEIGHT, WIDTH, 3)


def test_a_drive_is_told_from_its_stills(tmp_path: Path) -> None:
    for folder in ("val", "valannot"):
        (tmp_path / folder).mkdir()
        for name in ("0016E5_07959", "0016E5_07961", "0016E5_07991", "0006R0_f07992"):
            cv2.imwrite(str(tmp_path / folder / f"{name}.png"), np.zeros((8, 8), np.uint8))
    samples = load_camvid(tmp_path, "val")
    assert samples[0].name == "0006R0_f07992"
    pairs = itertools.pairwise(samples)
    assert [first.is_followed_by(second) for first, second in pairs] == [False, True, False]
    assert [len(sample.past) for sample in samples] == [0, 0, 1, 2]
    assert (samples[0].clip, samples[0].seconds) == ("0006R0", 7992 / 30)


def test_images_are_rgb(camvid: Path) -> None:
    red, green, blue = load_camvid(camvid, "val")[0].image[0, 0]
    assert red < green < blue


def test_void_is_ignored(camvid: Path) -> None:
    label = load_camvid(camvid, "train")[0].label
    assert set(np.unique(label)) == {SKY, ROAD, CAR, IGNORE_INDEX}


def test_missing_split_is_named(camvid: Path) -> None:
    with pytest.raises(NotFoundError, match=r"'test'.*no folder"):
        load_camvid(camvid, "test")


def test_missing_label_image_is_named(camvid: Path) -> None:
    (camvid / "valannot" / "0003.png").unlink()
    with pytest.raises(NotFoundError, match=r"0003\.png"):
        load_camvid(camvid, "val")


def test_unknown_class_is_named(camvid: Path) -> None:
    path = camvid / "valannot" / "0002.png"
    cv2.imwrite(str(path), np.full((HEIGHT, WIDTH), 12, np.uint8))
    with pytest.raises(InvalidInputError, match=r"0002\.png: label 12 is none of 0\.\.11"):
        load_camvid(camvid, "val")


def test_label_of_another_size_is_named(camvid: Path) -> None:
    path = camvid / "valannot" / "0002.png"
    cv2.imwrite(str(path), np.zeros((8, 8), np.uint8))
    with pytest.raises(InvalidInputError, match=r"0002\.png: size \(8, 8\)"):
        load_camvid(camvid, "val")


def test_a_file_that_is_no_image_is_named(camvid: Path) -> None:
    (camvid / "val" / "0002.png").write_text("not an image")
    with pytest.raises(InvalidInputError, match=r"0002\.png is not an image"):
        load_camvid(camvid, "val")
