"""The operator on a GPU: our kernels forward, torch backward."""

import logging
from functools import cache

from torch import Tensor

from segstream.attention import row_band
from segstream.attention.cuda import (
    KernelUnavailableError,
    local_memory_attention_cuda,
    supports,
)
from segstream.attention.row_band import backward

__all__ = ["backward", "forward", "supports"]

_log = logging.getLogger(__name__)


def forward(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None,
) -> Tensor:
    """The read-out of checked arguments, on the caller's current stream.

    Where there is no kernel for them plain torch computes it, and says so once in the log.
    """
    try:
        return local_memory_attention_cuda(query, keys, values, slots, window_size, sink)
    except KernelUnavailableError as error:
        _warn_once(error.message)
        return row_band.forward(query, keys, values, slots, window_size, sink)


@cache
def _warn_once(reason: str) -> None:
    _log.warning("no CUDA attention kernel, using plain torch, many times slower: %s", reason)
