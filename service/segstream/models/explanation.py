"""Where in its memory one pixel of a frame looked."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from segstream.attention.pixel_weights import pixel_weights
from segstream.errors import InvalidInputError
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.models.lmanet import LMANet


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """What a pixel took from the frames in memory, oldest first.

    weights: ``(T, h, w)``, its attention to each cell of the features of each frame; a cell covers
    ``stride x stride`` pixels. With ``outside``, what went to neighbours beyond the border, and
    ``sink`` they add up to 1.
    class_shares: how the weights divide among the classes that those frames have there, in
    train-id order.
    label, label_alone: the pixel's train id with memory, and by the single-frame network.
    """

    weights: npt.NDArray[np.float32]
    outside: float
    sink: float
    class_shares: list[float]
    label: int
    label_alone: int

    @property
    def frame_shares(self) -> list[float]:
        """What each frame got, oldest first."""
        return [float(share) for share in self.weights.sum(axis=(1, 2))]


@torch.inference_mode()
def explain(model: LMANet, images: Sequence[Image], x: int, y: int) -> Explanation:
    """Where pixel ``x, y`` of the last of these consecutive frames looked.

    images: RGB ``(H, W, 3)`` uint8, at least 2; those before the last T + 1 do not count. Raises
    InvalidInputError for a point outside the frame, and for a frame without memory.
    """
    height, width, _ = images[-1].shape
    if not (0 <= x < width and 0 <= y < height):
        raise InvalidInputError(
            f"point is {x},{y}, must be in 0..{width - 1},0..{height - 1}", field="point"
        )
    length = min(model.config.stream_length, len(images) - 1)
    if length < 1:
        raise InvalidInputError("the frame has no memory to look at", field="frame")
    frames = _frames(images[-length - 1 :], model.dtype)
    features = model.encode_window(frames)
    labels = _labels(model, model.decode_window(features), x, y)
    alone = [
        model.segment_single(frame[None])[0, : model.config.label_set.num_classes].argmax(dim=0)
        for frame in frames[0]
    ]
    row, column = y // model.spec.stride, x // model.spec.stride
    keys, _ = model.memory_head(features.tap[0, :-1])
    query, _ = model.query_head(features.tap[:, -1])
    weights, outside = pixel_weights(
        query[0, row, column], keys, row, column, model.config.window_size, model.sink
    )
    return Explanation(
        weights.float().numpy(),
        outside,
        max(0.0, 1 - outside - float(weights.sum())),
        _class_shares(model, weights, [label.numpy() for label in alone[:-1]]),
        labels,
        int(alone[-1][y, x]),
    )


def _frames(images: Sequence[Image], dtype: torch.dtype) -> Tensor:
    """``(1, L, 3, H, W)`` in 0..1."""
    stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return stacked.to(dtype).div_(255).unsqueeze(0)


def _labels(model: LMANet, logits: Tensor, x: int, y: int) -> int:
    return int(logits[0, : model.config.label_set.num_classes, y, x].argmax())


def _class_shares(model: LMANet, weights: Tensor, labels: Sequence[LabelMap]) -> list[float]:
    """A cell has the class of the pixel in its middle."""
    stride, num_classes = model.spec.stride, model.config.label_set.num_classes
    shares = np.zeros(num_classes)
    for weight, label in zip(weights.numpy(), labels, strict=True):
        height, width = label.shape
        rows = np.minimum(np.arange(weight.shape[0]) * stride + stride // 2, height - 1)
        columns = np.minimum(np.arange(weight.shape[1]) * stride + stride // 2, width - 1)
        cells = label[np.ix_(rows, columns)].ravel()
        shares += np.bincount(cells, weight.ravel(), minlength=num_classes)
    return [float(share) for share in shares]
