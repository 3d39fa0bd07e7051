"""The operator in plain torch: for any device and dtype, and where no kernel was built.

A row of queries is cut into tiles, and the queries of a tile share one band of keys, so the work is
matrix products. ``forward`` can be differentiated by autograd as well, which tests use as a
reference for ``backward``.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from segstream.attention.arguments import check_slots, readout_shape

_TILE = 16


def forward(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None,
) -> Tensor:
    """The read-out of checked arguments; raises ValueError for a slot out of range."""
    check_slots(slots, len(keys))
    if not _reads_anything(slots, query):
        return query.new_zeros(readout_shape(query, values))
    rows = _Rows(query, keys, values, slots, window_size, sink)
    tiles = torch.stack(
        [rows.weights(y)[0] @ rows.bands.gather(rows.values, y) for y in range(query.shape[1])],
        dim=1,
    )
    readout = torch.where(rows.has_pages, rows.bands.untile(tiles), 0.0)
    return readout.to(query.dtype).contiguous()


def backward(
    grad_readout: Tensor,
    readout: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None,
    needed: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, keys, values and sink; an empty tensor where not needed."""
    check_slots(slots, len(keys))
    grads = [
        torch.zeros_like(tensor, memory_format=torch.contiguous_format)
        if is_needed and tensor is not None
        else query.new_empty(0)
        for tensor, is_needed in zip((query, keys, values, sink), needed, strict=True)
    ]
    if _reads_anything(slots, query):
        rows = _Rows(query, keys, values, slots, window_size, sink)
        found = rows.gradients(grad_readout, readout)
        for grad, value in zip(grads, found, strict=True):
            if grad.numel():
                grad.copy_(value.view_as(grad))
    return grads[0], grads[1], grads[2], grads[3]


def _reads_anything(slots: Tensor, query: Tensor) -> bool:
    return query.numel() > 0 and bool((slots >= 0).any())


class _Rows:
    """The padded pages and tiled queries of one call, and what can be said of row ``y``."""

    def __init__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        window_size: int,
        sink: Tensor | None,
    ) -> None:
        self.dtype = torch.promote_types(query.dtype, torch.float32)
        self.pages = slots.clamp(min=0).long()
        self.pools = (keys, values)
        present = slots >= 0
        self.has_pages = present.any(dim=1).view(-1, 1, 1, 1)
        query = query.to(self.dtype)
        self.bands = _Bands(query.shape[2], window_size, query)
        self.query = self.bands.tile(query)
        self.keys = self.bands.pad_pages(self._gather(keys, present))
        self.values = self.bands.pad_pages(self._gather(_channels_last(values), present))
        self.bias = self.bands.bias(present)
        self.sink = sink

    def _gather(self, pool: Tensor, present: Tensor) -> Tensor:
        """The pages of each item, ``(B, T, h, w, D)``; absent ones are zeros.

        A mask on the scores would not do: a page never written may hold NaN.
        """
        mask = present.view(*present.shape, 1, 1, 1)
        return torch.where(mask, pool[self.pages].to(self.dtype), 0.0)

    def weights(self, y: int) -> tuple[Tensor, Tensor]:
        """Softmax weights ``(B, tiles, X, T * P * band)``, and what the sink took."""
        scores = self.query[:, y] @ self.bands.gather(self.keys, y).transpose(-1, -2) + self.bias
        if self.sink is None:
            return scores.softmax(dim=-1), scores.new_zeros(1)
        column = self.sink.to(scores.dtype).expand(*scores.shape[:-1], 1)
        weights = torch.cat([scores, column], dim=-1).softmax(dim=-1)
        return weights[..., :-1], weights[..., -1:]

    def gradients(self, grad_readout: Tensor, readout: Tensor) -> tuple[Tensor, ...]:
        """Gradients of query, keys, values and sink."""
        grad_readout = torch.where(self.has_pages, grad_readout.to(self.dtype), 0.0)
        grad = self.bands.tile(grad_readout)
        product = self.bands.tile((grad_readout * readout).sum(dim=-1, keepdim=True))
        grad_query = torch.zeros_like(self.query)
        grad_keys, grad_values = torch.zeros_like(self.keys), torch.zeros_like(self.values)
        grad_sink = grad_readout.new_zeros(1)
        for y in range(self.query.shape[1]):
            weights, sink_weight = self.weights(y)
            g = grad[:, y]
            value_scores = g @ self.bands.gather(self.values, y).transpose(-1, -2)
            grad_scores = weights * (value_scores - product[:, y])
            grad_query[:, y] = grad_scores @ self.bands.gather(self.keys, y)
            self.bands.scatter(grad_keys, y, grad_scores.transpose(-1, -2) @ self.query[:, y])
            self.bands.scatter(grad_values, y, weights.transpose(-1, -2) @ g)
            grad_sink -= (sink_weight * product[:, y]).sum()
        keys, values = self.pools
        return (
            self.bands.untile(grad_query),
            self._to_pool(grad_keys, keys),
            self._to_pool(grad_values, values),
            grad_sink,
        )

    def _to_pool(self, grad: Tensor, pool: Tensor) -> Tensor:
        pages = self.bands.unpad_pages(grad)
        total = pages.new_zeros(len(pool), *pages.shape[2:])
        total.index_add_(0, self.pages.flatten(), pages.flatten(0, 1))
        if pool.dim() == 5:
            blocks = total.view(*total.shape[:3], pool.shape[1], pool.shape[-1])
            total = blocks.permute(0, 3, 1, 2, 4)
        return total.contiguous()


