"""Segmentation metrics, as update / compute."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from segstream.label_sets import IGNORE_INDEX


class ConfusionMatrix:
    """Counts of (label, prediction) over a data set; pixels labelled IGNORE_INDEX do not count."""

    def __init__(self, num_classes: int) -> None:
        self.counts: npt.NDArray[np.int64] = np.zeros((num_classes, num_classes), np.int64)

    def update(self, label: npt.NDArray[np.uint8], prediction: npt.NDArray[np.uint8]) -> None:
        """Add a label map and its prediction of the same shape."""
        num_classes = len(self.counts)
        seen = label != IGNORE_INDEX
        pairs = label[seen].astype(np.int64) * num_classes + prediction[seen]
        self.counts += np.bincount(pairs, minlength=num_classes**2).reshape(self.counts.shape)

    def iou(self) -> npt.NDArray[np.float64]:
        """tp / (tp + fp + fn) per class; 1.0 for a class in neither labels nor predictions."""
        true_positives = np.diag(self.counts).astype(np.float64)
        union = self.counts.sum(0) + self.counts.sum(1) - true_positives
        iou: npt.NDArray[np.float64] = np.ones_like(true_positives)
        np.divide(true_positives, union, out=iou, where=union > 0)
        return iou

    def miou(self) -> float:
        """Mean of the classes' IoU, in 0..1."""
        return float(self.iou().mean())


def video_consistency(
    labels: Sequence[npt.NDArray[np.uint8]],
    predictions: Sequence[npt.NDArray[np.uint8]],
    length: int,
) -> list[float]:
    """VC of each window of ``length`` frames of one clip, in 0..1; their mean is mVC.

    Over the pixels whose label is the same in all frames of the window (void does not count), the
    share whose prediction is the same in all of them. It need not be right: so does VSPW's own
    code, ``VC_perclip.py`` (Miao et al., CVPR 2021), which also leaves out the last window, as is
    done here. A window without such pixels has no VC.
    """
    label, prediction = np.stack(labels), np.stack(predictions)
    values = []
    for start in range(len(label) - length):
        window = slice(start, start + length)
        common = (label[window] == label[start]).all(axis=0) & (label[start] != IGNORE_INDEX)
        kept = common & (prediction[window] == prediction[start]).all(axis=0)
        if common.any():
            values.append(float(kept.sum() / common.sum()))
    return values
