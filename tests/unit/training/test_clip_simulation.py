from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from segstream.training import degradations
from segstream.training.augment import Augmentation
from segstream.training.camvid import load_camvid
from segstream.training.clip_simulation import ClipSimulation
from segstream.training.samples import Sample
from tests.unit.training.conftest import CAR

CLEAN = ClipSimulation(Augmentation(40, 48), spoilt_whole=0.0, spoilt_last=0.0, spoilt_past=0.0)


@pytest.fixture
def sample(camvid: Path) -> Sample:
    return load_camvid(camvid, "train")[2]


def test_a_clip_moves_and_ends_in_the_labelled_frame(sample: Sample) -> None:
    moved = []
    for seed in range(8):
        frames, _, label = CLEAN.clip(sample, 4, np.random.default_rng(seed))
        assert frames.shape == (4, 40, 48, 3)
        assert label.shape == (40, 48)
        moved.append(np.abs(frames[0].astype(int) - frames[-1]).mean())
        car = label == CAR
        if car.sum() > 50:
            last = frames[-1].astype(int)
            assert (last[..., 0][car] > last[..., 2][car]).mean() > 0.8
    assert np.median(moved) > 5


def test_a_camera_that_stands_still_sees_the_same(sample: Sample) -> None:
    still = replace(CLEAN, max_drift=0.0, zoom=0.0, roll=0.0, exposure=0.0, shake=0.0)
    scene = still.scene(sample, np.random.default_rng(0))
    now, before = (scene.frame(age, np.random.default_rng(1)).astype(int) for age in (0, 3))
    assert np.abs(now - before).mean() < 6, "but for the sensor's noise"


def test_near_things_move_more_than_far_ones(sample: Sample) -> None:
    scene = CLEAN.scene(sample, np.random.default_rng(0))
    assert scene.depth.std() > 0.05
    assert scene.depth.mean() == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize(("last", "past"), [(1.0, 0.0), (0.0, 1.0)])
def test_frames_are_spoilt_where_asked(sample: Sample, last: float, past: float) -> None:
    changes = np.zeros(3)
    for seed in range(10):
        clean, _, _ = CLEAN.clip(sample, 3, np.random.default_rng(seed))
        spoilt, last_clean, _ = replace(CLEAN, spoilt_last=last, spoilt_past=past).clip(
            sample, 3, np.random.default_rng(seed)
        )
        assert np.abs(last_clean.astype(int) - clean[-1]).mean() < 6, "but for the sensor's noise"
        changes += np.abs(clean.astype(int) - spoilt).mean(axis=(1, 2, 3))
    loud = (changes > 50).tolist()
    assert loud[:1] == [past > 0]
    assert changes[-1] > 50 or not last


def test_a_clip_is_spoilt_as_a_whole_in_one_way(sample: Sample) -> None:
    whole = replace(CLEAN, spoilt_whole=1.0)
    spoils = [whole.spoils(3, np.random.default_rng(seed)) for seed in range(10)]
    assert all(spoil is alike[0] is not None for alike in spoils for spoil in alike)
    assert not any(any(CLEAN.spoils(3, np.random.default_rng(seed))) for seed in range(10))


def test_every_degradation_keeps_the_form(sample: Sample) -> None:
    seen = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        spoil = degradations.any_kind(rng)
        spoilt = spoil(sample.image, rng)
        assert (spoilt.shape, spoilt.dtype) == (sample.image.shape, sample.image.dtype)
        seen.add(spoilt.tobytes())
    assert len(seen) > 20


def test_motion_blur_smears_along_its_direction_only() -> None:
    image = np.zeros((21, 21, 3), np.uint8)
    image[:, 10] = 255
    across, along = (degradations.motion_blur(image, 9, degrees) for degrees in (0, 90))
    assert across[10, 10, 0] == pytest.approx(255 / 9, abs=2)
    assert across[10, 7, 0] == across[10, 13, 0] > 0
    assert np.array_equal(along, image)