class _Bands:
    """Cuts a row of queries into tiles that share one band of keys.

    A tile of X pixels sees the same P rows of X + P - 1 keys; a bias of -inf hides from each pixel
    the keys of the band beyond its own window. So windows are never written out.
    """

    def __init__(self, width: int, window_size: int, like: Tensor) -> None:
        self.width = width
        self.window_size = window_size
        self.radius = window_size // 2
        self.tiles = -(-width // _TILE)
        self.band = _TILE + window_size - 1
        self.fill = self.tiles * _TILE - width
        offset = torch.arange(self.band, device=like.device) - torch.arange(
            _TILE, device=like.device
        ).unsqueeze(1)
        inside = (offset >= 0) & (offset < window_size)
        self.mask = like.new_zeros(inside.shape).masked_fill(~inside, float("-inf"))

    def pad_pages(self, pages: Tensor) -> Tensor:
        """``(B, T, h, w, D)`` to the same with a zero margin of the window's radius."""
        r = self.radius
        return pad(pages, (0, 0, r, r + self.fill, r, r))

    def unpad_pages(self, padded: Tensor) -> Tensor:
        """The inverse of ``pad_pages``."""
        r = self.radius
        return padded[:, :, r : padded.shape[2] - r, r : r + self.width]

    def tile(self, pixels: Tensor) -> Tensor:
        """``(B, h, w, D)`` to ``(B, h, tiles, X, D)``."""
        padded = pad(pixels, (0, 0, 0, self.fill))
        return padded.reshape(*pixels.shape[:2], self.tiles, _TILE, pixels.shape[-1])

    def untile(self, tiles: Tensor) -> Tensor:
        """The inverse of ``tile``."""
        return tiles.flatten(2, 3)[:, :, : self.width]

    def gather(self, padded: Tensor, y: int) -> Tensor:
        """The bands that row ``y`` sees: ``(B, tiles, T * P * band, D)``."""
        rows = padded[:, :, y : y + self.window_size]
        bands = rows.unfold(3, self.band, _TILE)
        return bands.permute(0, 3, 1, 2, 5, 4).flatten(2, 4)

    def scatter(self, padded: Tensor, y: int, bands: Tensor) -> None:
        """Add to ``padded`` what belongs to the bands that row ``y`` sees."""
        rows = padded[:, :, y : y + self.window_size]
        length = padded.shape[1]
        parts = bands.view(*bands.shape[:2], length, self.window_size, self.band, -1)
        for tile in range(self.tiles):
            rows[:, :, :, tile * _TILE : tile * _TILE + self.band] += parts[:, tile]

    def bias(self, present: Tensor) -> Tensor:
        """``(B, 1, X, T * P * band)``: 0 where a pixel may look, -inf where it may not.

        Items without any page are let through here, to keep the softmax finite.
        """
        absent = ~present & present.any(dim=1, keepdim=True)
        per_page = self.mask.new_zeros(present.shape).masked_fill(absent, float("-inf"))
        bias = per_page[:, None, :, None, None] + self.mask[:, None, None, :]
        shape = (*present.shape[:1], _TILE, present.shape[1], self.window_size, self.band)
        return bias.expand(shape).flatten(2).unsqueeze(1)


def _channels_last(values: Tensor) -> Tensor:
    if values.dim() == 5:
        return values.permute(0, 2, 3, 1, 4).flatten(3)
    return values
