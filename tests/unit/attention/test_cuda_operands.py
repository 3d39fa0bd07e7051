import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from segstream.attention.cuda.operands import Operands

H, W, DK, DV = 3, 4, 8, 16
QUERY, KEYS = torch.zeros(2, H, W, DK), torch.zeros(5, H, W, DK)
GOOD = {
    "query": QUERY,
    "keys": KEYS,
    "values": torch.zeros(5, H, W, DV),
    "slots": torch.zeros(2, 3, dtype=torch.int32),
    "window": 5,
    "sink": None,
}


def make(**changes: object) -> Operands:
    return Operands.of(**{**GOOD, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"query": torch.zeros(H, W, DK)}, "query must be"),
        ({"keys": torch.zeros(5, H, W, DK + 1)}, "keys must be"),
        ({"keys": torch.zeros(5, H + 1, W, DK)}, "keys must be"),
        ({"values": torch.zeros(4, H, W, DV)}, "values must be"),
        ({"values": torch.zeros(5, 2, H, W, 32)}, "values must be"),
        ({"slots": torch.zeros(2, 3)}, "slots must be"),
        ({"slots": torch.zeros(3, 3, dtype=torch.int32)}, "slots must be"),
        ({"slots": torch.zeros(2, dtype=torch.int32)}, "slots must be"),
        ({"window": 4}, "odd"),
        ({"window": -1}, "odd"),
        ({"sink": torch.zeros(2)}, "single logit"),
        ({"query": torch.zeros(2, H, W, DK, dtype=torch.float64)}, "query must be float32"),
        ({"values": torch.zeros(5, H, W, DV, dtype=torch.int8)}, "values must be floating"),
        (
            {"slots": torch.zeros(2, 3, dtype=torch.int32, device="meta")},
            "slots must lie on the query's device",
        ),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**changes)


def test_packed_tensors_are_not_copied() -> None:
    operands = make()
    assert operands.keys.data_ptr() == KEYS.data_ptr()
    assert operands.query.data_ptr() == QUERY.data_ptr()


def test_pages_that_lie_apart_are_not_copied() -> None:
    pool = torch.zeros(5, 2 * H * W * DK)
    keys = pool[:, : H * W * DK].view(5, H, W, DK)
    operands = make(keys=keys)
    assert operands.keys.data_ptr() == keys.data_ptr()
    assert operands.keys.stride(0) == 2 * H * W * DK


@given(st.permutations(range(4)))
def test_any_strides_are_understood(order: list[int]) -> None:
    keys = torch.randn(5, H, W, DK)
    inverse = [order.index(axis) for axis in range(4)]
    strided: Tensor = keys.permute(order).contiguous().permute(inverse)
    operands = make(keys=strided)
    assert torch.equal(operands.keys, keys)
    assert operands.keys.stride()[1:] == (W * DK, DK, 1)


def test_value_blocks() -> None:
    narrow = make()
    assert (narrow.value_channels, narrow.value_blocks) == (DV, 1)
    blocked = make(values=torch.zeros(5, 3, H, W, 64))
    assert (blocked.value_channels, blocked.value_blocks) == (192, 3)
    assert (blocked.value_pixel_stride, blocked.value_block_stride) == (64, H * W * 64)
    wide = make(values=torch.zeros(5, H, W, 192))
    assert (wide.value_channels, wide.value_blocks) == (192, 3)
    assert (wide.value_pixel_stride, wide.value_block_stride) == (192, 64)


def test_the_sink_becomes_fp32() -> None:
    sink = make(sink=torch.tensor(1.5, dtype=torch.float16)).sink
    assert sink is not None
    assert (sink.shape, sink.dtype, sink.item()) == ((1,), torch.float32, 1.5)
