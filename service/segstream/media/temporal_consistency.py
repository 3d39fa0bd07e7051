"""How steady label maps are from frame to frame, told without ground truth.

The share of the pixels that stood still since the frame before which kept their class. A pixel
stood still if its grey value (0..255) changed by at most 6. Where the picture does not move the
label map should not either; what did move is left out, where Varghese et al. ("Unsupervised
Temporal Consistency Metric for Video Segmentation in Highly-Automated Driving", CVPRW 2020) follow
it with optical flow, which costs more than the network does here.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from segstream.media.images import Image
from segstream.media.label_maps import LabelMap

_MAX_STILL_CHANGE: Final = 6
# With fewer still pixels than this part of the picture, their agreement says nothing.
_MIN_STILL_SHARE: Final = 0.01
# The newest value counts as much as in a mean over so many frames.
_NUM_FRAMES_OF_MEAN: Final = 30


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What was seen, ``grey (H, W)`` uint8, and how it was labelled, ``(H, W)``."""

    grey: NDArray[np.uint8]
    label_map: LabelMap


def grey_of(image: Image) -> NDArray[np.uint8]:
    """The grey values of an RGB image ``(H, W, 3)``."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)


def temporal_consistency(before: View, after: View) -> float | None:
    """Of two frames of one size, 0 to 1; None where too little stood still."""
    is_still = np.asarray(cv2.absdiff(after.grey, before.grey)) <= _MAX_STILL_CHANGE
    num_still = int(np.count_nonzero(is_still))
    if num_still < _MIN_STILL_SHARE * is_still.size:
        return None
    return int(np.count_nonzero(is_still & (after.label_map == before.label_map))) / num_still


def running_mean(mean: float | None, value: float) -> float:
    """The mean with one more value, the last ones counting most; None: there was none yet."""
    return value if mean is None else mean + (value - mean) / _NUM_FRAMES_OF_MEAN
