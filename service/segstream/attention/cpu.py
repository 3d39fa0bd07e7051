"""Calls the CPU kernel, a shared library with a C interface that was built with the package."""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from segstream.attention.arguments import VALUE_BLOCK, check_slots, readout_shape
from segstream.shared_library import Isa, load

LIBRARY = Path(__file__).with_name("libsegstream_attention.so")
MAX_WINDOW_SIZE = 1023
_ABI = 1
_ELEMENTS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_SLOT_OUT_OF_RANGE, _OUT_OF_MEMORY = 1, 2


class _Pool(ctypes.Structure):
    """``SegstreamPool`` in csrc/attention.h; strides count elements."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("page_stride", ctypes.c_int64),
        ("block_stride", ctypes.c_int64),
        ("row_stride", ctypes.c_int64),
        ("pixel_stride", ctypes.c_int64),
        ("element", ctypes.c_int32),
    )


class _Problem(ctypes.Structure):
    """``SegstreamProblem`` in csrc/attention.h."""

    _fields_ = (
        ("query", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("sink", ctypes.c_void_p),
        ("keys", _Pool),
        ("values", _Pool),
        ("batch", ctypes.c_int32),
        ("memory_length", ctypes.c_int32),
        ("num_pages", ctypes.c_int32),
        ("height", ctypes.c_int32),
        ("width", ctypes.c_int32),
        ("key_channels", ctypes.c_int32),
        ("value_channels", ctypes.c_int32),
        ("window_size", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
        ("isa", ctypes.c_int32),
    )


class _Gradients(ctypes.Structure):
    """``SegstreamGradients`` in csrc/attention.h."""

    _fields_ = (
        ("out", ctypes.c_void_p),
        ("grad_out", ctypes.c_void_p),
        ("grad_query", ctypes.c_void_p),
        ("grad_keys", ctypes.c_void_p),
        ("grad_values", ctypes.c_void_p),
        ("grad_sink", ctypes.c_void_p),
        ("value_page_stride", ctypes.c_int64),
        ("value_block_stride", ctypes.c_int64),
        ("value_row_stride", ctypes.c_int64),
        ("value_pixel_stride", ctypes.c_int64),
    )


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernel, or None with one warning in the log where there is none that works."""
    kernel = load(LIBRARY, "attention", abi=_ABI, instead="using plain torch, many times slower")
    if kernel is None:
        return None
    kernel.segstream_attention_forward.argtypes = (ctypes.POINTER(_Problem), ctypes.c_void_p)
    kernel.segstream_attention_backward.argtypes = (
        ctypes.POINTER(_Problem),
        ctypes.POINTER(_Gradients),
    )
    return kernel


def best_isa() -> Isa | None:
    """The strongest instruction set that the kernel may use here; None without a kernel."""
    kernel = library()
    return None if kernel is None else Isa(kernel.segstream_attention_isa())


def supports(query: Tensor, keys: Tensor, values: Tensor, window_size: int) -> bool:
    """Whether the kernel can be called with these checked arguments."""
    return (
        query.device.type == "cpu"
        and all(tensor.dtype in _ELEMENTS for tensor in (query, keys, values))
        and window_size <= MAX_WINDOW_SIZE
        and library() is not None
    )


def forward(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None,
    *,
    isa: Isa = Isa.BEST,
) -> Tensor:
    """The read-out of checked arguments; raises ValueError for a slot out of range.

    ``isa`` asks for a weaker instruction set than the processor has.
    """
    call = _Call(query, keys, values, slots, window_size, sink, isa)
    readout = torch.empty(readout_shape(query, values), dtype=torch.float32, device="cpu")
    call.run("segstream_attention_forward", readout.data_ptr())
    return readout.to(query.dtype)


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
    *,
    isa: Isa = Isa.BEST,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, keys, values and sink; an empty tensor where not needed."""
    call = _Call(query, keys, values, slots, window_size, sink, isa)
    grads = [
        torch.zeros(tensor.shape, dtype=torch.float32, device="cpu")
        if is_needed and tensor is not None
        else None
        for tensor, is_needed in zip((query, keys, values, sink), needed, strict=True)
    ]
    readout, grad_readout = _dense_floats(readout), _dense_floats(grad_readout)
    value_strides = (0, 0, 0, 0) if grads[2] is None else _strides(grads[2])
    pointers = (None if grad is None else grad.data_ptr() for grad in grads)
    gradients = _Gradients(readout.data_ptr(), grad_readout.data_ptr(), *pointers, *value_strides)
    call.run("segstream_attention_backward", ctypes.byref(gradients))
    dense = [
        query.new_empty(0) if grad is None or tensor is None else grad.to(tensor.dtype)
        for grad, tensor in zip(grads, (query, keys, values, sink), strict=True)
    ]
    return dense[0], dense[1], dense[2], dense[3]


class _Call:
    """One call of the kernel: its arguments, and the tensors that must outlive it."""

    def __init__(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        slots: Tensor,
        window_size: int,
        sink: Tensor | None,
        isa: Isa,
    ) -> None:
        self.query = _dense_floats(query)
        self.keys, self.values = _readable(keys), _readable(values)
        self.slots = _readable(slots).contiguous()
        self.sink = None if sink is None else _dense_floats(sink)
        batch, height, width, value_channels = readout_shape(query, values)
        self.problem = _Problem(
            self.query.data_ptr(),
            self.slots.data_ptr(),
            None if self.sink is None else self.sink.data_ptr(),
            _pool(self.keys),
            _pool(self.values),
            batch,
            slots.shape[1],
            keys.shape[0],
            height,
            width,
            query.shape[3],
            value_channels,
            window_size,
            torch.get_num_threads(),
            isa,
        )

    def run(self, function: str, argument: object) -> None:
        kernel = library()
        if kernel is None:
            raise RuntimeError("the CPU attention kernel was not built")
        status = getattr(kernel, function)(ctypes.byref(self.problem), argument)
        if status == _SLOT_OUT_OF_RANGE:
            check_slots(self.slots, self.problem.num_pages)
        if status == _OUT_OF_MEMORY:
            raise MemoryError("local_memory_attention: no memory for the kernel's scratch space")
        if status:
            raise RuntimeError(f"{function} returned {status}")


def _dense_floats(tensor: Tensor) -> Tensor:
    return _readable(tensor.to(torch.float32)).contiguous()


def _readable(tensor: Tensor) -> Tensor:
    """``tensor`` with the channels of a pixel side by side and its elements aligned."""
    if tensor.shape[-1:].numel() > 1 and tensor.stride(-1) != 1:
        return tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % tensor.element_size() else tensor


def _strides(pool: Tensor) -> tuple[int, int, int, int]:
    """Strides of pages, channel blocks, rows and pixels."""
    if pool.dim() == 5:
        page, block, row, pixel, _ = pool.stride()
        return page, block, row, pixel
    page, row, pixel, _ = pool.stride()
    return page, VALUE_BLOCK, row, pixel


def _pool(tensor: Tensor) -> _Pool:
    return _Pool(tensor.data_ptr(), *_strides(tensor), _ELEMENTS[tensor.dtype])
