"""What the operator's arguments must look like, checked before any memory is touched."""

from collections.abc import Sequence

import torch
from torch import Tensor

from segstream.pages import VALUE_BLOCK as VALUE_BLOCK

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_arguments(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    slots: Tensor,
    window_size: int,
    sink: Tensor | None,
) -> None:
    """Check shapes, dtypes and devices; raise ValueError naming the argument that does not fit.

    Looks at no element, so it holds for fake tensors too; see ``check_slots`` for the slots.
    """
    _require(
        query.dim() == 4 and all(size > 0 for size in query.shape[1:]),
        f"query must be (B, h, w, Dk), got {tuple(query.shape)}",
    )
    _require(
        keys.dim() == 4 and keys.shape[1:] == query.shape[1:],
        f"keys must be (S, h, w, Dk) with the query's h, w, Dk; "
        f"got {tuple(keys.shape)} for query {tuple(query.shape)}",
    )
    _require(
        values.dim() in (4, 5)
        and values.shape[0] == keys.shape[0]
        and values.shape[-3:-1] == keys.shape[1:3]
        and all(size > 0 for size in values.shape[1:])
        and (values.dim() == 4 or values.shape[-1] == VALUE_BLOCK),
        f"values must be (S, h, w, Dv) or (S, Dv/64, h, w, 64) with the keys' S, h, w; "
        f"got {tuple(values.shape)} for keys {tuple(keys.shape)}",
    )
    _require(
        slots.dim() == 2 and slots.shape[0] == query.shape[0] and slots.dtype == torch.int32,
        f"slots must be (B, T) int32 with B = {query.shape[0]}, "
        f"got {tuple(slots.shape)} {slots.dtype}",
    )
    _require(
        window_size >= 1 and window_size % 2 == 1,
        f"window_size must be odd and positive, got {window_size}",
    )
    _require(
        sink is None or sink.numel() == 1,
        f"sink must hold a single logit, got {None if sink is None else tuple(sink.shape)}",
    )
    floats = {"query": query, "keys": keys, "values": values}
    if sink is not None:
        floats["sink"] = sink
    _check_floats(floats)
    _check_storage({**floats, "slots": slots}, query.device)


def check_readouts(readouts: dict[str, Tensor], query: Tensor, values: Tensor) -> None:
    """Check read-outs, or gradients of them, that go with these checked arguments."""
    shape = tuple(readout_shape(query, values))
    for name, tensor in readouts.items():
        _require(
            tuple(tensor.shape) == shape,
            f"{name} must be (B, h, w, Dv) = {shape}, got {tuple(tensor.shape)}",
        )
    _check_floats(readouts)
    _check_storage(readouts, query.device)


def check_slots(slots: Tensor, num_pages: int) -> None:
    """Raise ValueError unless every slot is -1 or a page. Waits for the slots' device."""
    if slots.numel():
        low, high = torch.stack(slots.aminmax()).tolist()
        _require(
            low >= -1 and high < num_pages,
            f"slots must be in -1..{num_pages - 1}, got {low}..{high}",
        )


def value_channels(values: Tensor) -> int:
    """Dv of values in either layout."""
    return values.shape[-1] * (values.shape[1] if values.dim() == 5 else 1)


def readout_shape(query: Tensor, values: Tensor) -> Sequence[int]:
    """``(B, h, w, Dv)``."""
    return (*query.shape[:3], value_channels(values))


def _check_floats(tensors: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        _require(tensor.dtype in _FLOATS, f"{name} must be floating point, got {tensor.dtype}")


def _check_storage(tensors: dict[str, Tensor], device: torch.device) -> None:
    for name, tensor in tensors.items():
        _require(tensor.layout == torch.strided, f"{name} must be dense, got {tensor.layout}")
        _require(
            tensor.device == device,
            f"{name} must lie on the query's device {device}, got {tensor.device}",
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(f"local_memory_attention: {message}")
