"""Local memory attention (LMANet, section 3.3): read pages of past keys and values by location.

Pixel i of a batch item scores every key within the P x P window around i on each of its pages,
without scaling. One softmax runs over all those scores, time and space together. A neighbour
outside the map scores exactly 0 and takes its share of the softmax, with value 0.

Training, ``torch.compile`` and ``torch.export`` come through the custom operator
``segstream::local_memory_attention`` defined here; plain inference goes straight to the kernel. The
tensors decide which kernel that is.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from segstream.attention import cpu, gpu, row_band
from segstream.attention.arguments import check_arguments, check_readouts, readout_shape

Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


class Kernel(Protocol):
    """One implementation: a module with these two functions."""

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        window_size: int,
        sink: Tensor | None,
    ) -> Tensor:
        """The read-out, contiguous, in query's dtype."""

    def backward(
        self,
        grad_readout: Tensor,
        readout: Tensor,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        window_size: int,
        sink: Tensor | None,
        needed: list[bool],
    ) -> Gradients:
        """Gradients of query, keys, values and sink; an empty tensor where not needed."""


def local_memory_attention(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    *,
    sink: Tensor | None = None,
) -> Tensor:
    """Read ``values`` at the places whose ``keys`` match ``query``.

    query: ``(B, h, w, Dk)``.
    keys: a pool of S pages, ``(S, h, w, Dk)``.
    values: ``(S, h, w, Dv)``, or ``(S, Dv/64, h, w, 64)`` for Dv > 64.
    slots: ``(B, T)`` int32, the pages each item reads, oldest first; -1 = absent, takes no part.
    window_size: P, odd.
    sink: one optional logit that takes softmax mass and gives nothing.

    Returns ``(B, h, w, Dv)`` in query's dtype; zeros for an item without any page. The pools may
    have another floating dtype than the query; sums are in float32, for a float64 query in float64.
    Computed by a kernel, an item's result is the same to the bit whatever the rest of the batch,
    the slots its pages lie in, and the number of threads; by plain torch it is up to rounding.
    Differentiable once, in query, keys, values and sink.
    Raises ValueError naming the argument that does not fit.
    """
    if _is_plain_inference(query):
        return _compute(query, keys, values, slots, window_size, sink)
    readout: Tensor = _forward(query, keys, values, slots, window_size, sink)
    return readout


def _is_plain_inference(query: Tensor) -> bool:
    """Where nobody looks for the operator, whose first call takes a second of imports."""
    return (
        not torch.compiler.is_compiling()
        and torch.is_inference_mode_enabled()
        and type(query) is Tensor
    )


def _compute(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None,
) -> Tensor:
    check_arguments(query, keys, values, slots, window_size, sink)
    kernel = _kernel_for(query, keys, values, window_size)
    return kernel.forward(query, keys, values, slots, window_size, sink)


def _kernel_for(query: Tensor, keys: Tensor, values: Tensor, window_size: int) -> Kernel:
    for kernel in (cpu, gpu):
        if kernel.supports(query, keys, values, window_size):
            return kernel
    return row_band


_forward = torch.library.custom_op("segstream::local_memory_attention", mutates_args=())(_compute)


@_forward.register_fake
def _(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None,
) -> Tensor:
    check_arguments(query, keys, values, slots, window_size, sink)
    return query.new_empty(readout_shape(query, values))


@torch.library.custom_op("segstream::local_memory_attention_backward", mutates_args=())
def _backward(
    grad_readout: Tensor,
    readout: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None,
    needed: list[bool],
) -> Gradients:
    check_arguments(query, keys, values, slots, window_size, sink)
    check_readouts({"grad_readout": grad_readout, "readout": readout}, query, values)
    kernel = _kernel_for(query, keys, values, window_size)
    return kernel.backward(
        grad_readout, readout, query, keys, values, slots, window_size, sink, needed
    )


@_backward.register_fake
def _(
    grad_readout: Tensor,
    readout: Tensor,
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None,
    needed: list[bool],
) -> Gradients:
    def empty(tensor: Tensor | None, is_needed: bool) -> Tensor:
        if tensor is None or not is_needed:
            return query.new_empty(0)
        return tensor.new_empty(tensor.shape)

    grads = [empty(*pair) for pair in zip((query, keys, values, sink), needed, strict=True)]
    return grads[0], grads[1], grads[2], grads[3]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    query, keys, values, slots, ctx.window_size, sink = inputs
    ctx.save_for_backward(query, keys, values, slots, sink, output)


def _differentiate(ctx: Any, grad_readout: Tensor) -> tuple[Tensor | None, ...]:
    query, keys, values, slots, sink, readout = ctx.saved_tensors
    needed = [ctx.needs_input_grad[argument] for argument in (0, 1, 2, 5)]
    grads = _backward(
        grad_readout, readout, query, keys, values, slots, ctx.window_size, sink, needed
    )
    query_grad, keys_grad, values_grad, sink_grad = (
        grad if is_needed else None for grad, is_needed in zip(grads, needed, strict=True)
    )
    return query_grad, keys_grad, values_grad, None, None, sink_grad


_forward.register_autograd(_differentiate, setup_context=_setup_context)
