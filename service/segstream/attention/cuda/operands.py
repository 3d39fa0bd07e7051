"""The tensors of one call, brought into a form that the kernels can read."""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from segstream.attention.arguments import VALUE_BLOCK, check_arguments, value_channels
from segstream.attention.cuda.variants import Element

ELEMENTS = {
    torch.float32: Element.FLOAT,
    torch.float16: Element.HALF,
    torch.bfloat16: Element.BFLOAT16,
}
_CHUNK_BYTES = 16


@dataclass(frozen=True, eq=False)
class Operands:
    """Tensors with pages whose insides are contiguous; pages may lie apart (views of a pool)."""

    query: Tensor  # (B, h, w, Dk), contiguous
    keys: Tensor  # (S, h, w, Dk)
    values: Tensor  # (S, h, w, Dv) or (S, Dv/64, h, w, 64)
    slots: Tensor  # (B, T) int32, contiguous
    sink: Tensor | None  # (1,) fp32
    window: int

    @classmethod
    def of(
        cls,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        window: int,
        sink: Tensor | None,
    ) -> "Operands":
        """Copies only what does not already lie right.

        Raises ValueError naming the argument that does not fit.
        """
        check_arguments(query, keys, values, slots, window, sink)
        _check_dtypes({"query": query, "keys": keys, "values": values})
        return cls(
            query=query.detach().contiguous(),
            keys=_with_contiguous_pages(keys.detach()),
            values=_with_contiguous_pages(values.detach()),
            slots=slots.contiguous(),
            sink=None if sink is None else sink.detach().float().reshape(1),
            window=window,
        )

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def height(self) -> int:
        return self.query.shape[1]

    @property
    def width(self) -> int:
        return self.query.shape[2]

    @property
    def key_channels(self) -> int:
        return self.query.shape[3]

    @property
    def table_length(self) -> int:
        return self.slots.shape[1]

    @property
    def value_channels(self) -> int:
        return value_channels(self.values)

    @property
    def value_blocks(self) -> int:
        return -(-self.value_channels // VALUE_BLOCK)

    @property
    def value_pixel_stride(self) -> int:
        return self.values.shape[-1]

    @property
    def value_block_stride(self) -> int:
        if self.values.dim() == 4:
            return VALUE_BLOCK
        return self.height * self.width * VALUE_BLOCK

    @property
    def is_empty(self) -> bool:
        """Nothing to compute: no result, or a result of zeros."""
        return not (self.query.numel() and self.values.numel() and self.slots.numel())

    @property
    def is_aligned(self) -> bool:
        """Whether every pixel of every page starts at a multiple of 16 bytes."""
        query, keys, values = self.query, self.keys, self.values
        starts = [query.data_ptr(), keys.data_ptr(), values.data_ptr()]
        page_strides = [t.stride(0) * t.element_size() for t in (keys, values)]
        pixels = [t.shape[-1] * t.element_size() for t in (query, keys, values)]
        return not any(n % _CHUNK_BYTES for n in (*starts, *page_strides, *pixels))


def _with_contiguous_pages(pool: Tensor) -> Tensor:
    inner = pool.stride()[1:]
    packed = tuple(prod(pool.shape[axis + 2 :]) for axis in range(len(inner)))
    sizes = pool.shape[1:]
    fits = all(
        size == 1 or have == want for size, have, want in zip(sizes, inner, packed, strict=True)
    )
    return pool if fits else pool.contiguous()


def _check_dtypes(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        if tensor.dtype not in ELEMENTS:
            raise ValueError(
                f"local_memory_attention: {name} must be float32, float16 or bfloat16 on a GPU, "
                f"got {tensor.dtype}"
            )
