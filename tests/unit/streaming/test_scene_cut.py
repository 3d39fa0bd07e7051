"""The guard tells a hard cut from a scene that moves or changes its light."""

import numpy as np
import pytest

from segstream.media.images import Image
from segstream.streaming.scene_cut import SceneCutGuard
from tests.support.models import make_video


def scene(seed: int) -> Image:
    patches = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return np.ascontiguousarray(patches.repeat(16, axis=0).repeat(16, axis=1))


def grey(level: int) -> Image:
    return np.full((96, 128, 3), level, np.uint8)


def test_before_the_first_frame_is_no_cut() -> None:
    guard = SceneCutGuard()
    assert not guard.has_seen
    assert not guard.is_cut(scene(0))
    assert guard.has_seen


def test_another_scene_is_a_cut_and_its_next_frame_is_none() -> None:
    guard = SceneCutGuard()
    assert [guard.is_cut(scene(seed)) for seed in (0, 0, 1, 1, 2)] == [
        False,
        False,
        True,
        False,
        True,
    ]


def test_a_scene_that_moves_in_changing_light_is_none() -> None:
    guard = SceneCutGuard()
    assert not any(guard.is_cut(image) for image in make_video(30, 96, 128))


@pytest.mark.parametrize("factor", [0.2, 0.5])
def test_a_change_of_exposure_is_none(factor: float) -> None:
    guard = SceneCutGuard()
    guard.is_cut(scene(0))
    assert not guard.is_cut((scene(0) * factor).astype(np.uint8))


def test_images_of_one_colour_are_all_alike() -> None:
    guard = SceneCutGuard()
    assert [guard.is_cut(grey(level)) for level in (0, 255, 7)] == [False, False, False]


def test_from_black_to_a_scene_is_a_cut() -> None:
    guard = SceneCutGuard()
    guard.is_cut(grey(0))
    assert guard.is_cut(scene(0))


def test_the_size_of_frames_does_not_matter() -> None:
    guard = SceneCutGuard()
    guard.is_cut(scene(0))
    assert not guard.is_cut(np.ascontiguousarray(scene(0)[::2, ::2]))
