"""Dense optical flow between frames, and label maps moved along it."""

import cv2
import numpy as np
import numpy.typing as npt

from segstream.media.images import Image
from segstream.media.label_maps import LabelMap

Flow = npt.NDArray[np.float32]


def dis_flow(first: Image, second: Image) -> Flow:
    """``(H, W, 2)``: where each pixel of ``first`` lies in ``second``, as (x, y) offsets.

    Dense inverse search at OpenCV's medium preset (Kroeger et al., ECCV 2016), on grey images.
    """
    grey = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (first, second)]
    searcher = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    return np.asarray(searcher.calc(grey[0], grey[1], None), np.float32)  # type: ignore[call-overload]


def warped(label_map: LabelMap, flow: Flow, *, outside: int) -> LabelMap:
    """``label_map (H, W)`` of the second frame as seen from the first, nearest neighbour.

    Pixels whose place lies outside of the frame become ``outside``.
    """
    height, width = label_map.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    moved = cv2.remap(
        label_map,
        x + flow[..., 0],
        y + flow[..., 1],
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(outside,),
    )
    return np.asarray(moved, np.uint8)
