import numpy as np
import pytest

from segstream.clips.figures import (
    ClassShare,
    ConsistencyMeter,
    Percentiles,
    class_shares,
    classes_seen,
    count_pixels,
    stage_percentiles,
)
from segstream.label_sets import CAMVID, IGNORE_INDEX


def grey(
    value: int, height: int = 10, width: int = 10
) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.full((height, width, 3), value, np.uint8)


def test_pixels_are_counted_by_class_and_without_one() -> None:
    label_map = np.array([[0, 0, 2], [IGNORE_INDEX, 10, 0]], np.uint8)
    counts = count_pixels(label_map, CAMVID.num_classes)
    assert counts == [3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]
    assert class_shares(counts)[:3] == [0.5, 0.0, pytest.approx(1 / 6)]
    assert classes_seen(counts, CAMVID)[0] == ClassShare("sky", 0.5)
    assert [seen.name for seen in classes_seen(counts, CAMVID)] == ["sky", "pole", "bicyclist"]


def test_the_first_frame_has_nothing_to_agree_with() -> None:
    assert ConsistencyMeter().measure(grey(9), np.zeros((10, 10), np.uint8)) is None


def test_consistency_is_the_part_of_still_pixels_that_keep_their_class() -> None:
    meter = ConsistencyMeter()
    before, after = grey(100), grey(102)
    after[:, 5:] = 200
    label_map = np.zeros((10, 10), np.uint8)
    changed = label_map.copy()
    changed[:2] = 3
    meter.measure(before, label_map)
    assert meter.measure(after, changed) == pytest.approx(0.8)
    assert meter.measure(after, changed) == 1.0


def test_a_cut_leaves_nothing_to_compare() -> None:
    meter = ConsistencyMeter()
    label_map = np.zeros((10, 10), np.uint8)
    meter.measure(grey(0), label_map)
    assert meter.measure(grey(255), label_map) is None


def test_percentiles_by_stage() -> None:
    assert stage_percentiles({"total": [1.0, 2.0, 3.0]})["total"].p50_seconds == 2.0
    assert Percentiles.of([5.0]) == Percentiles(5.0, 5.0, 5.0)
