"""Which bias each class needs.

Training weighs rare classes, so that they are learnt at all, and leaves a network that finds some
classes too often and others too seldom. One number a class, added to its logit, sets that right:
those numbers with which the mIoU on the training frames is largest.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from segstream.errors import InvalidInputError
from segstream.label_sets import IGNORE_INDEX
from segstream.models import LMANet
from segstream.training.batch import to_frames
from segstream.training.metrics import ConfusionMatrix
from segstream.training.samples import Sample

_MAX_PIXELS = 1_500_000
_STEPS = (0.5, 0.25, 0.125)
_LEAST_GAIN = 2e-5  # of mIoU, in 0..1
_PROBE_SIDE = 64


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was added to each class's logit, and its IoU before and after in 0..1, each ``(C,)``.

    The IoU is that of the single frame on the pixels that decided; NaN for a class that none of
    them is labelled with, whose logit is left alone.
    """

    biases: Tensor
    before: Tensor
    after: Tensor


@torch.no_grad()
def calibrate(
    model: LMANet, samples: Sequence[Sample], on_sample: Callable[[], None] = lambda: None
) -> tuple[LMANet, Calibration]:
    """A copy of ``model``, in eval mode, whose last layer's bias has the classes calibrated.

    Every frame of ``samples`` is segmented alone, and a grid of its pixels is looked at. Raises
    InvalidInputError where the last layer has no bias for each class.
    """
    model = copy.deepcopy(model).eval()
    bias = _output_bias(model)
    logits, labels = _pixels(model, samples, on_sample)
    biases = best_biases(logits, labels)
    bias[: len(biases)] += biases.to(bias)
    return model, Calibration(biases, _iou(logits, labels), _iou(logits + biases, labels))


def best_biases(logits: Tensor, labels: Tensor) -> Tensor:
    """``(C,)`` to be added to logits ``(N, C)`` for the largest mIoU on labels ``(N,)``.

    Found class by class, in ever smaller steps, from none on; 0 for a class without labels.
    """
    biases = torch.zeros(logits.shape[1])
    changes = torch.eye(len(biases))[labels.unique()]
    best = _iou(logits, labels).nanmean()
    for size in _STEPS:
        is_better = True
        while is_better:
            is_better = False
            for change in (*changes, *-changes):
                changed = biases + size * change
                miou = _iou(logits + changed, labels).nanmean()
                if miou > best + _LEAST_GAIN:
                    biases, best, is_better = changed, miou, True
    return biases


def _pixels(
    model: LMANet, samples: Sequence[Sample], on_sample: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Logits ``(N, C)`` of the real classes and labels ``(N,)``, void left out."""
    device = next(model.parameters()).device
    num_classes = model.config.label_set.num_classes
    logits, labels = [], []
    for sample in samples:
        step = _grid_step(sample.label.size, len(samples))
        label = torch.from_numpy(np.ascontiguousarray(sample.label[::step, ::step])).long()
        is_labelled = label != IGNORE_INDEX
        height, width = sample.label.shape
        found = model.segment_single(to_frames(sample.image[None], device))
        seen = found[0, :num_classes, :height:step, :width:step].permute(1, 2, 0).float().cpu()
        logits.append(seen[is_labelled])
        labels.append(label[is_labelled])
        on_sample()
    return torch.cat(logits), torch.cat(labels)


def _grid_step(num_pixels: int, num_samples: int) -> int:
    """Distance of the pixels looked at, so that they are not too many in all."""
    return math.ceil(math.sqrt(num_pixels * num_samples / _MAX_PIXELS))


def _iou(logits: Tensor, labels: Tensor) -> Tensor:
    """By class; NaN for one that no pixel is labelled with."""
    matrix = ConfusionMatrix(logits.shape[1])
    matrix.update(labels.to(torch.uint8).numpy(), logits.argmax(dim=1).to(torch.uint8).numpy())
    is_labelled = matrix.counts.sum(axis=1) > 0
    return torch.from_numpy(np.where(is_labelled, matrix.iou(), np.nan)).float()


def _output_bias(model: LMANet) -> Tensor:
    """The bias of the logits; a change of it must be that of the logits."""
    layers = [
        module
        for module in model.decoder.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        and module.out_channels == model.config.num_channels
    ]
    bias = layers[-1].bias if layers else None
    if bias is None or not _adds_to_logits(model, bias):
        raise InvalidInputError(
            f"network {model.spec.name!r} does not end with a convolution whose bias is added to "
            "its logits: its classes cannot be calibrated",
            field="model",
        )
    return bias


def _adds_to_logits(model: LMANet, bias: Tensor) -> bool:
    frame = torch.rand(1, 3, _PROBE_SIDE, _PROBE_SIDE, generator=torch.Generator().manual_seed(0))
    frame = frame.to(bias)
    before, kept = model.segment_single(frame), bias.clone()
    change = torch.arange(len(bias), dtype=bias.dtype, device=bias.device)
    bias += change
    after = model.segment_single(frame)
    bias.copy_(kept)
    return torch.allclose(after - before, change.view(1, -1, 1, 1), atol=1e-3)
