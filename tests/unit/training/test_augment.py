from pathlib import Path

import numpy as np
import pytest

from segstream.label_sets import IGNORE_INDEX
from segstream.training.augment import Augmentation
from segstream.training.camvid import Sample, load_camvid
from tests.unit.training.conftest import CAR, ROAD, SKY


@pytest.fixture
def sample(camvid: Path) -> Sample:
    return load_camvid(camvid, "train")[2]


def test_the_same_seed_gives_the_same_crop(sample: Sample) -> None:
    augmentation = Augmentation(40, 48)
    first = augmentation.still(sample, np.random.default_rng(3))
    second = augmentation.still(sample, np.random.default_rng(3))
    assert np.array_equal(first[0], second[0])
    assert np.array_equal(first[1], second[1])


@pytest.mark.parametrize("seed", range(20))
def test_labels_stay_on_their_pixels(sample: Sample, seed: int) -> None:
    image, label = Augmentation(40, 48).still(sample, np.random.default_rng(seed))
    assert image.shape == (40, 48, 3)
    assert set(np.unique(label)) <= {SKY, ROAD, CAR, IGNORE_INDEX}
    red, blue = image[..., 0].astype(int), image[..., 2].astype(int)
    car = label == CAR
    if car.sum() > 50:
        assert (red[car] > blue[car]).mean() > 0.8
    sky = label == SKY
    if sky.sum() > 50:
        assert (blue[sky] > red[sky]).mean() > 0.8


def test_a_clip_moves_and_ends_in_the_labelled_frame(sample: Sample) -> None:
    augmentation = Augmentation(40, 48, max_drift=6.0, spoilt_share=0.0)
    moved = []
    for seed in range(8):
        frames, label = augmentation.clip(sample, 4, np.random.default_rng(seed))
        assert frames.shape == (4, 40, 48, 3)
        assert label.shape == (40, 48)
        moved.append(np.abs(frames[0].astype(int) - frames[-1]).mean())
        car = label == CAR
        if car.sum() > 50:
            last = frames[-1].astype(int)
            assert (last[..., 0][car] > last[..., 2][car]).mean() > 0.8
    assert np.median(moved) > 5


def test_spoilt_frames_appear(sample: Sample) -> None:
    clean = Augmentation(40, 48, spoilt_share=0.0)
    spoilt = Augmentation(40, 48, spoilt_share=1.0)
    pairs = [
        (
            clean.still(sample, np.random.default_rng(seed))[0].std(),
            spoilt.clip(sample, 1, np.random.default_rng(seed))[0].std(),
        )
        for seed in range(10)
    ]
    assert any(abs(a - b) > 10 for a, b in pairs)
