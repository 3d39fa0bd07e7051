import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segstream.label_sets import IGNORE_INDEX
from segstream.training.metrics import ConfusionMatrix, video_consistency


def test_iou_is_intersection_over_union() -> None:
    confusion = ConfusionMatrix(3)
    confusion.update(np.array([[0, 0, 1, 1]], np.uint8), np.array([[0, 1, 1, 1]], np.uint8))
    assert confusion.iou() == pytest.approx([1 / 2, 2 / 3, 1.0])
    assert confusion.miou() == pytest.approx((1 / 2 + 2 / 3 + 1) / 3)


def test_ignored_pixels_do_not_count() -> None:
    confusion = ConfusionMatrix(2)
    confusion.update(np.array([[0, IGNORE_INDEX]], np.uint8), np.array([[0, 1]], np.uint8))
    assert confusion.counts.tolist() == [[1, 0], [0, 0]]


@given(
    arrays(np.uint8, (4, 6), elements=st.integers(0, 2)),
    arrays(np.uint8, (4, 6), elements=st.integers(0, 2)),
)
def test_counts_add_up_over_updates(label: np.ndarray, prediction: np.ndarray) -> None:
    whole, parts = ConfusionMatrix(3), ConfusionMatrix(3)
    whole.update(label, prediction)
    for row in range(4):
        parts.update(label[row], prediction[row])
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == label.size


def frames(*rows: list[int]) -> list[np.ndarray]:
    return [np.array([row], np.uint8) for row in rows]


def test_video_consistency_counts_pixels_that_stay() -> None:
    labels = frames([1, 1, 1, 2], [1, 1, 1, 3], [1, 1, 1, 2])
    predictions = frames([0, 1, 1, 1], [0, 1, 2, 1], [0, 1, 2, 1])
    # The one window of 2 frames that counts, the first: three pixels keep their label, two of them
    # their prediction, right or wrong. The last window is left out.
    assert video_consistency(labels, predictions, 2) == pytest.approx([2 / 3])


def test_video_consistency_ignores_void_and_windows_without_pixels() -> None:
    void = frames([IGNORE_INDEX, 1], [IGNORE_INDEX, 1], [IGNORE_INDEX, 2])
    assert video_consistency(void, frames([5, 0], [6, 0], [7, 0]), 2) == [1.0]
    changing = frames([1], [2], [3])
    assert video_consistency(changing, changing, 2) == []


def test_video_consistency_needs_more_frames_than_the_window() -> None:
    same = frames([1], [1])
    assert video_consistency(same, same, 2) == []
