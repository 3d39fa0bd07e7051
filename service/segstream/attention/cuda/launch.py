"""From tensors to kernel launches."""

import logging
from functools import cache

import torch
from torch import Tensor

from segstream.attention.arguments import check_slots
from segstream.attention.cuda.cuda_device import CudaDevice
from segstream.attention.cuda.device import Device
from segstream.attention.cuda.errors import KernelUnavailableError
from segstream.attention.cuda.operands import ELEMENTS, Operands
from segstream.attention.cuda.plan import Plan, make_plan
from segstream.attention.cuda.problem import Problem

_log = logging.getLogger(__name__)


def local_memory_attention_cuda(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None = None,
) -> Tensor:
    """The local memory attention of CUDA tensors, on the caller's current stream.

    query: ``(B, h, w, Dk)``.
    keys: ``(S, h, w, Dk)``; pages may lie apart, a page must not (else the pool is copied).
    values: ``(S, h, w, Dv)``, or ``(S, Dv/64, h, w, 64)``.
    slots: ``(B, T)`` int32, oldest first; -1 = absent, takes no part.
    window_size: P, odd.
    sink: one optional logit that takes softmax mass and gives nothing.

    Slots outside -1..S-1 are refused; to see them the call waits for the stream. While that is
    captured into a graph it does not look, and such a slot takes no part: no memory outside the
    pools is read either way.

    Returns ``(B, h, w, Dv)`` in query's dtype; zeros for an item without any page. Can be captured
    into a CUDA graph after a first call with the same shapes. Raises ValueError naming the argument
    that does not fit, KernelUnavailableError where there is no kernel for it, CudaError where the
    GPU or the driver refuses.
    """
    operands = Operands.of(query, keys, values, slots, window_size, sink)
    if not query.is_cuda:
        raise ValueError(f"local_memory_attention: query must lie on a GPU, not {query.device}")
    if not torch.cuda.is_current_stream_capturing():
        check_slots(operands.slots, len(operands.keys))
    return attend(operands, CudaDevice.of(query.device))


def supports(query: Tensor, keys: Tensor, values: Tensor, window_size: int) -> bool:
    """Whether the kernels take arguments of this device and these dtypes; windows may be any."""
    return (
        query.is_cuda
        and torch.version.hip is None  # a ROCm build calls its devices cuda, too
        and all(tensor.dtype in ELEMENTS for tensor in (query, keys, values))
    )


def attend(operands: Operands, device: Device) -> Tensor:
    """Compute on a given device. Raises as ``local_memory_attention_cuda``."""
    shape = (*operands.query.shape[:3], operands.value_channels)
    dtype = operands.query.dtype
    if operands.is_empty:
        return device.empty(shape, dtype).zero_()
    plan = _prepared_plan(operands, device)
    query = operands.query.float() if plan.in_float else operands.query
    out = device.empty(shape, torch.float32 if plan.in_float else dtype)
    problem = _problem(operands, query, out)
    if plan.is_split:
        parts = (operands.table_length, *shape[:3])
        sums = device.empty((*parts, operands.value_channels), torch.float32)
        stats = device.empty((*parts, operands.value_blocks, 2), torch.float32)
        problem.partial_sums, problem.partial_stats = sums.data_ptr(), stats.data_ptr()
    for kernel in plan.launches:
        device.launch(kernel, problem)
    return out.to(dtype)


def _prepared_plan(operands: Operands, device: Device) -> Plan:
    plan = make_plan(operands, device.traits)
    try:
        device.prepare([kernel.variant for kernel in plan.launches])
        return plan
    except KernelUnavailableError as error:
        if plan.in_float:
            raise
        _warn_once(plan.launches[0].variant.name, str(error))
    plain = make_plan(operands, device.traits, allow_tensor_cores=False)
    device.prepare([kernel.variant for kernel in plain.launches])
    return plain


@cache
def _warn_once(kernel: str, reason: str) -> None:
    _log.warning("tensor-core kernel %s is not available, using the plain one: %s", kernel, reason)


def _problem(operands: Operands, query: Tensor, out: Tensor) -> Problem:
    keys, values, sink = operands.keys, operands.values, operands.sink
    return Problem(
        query=query.data_ptr(),
        keys=keys.data_ptr(),
        values=values.data_ptr(),
        slots=operands.slots.data_ptr(),
        sink=None if sink is None else sink.data_ptr(),
        out=out.data_ptr(),
        key_page_stride=keys.stride(0),
        value_page_stride=values.stride(0),
        value_block_stride=operands.value_block_stride,
        value_pixel_stride=operands.value_pixel_stride,
        batch=operands.batch,
        table_length=operands.table_length,
        num_slots=keys.shape[0],
        height=operands.height,
        width=operands.width,
        window=operands.window,
        key_channels=operands.key_channels,
        value_channels=operands.value_channels,
        value_blocks=operands.value_blocks,
    )
