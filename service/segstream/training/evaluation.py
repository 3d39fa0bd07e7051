"""Evaluation of a network on labelled frames, with and without its memory."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from segstream.models.lmanet import LMANet
from segstream.training.camvid import Sample
from segstream.training.metrics import ConfusionMatrix


def evaluate_single_frame(model: LMANet, samples: Iterable[Sample]) -> ConfusionMatrix:
    """Each frame alone, without memory."""
    return _evaluate(model, samples, model.segment_single)


def evaluate_stream(model: LMANet, samples: Iterable[Sample]) -> ConfusionMatrix:
    """The frames as one video, memory kept from frame to frame."""
    return _evaluate(model, samples, model.stream().step)


@torch.inference_mode()
def _evaluate(
    model: LMANet, samples: Iterable[Sample], segment: Callable[[Tensor], Tensor]
) -> ConfusionMatrix:
    num_classes = model.config.label_set.num_classes
    confusion = ConfusionMatrix(num_classes)
    for sample in samples:
        frame = torch.from_numpy(sample.image).permute(2, 0, 1).unsqueeze(0) / 255
        prediction = segment(frame)[0, :num_classes].argmax(dim=0)
        confusion.update(sample.label, prediction.to(torch.uint8).numpy())
    return confusion
