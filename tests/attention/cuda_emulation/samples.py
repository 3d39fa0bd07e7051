"""Inputs of the operator, and what it must give, in float64."""

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from segstream.attention.cuda.operands import Operands


@dataclass(frozen=True)
class Sample:
    """Shapes and contents of one call."""

    dtype: torch.dtype = torch.float16
    height: int = 9
    width: int = 17
    window: int = 21
    key_channels: int = 16
    value_channels: int = 64
    slots: tuple[tuple[int, ...], ...] = ((1,),)
    num_slots: int = 3
    sink: float | None = None
    pool_dtype: torch.dtype | None = None
    score_scale: float = 0.25  # of the query; 0.25 at 16 channels gives scores of unit variance
    seed: int = 0

    def operands(self) -> Operands:
        """Unit-variance keys and values; pages that no slot names hold NaN."""
        generator = torch.Generator().manual_seed(self.seed)
        pool_dtype = self.pool_dtype or self.dtype
        shape = (self.height, self.width)

        def normal(*sizes: int) -> Tensor:
            return torch.randn(*sizes, generator=generator)

        query = normal(len(self.slots), *shape, self.key_channels) * self.score_scale
        keys = normal(self.num_slots, *shape, self.key_channels)
        values = normal(self.num_slots, *shape, self.value_channels)
        unused = set(range(self.num_slots)) - {slot for row in self.slots for slot in row}
        for slot in unused:
            keys[slot] = values[slot] = float("nan")
        if self.value_channels > 64:
            blocks = values.view(*values.shape[:3], -1, 64)
            values = blocks.permute(0, 3, 1, 2, 4).contiguous()
        return Operands.of(
            query.to(self.dtype),
            keys.to(pool_dtype),
            values.to(pool_dtype),
            torch.tensor(self.slots, dtype=torch.int32),
            self.window,
            None if self.sink is None else torch.tensor(self.sink),
        )

    def with_changes(self, **changes: object) -> "Sample":
        return replace(self, **changes)  # type: ignore[arg-type]


@lru_cache(maxsize=64)
def reference(operands: Operands) -> Tensor:
    """The definition, window by window, in float64: ``(B, h, w, Dv)``. Remembered per object."""
    return torch.stack([_item(operands, item) for item in range(operands.batch)])


def _item(operands: Operands, item: int) -> Tensor:
    query = operands.query[item].double()
    scores, values = [], []
    for slot in operands.slots[item].tolist():
        if 0 <= slot < operands.keys.shape[0]:
            scores.append(torch.einsum("hwd,hwdn->hwn", query, _windows(operands, slot, "keys")))
            values.append(_windows(operands, slot, "values"))
    if not scores:
        return query.new_zeros(*query.shape[:2], operands.value_channels)
    logits = torch.cat(scores, dim=-1)
    if operands.sink is not None:
        sink = operands.sink.double().expand(*logits.shape[:2], 1)
        weights = torch.cat([logits, sink], dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = logits.softmax(dim=-1)
    return torch.einsum("hwn,hwdn->hwd", weights, torch.cat(values, dim=-1))


def _windows(operands: Operands, slot: int, name: str) -> Tensor:
    """Keys or values in every pixel's window, zero outside the map: ``(h, w, D, P * P)``."""
    page: Tensor = getattr(operands, name)[slot].double()
    if page.dim() == 4:
        page = page.permute(1, 2, 0, 3).flatten(2)
    r = operands.window // 2
    padded = pad(page, (0, 0, r, r, r, r))
    windows = padded.unfold(0, operands.window, 1).unfold(1, operands.window, 1)
    return windows.flatten(3)


def strongly_negative(operands: Operands) -> Operands:
    """The same with every score of a present key far below zero: keys face away from queries."""
    query, keys = operands.query.abs(), -operands.keys.abs()
    return replace(operands, query=query, keys=keys)


def interleaved(operands: Operands) -> Operands:
    """The same pages, each with its key and its value side by side in one buffer."""
    slots = operands.keys.shape[0]
    key_size, value_size = operands.keys[0].numel(), operands.values[0].numel()
    pool = operands.keys.new_empty(slots, key_size + value_size)
    pool[:, :key_size] = operands.keys.flatten(1)
    pool[:, key_size:] = operands.values.flatten(1)
    return replace(
        operands,
        keys=pool[:, :key_size].view(operands.keys.shape),
        values=pool[:, key_size:].view(operands.values.shape),
    )
