from pathlib import Path

import numpy as np
import pytest

from segstream.label_sets import IGNORE_INDEX
from segstream.training.augment import Augmentation
from segstream.training.camvid import load_camvid
from segstream.training.samples import Sample
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


def test_without_variation_a_view_at_scale_1_is_cut_from_the_frame(sample: Sample) -> None:
    height, width = sample.label.shape
    augmentation = Augmentation(height, width, 1.0, 1.0, colour_variation=0.0)
    image, label = augmentation.still(sample, np.random.default_rng(0))
    if not np.array_equal(label, sample.label):
        image, label = image[:, ::-1], label[:, ::-1]
    assert np.array_equal(label, sample.label)
    assert np.array_equal(image, sample.image)
