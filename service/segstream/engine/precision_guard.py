"""Whether a network may compute with fewer bits: by what its label maps say, not by hope."""

import numpy as np
import structlog
import torch
from torch import Tensor

from segstream.engine.cuda_graphs import has_cuda_graphs
from segstream.errors import InvalidInputError
from segstream.models import LMANet
from segstream.models.precision import Precision, autocast, in_precision
from segstream.pages import empty_pages

MIN_AGREEMENT = 0.999
"""Of the pixels of the pictures below, those that must get the class that float32 gives."""

_HEIGHT, _WIDTH = 192, 256
_CELL = 32  # pixels between two random colours

_log = structlog.get_logger(__name__)


def usable_precision(model: LMANet, precision: Precision, device: str) -> Precision:
    """``precision`` if the model, which is moved to the device, bears it there, else float32.

    float16 stands in for bfloat16 on a GPU without it. Raises InvalidInputError for a precision
    that the device does not have.
    """
    if precision == "float32":
        return precision
    if not has_cuda_graphs(device):
        raise InvalidInputError(
            f"precision is {precision!r}, which is for CUDA devices, not {device!r}: use float32",
            field="precision",
        )
    with torch.cuda.device(device):
        if not torch.cuda.is_bf16_supported(including_emulation=False):
            precision = "float16"
    return guarded(model.to(device), precision, torch.device(device))


def guarded(model: LMANet, precision: Precision, device: torch.device) -> Precision:
    """``precision``, or float32 where the label maps differ in too many pixels."""
    expected, found = (_label_maps(model, each, device) for each in ("float32", precision))
    agreement = float((expected == found).float().mean())
    is_borne = agreement >= MIN_AGREEMENT
    (_log.info if is_borne else _log.warning)(
        "precision is used" if is_borne else "precision is not borne by the network, using float32",
        precision=precision,
        agreement=round(agreement, 5),
        least=MIN_AGREEMENT,
    )
    return precision if is_borne else "float32"


@torch.inference_mode()
def _label_maps(model: LMANet, precision: Precision, device: torch.device) -> Tensor:
    """``(N, H, W)`` of a short video: one frame more than the memory holds."""
    length, label_set = model.config.stream_length, model.config.label_set
    model = in_precision(model, precision)
    video = pictures(length + 1).to(device)
    pages = empty_pages(model.page_geometry(_HEIGHT, _WIDTH), len(video), device=device)
    label_maps = []
    with autocast(device, precision):
        for slot, frame in enumerate(video):
            read_slots = torch.arange(slot, dtype=torch.int32, device=device)
            write_slots = torch.tensor([slot], device=device)
            logits = model(frame[None], pages, read_slots[None], write_slots)
            label_maps.append(logits[0, : label_set.num_classes].argmax(dim=0))
    return torch.stack(label_maps)


def pictures(num_frames: int) -> Tensor:
    """Colours that run into each other and drift: ``(N, 3, H, W)`` in 0..1, the same each time."""
    colours = np.random.default_rng(0).random(
        (num_frames + 1, 3, _HEIGHT // _CELL, _WIDTH // _CELL)
    )
    drifting = colours[:1] + 0.2 * (colours[1:] - colours[:1])
    frames = torch.from_numpy(drifting).float()
    return torch.nn.functional.interpolate(
        frames, (_HEIGHT, _WIDTH), mode="bicubic", align_corners=False
    ).clamp(0, 1)
