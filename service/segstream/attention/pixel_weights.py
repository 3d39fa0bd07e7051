"""The attention weights of one pixel, written out: for people who want to see where it looks."""

import torch
from torch import Tensor
from torch.nn.functional import pad


def pixel_weights(
    query: Tensor,
    keys: Tensor,
    row: int,
    column: int,
    window_size: int,
    sink: Tensor | None = None,
) -> tuple[Tensor, float]:
    """What the pixel at ``row, column`` takes of each pixel of each page.

    query: its ``(Dk,)``. keys: ``(T, h, w, Dk)``.

    Returns weights ``(T, h, w)``, zero outside the pixel's window, and what went to neighbours
    outside the map. With the sink's part all of it adds up to 1; the operator's own formula, see
    ``local_memory_attention``.
    """
    radius = window_size // 2
    _, height, width, _ = keys.shape
    padded = pad(keys, (0, 0, radius, radius, radius, radius))
    window = padded[:, row : row + window_size, column : column + window_size]
    scores = (window @ query).flatten()
    if sink is not None:
        scores = torch.cat([scores, sink.flatten().to(scores.dtype)])
    weights = scores.softmax(dim=0)[: window.shape[0] * window_size**2].view(window.shape[:3])
    spread = torch.zeros(padded.shape[:3], dtype=weights.dtype, device=weights.device)
    spread[:, row : row + window_size, column : column + window_size] = weights
    inside = spread[:, radius : radius + height, radius : radius + width]
    return inside, float(weights.sum() - inside.sum())
