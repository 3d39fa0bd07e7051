"""Other ways to compute the local memory attention, for comparison only.

Each takes one query map ``(h, w, Dk)``, its pages ``(T, h, w, Dk)`` and ``(T, h, w, Dv)`` and the
window size, and returns the read-out ``(h, w, Dv)``.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import pad, unfold

_FLEX_BLOCK = 128
_TILE = 16


def row_band(query: Tensor, keys: Tensor, values: Tensor, window_size: int) -> Tensor:
    """A batch of matrix products for every page and row of the window.

    Tiles of 16 pixels share one band of keys; a bias hides from each what its window leaves out.
    """
    height, width, _ = query.shape
    tiles, band, r = -(-width // _TILE), _TILE + window_size - 1, window_size // 2
    fill = tiles * _TILE - width
    tiled = pad(query, (0, 0, 0, fill)).view(height * tiles, _TILE, -1)
    key_bands, value_bands = (
        pad(pool, (0, 0, r, r + fill, r, r)).unfold(2, band, _TILE).contiguous()
        for pool in (keys, values)
    )
    places = [(t, slice(dy, dy + height)) for t in range(len(keys)) for dy in range(window_size)]
    scores = torch.stack([tiled @ key_bands[place].flatten(0, 1) for place in places])
    offsets = torch.arange(band) - torch.arange(_TILE).unsqueeze(1)
    scores.masked_fill_((offsets < 0) | (offsets >= window_size), float("-inf"))
    weights = scores.sub_(scores.amax(dim=(0, 3), keepdim=True)).exp_()
    readout = torch.zeros(height * tiles, _TILE, values.shape[-1])
    for weight, place in zip(weights, places, strict=True):
        readout.baddbmm_(weight, value_bands[place].flatten(0, 1).transpose(1, 2))
    readout /= weights.sum(dim=(0, 3)).unsqueeze(-1)
    return readout.view(height, tiles * _TILE, -1)[:, :width]


def shifts(query: Tensor, keys: Tensor, values: Tensor, window_size: int) -> Tensor:
    """P * P shifted copies of every page: all scores, softmax, weighted sum."""
    height, width, _ = query.shape
    padded_keys, padded_values = (_with_margin(pool, window_size) for pool in (keys, values))
    places = [
        (t, slice(dy, dy + height), slice(dx, dx + width))
        for t in range(len(keys))
        for dy in range(window_size)
        for dx in range(window_size)
    ]
    scores = torch.stack([(query * padded_keys[place]).sum(dim=-1) for place in places])
    weights = scores.softmax(dim=0).unsqueeze(-1)
    readout = torch.zeros_like(values[0])
    for weight, place in zip(weights, places, strict=True):
        readout.addcmul_(weight, padded_values[place])
    return readout


def unfolded(query: Tensor, keys: Tensor, values: Tensor, window_size: int) -> Tensor:
    """``F.unfold`` writes out the window of every pixel."""
    height, width, key_channels = query.shape
    flat_query = query.reshape(1, height * width, key_channels).permute(2, 0, 1)
    scores = [(_unfold(page, window_size) * flat_query).sum(dim=0) for page in keys]
    weights = torch.cat(scores).softmax(dim=0).chunk(len(values))
    pages = zip(weights, values, strict=True)
    parts = [(_unfold(page, window_size) * weight).sum(dim=1) for weight, page in pages]
    return torch.stack(parts).sum(dim=0).t().reshape(height, width, -1)


def unfolded_bytes(values: Tensor, window_size: int) -> int:
    """Memory that ``unfolded`` takes, about."""
    return 2 * values[0].numel() * window_size**2 * values.element_size()


def compile_flex(
    query: Tensor, keys: Tensor, values: Tensor, window_size: int
) -> Callable[[Tensor, Tensor, Tensor, int], Tensor]:
    """``flex_attention``, compiled for tensors like these: pages with a margin, and a mask."""
    height, width, _ = query.shape
    rows, columns = height + window_size - 1, width + window_size - 1

    def in_window(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        place = k % (rows * columns)
        dy, dx = place // columns - q // width, place % columns - q % width
        return (dy >= 0) & (dy < window_size) & (dx >= 0) & (dx < window_size)

    num_queries, num_keys = height * width, len(keys) * rows * columns
    mask = _block_mask(in_window, num_queries, num_keys)
    attend = torch.compile(flex_attention, dynamic=False)

    def run(query: Tensor, keys: Tensor, values: Tensor, window_size: int) -> Tensor:
        flat_query = query.reshape(1, 1, num_queries, -1)
        flat_keys, flat_values = (
            _with_margin(pool, window_size).reshape(1, 1, num_keys, -1) for pool in (keys, values)
        )
        readout = attend(flat_query, flat_keys, flat_values, block_mask=mask, scale=1.0)
        assert isinstance(readout, Tensor)
        return readout.reshape(height, width, -1)

    run(query, keys, values, window_size)
    return run


def _block_mask(
    in_window: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], num_queries: int, num_keys: int
) -> BlockMask:
    """What ``create_block_mask`` makes, block row by block row to spare memory."""
    zero = torch.zeros((), dtype=torch.long)
    key = torch.arange(num_keys)
    padding = -num_keys % _FLEX_BLOCK
    rows = []
    for start in range(0, num_queries, _FLEX_BLOCK):
        query = torch.arange(start, min(start + _FLEX_BLOCK, num_queries)).unsqueeze(1)
        seen = in_window(zero, zero, query, key).any(dim=0)
        rows.append(pad(seen, (0, padding)).view(-1, _FLEX_BLOCK).any(dim=1))
    needed = torch.stack(rows).int()
    counts = needed.sum(dim=1, dtype=torch.int32)
    order = needed.argsort(dim=1, descending=True, stable=True).int()
    return BlockMask.from_kv_blocks(
        counts.view(1, 1, -1),
        order.view(1, 1, *order.shape),
        BLOCK_SIZE=_FLEX_BLOCK,
        mask_mod=in_window,
        seq_lengths=(num_queries, num_keys),
    )


def _with_margin(pages: Tensor, window_size: int) -> Tensor:
    r = window_size // 2
    return pad(pages, (0, 0, r, r, r, r))


def _unfold(page: Tensor, window_size: int) -> Tensor:
    """``(h, w, D)`` to ``(D, P * P, h * w)``."""
    columns = unfold(page.permute(2, 0, 1).unsqueeze(0), window_size, padding=window_size // 2)
    return columns.view(page.shape[-1], window_size**2, -1)
