"""The local memory attention operator against the float64 oracle."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segstream.attention import local_memory_attention
from tests.oracle import FloatArray, local_memory_read


@dataclass(frozen=True)
class Sample:
    """One set of arguments of the operator."""

    query: Tensor
    keys: Tensor
    values: Tensor
    slots: Tensor
    window_size: int
    sink: Tensor | None = None

    def read(self) -> Tensor:
        return local_memory_attention(
            self.query, self.keys, self.values, self.slots, self.window_size, sink=self.sink
        )

    def expected(self) -> FloatArray:
        keys, values = _channels_first(self.keys), _value_channels_first(self.values)
        out = []
        for query, row in zip(_channels_first(self.query), self.slots.tolist(), strict=True):
            read = local_memory_read(
                query,
                [None if slot < 0 else keys[slot] for slot in row],
                [None if slot < 0 else values[slot] for slot in row],
                self.window_size,
                values.shape[1],
                None if self.sink is None else float(self.sink),
            )
            out.append(read.transpose(1, 2, 0))
        return np.stack(out)

    def to(self, dtype: torch.dtype) -> "Sample":
        return replace(
            self,
            query=self.query.to(dtype),
            keys=self.keys.to(dtype),
            values=self.values.to(dtype),
            sink=None if self.sink is None else self.sink.to(dtype),
        )


def _channels_first(pool: Tensor) -> FloatArray:
    array: FloatArray = pool.double().permute(0, 3, 1, 2).numpy()
    return array


def _value_channels_first(values: Tensor) -> FloatArray:
    if values.dim() == 4:
        return _channels_first(values)
    groups = values.double().numpy()
    return np.concatenate(
        [groups[:, group].transpose(0, 3, 1, 2) for group in range(groups.shape[1])], axis=1
    )


def make_sample(
    *,
    seed: int = 0,
    slots: list[list[int]] | None = None,
    num_slots: int = 5,
    size: tuple[int, int] = (4, 6),
    key_channels: int = 4,
    value_channels: int = 3,
    window_size: int = 3,
    sink: float | None = None,
) -> Sample:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    table = torch.tensor(slots or [[2, 0, 4], [1, 3, 2]], dtype=torch.int32)
    layout = (*size, value_channels) if value_channels <= 64 else (value_channels // 64, *size, 64)
    return Sample(
        query=normal(len(table), *size, key_channels),
        keys=normal(num_slots, *size, key_channels),
        values=normal(num_slots, *layout),
        slots=table,
        window_size=window_size,
        sink=None if sink is None else torch.tensor([sink], dtype=torch.float64),
    )


def assert_close(actual: Tensor, expected: FloatArray | Tensor, tolerance: float) -> None:
    wanted = expected.double().numpy() if isinstance(expected, Tensor) else expected
    np.testing.assert_allclose(actual.detach().double().numpy(), wanted, rtol=0, atol=tolerance)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Any batch, map, memory length and window; -1 and repeated slots fall anywhere."""
    num_slots = draw(st.integers(1, 6))
    batch, length = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 4]))
    row = st.lists(st.integers(-1, num_slots - 1), min_size=length, max_size=length)
    return make_sample(
        seed=draw(st.integers(0, 2**31)),
        slots=draw(st.lists(row, min_size=batch, max_size=batch)),
        num_slots=num_slots,
        size=(draw(st.integers(1, 7)), draw(st.sampled_from([1, 2, 5, 15, 16, 17, 33]))),
        key_channels=draw(st.integers(1, 5)),
        value_channels=draw(st.sampled_from([1, 3, 64, 128])),
        window_size=draw(st.sampled_from([1, 3, 5, 9, 21])),
        sink=draw(st.none() | st.floats(-5.0, 5.0)),
    )


@settings(max_examples=80, deadline=None)
@given(samples())
def test_agrees_with_the_oracle(sample: Sample) -> None:
    assert_close(sample.read(), sample.expected(), 1e-11)


@pytest.mark.parametrize("memory_length", [1, 3, 4])
@pytest.mark.parametrize("window_size", [1, 3, 5, 9, 21])
@pytest.mark.parametrize("size", [(1, 1), (3, 4), (12, 35)])
def test_agrees_in_float32_for_every_window_and_memory_length(
    memory_length: int, window_size: int, size: tuple[int, int]
) -> None:
    slots = [[3, 0, 4, 1][:memory_length], [2, 4, 1, 3][:memory_length]]
    sample = make_sample(slots=slots, size=size, window_size=window_size).to(torch.float32)
    readout = sample.read()
    assert readout.dtype == torch.float32
    assert_close(readout, sample.expected(), 1e-5)


@pytest.mark.parametrize("corner", [(0, 0), (0, -1), (-1, 0), (-1, -1)])
def test_neighbours_outside_the_map_draw_weight_and_give_nothing(corner: tuple[int, int]) -> None:
    """All scores are 0, so a corner of ones reads the share of its window inside the map."""
    ones = torch.ones(1, 6, 7, 1)
    slots = torch.zeros(1, 1, dtype=torch.int32)
    readout = local_memory_attention(ones, torch.zeros_like(ones), ones, slots, 5)
    assert readout[0, corner[0], corner[1], 0].item() == pytest.approx(9 / 25)
    assert readout[0, 3, 3, 0].item() == pytest.approx(1.0)


def test_window_wider_than_the_map_dilutes_the_only_pixel() -> None:
    one = torch.ones(1, 1, 1, 1)
    slots = torch.zeros(1, 2, dtype=torch.int32)
    readout = local_memory_attention(one, torch.zeros_like(one), one, slots, 21)
    assert readout.item() == pytest.approx(1 / 441)


def test_scores_are_not_scaled_by_the_key_size() -> None:
    query, keys = torch.ones(1, 1, 1, 16), torch.full((2, 1, 1, 16), 0.25)
    keys[1] = 0.0
    values = torch.tensor([1.0, 0.0]).view(2, 1, 1, 1)
    slots = torch.tensor([[0, 1]], dtype=torch.int32)
    readout = local_memory_attention(query, keys, values, slots, 1)
    assert readout.item() == pytest.approx(1 / (1 + np.exp(-4.0)))


def test_window_looks_the_way_of_its_offset() -> None:
    """A page with one hot key at (1, 4) is found by the pixels within reach of it only."""
    keys, values = torch.zeros(1, 4, 6, 1), torch.zeros(1, 4, 6, 1)
    keys[0, 1, 4], values[0, 1, 4] = 50.0, 1.0
    slots = torch.zeros(1, 1, dtype=torch.int32)
    readout = local_memory_attention(torch.ones(1, 4, 6, 1), keys, values, slots, 3)
    found = torch.zeros(4, 6)
    found[0:3, 3:6] = 1.0
    assert_close(readout[0, :, :, 0], found, 1e-6)


@pytest.mark.parametrize(
    "row", [[-1, 1, 3], [1, -1, 3], [1, 3, -1], [-1, -1, 3], [3, -1, -1], [-1, 1, -1]]
)
def test_absent_slot_takes_no_part_wherever_it_stands(row: list[int]) -> None:
    with_absent = make_sample(slots=[row], window_size=5, sink=0.3)
    present = [slot for slot in row if slot >= 0]
    without = replace(with_absent, slots=torch.tensor([present], dtype=torch.int32))
    assert_close(with_absent.read(), with_absent.expected(), 1e-11)
    assert_close(with_absent.read(), without.read(), 1e-12)


def test_batch_items_may_hold_memories_of_different_lengths() -> None:
    sample = make_sample(slots=[[-1, -1, -1], [-1, -1, 2], [-1, 0, 4], [1, 2, 3]], window_size=5)
    readout = sample.read()
    assert_close(readout, sample.expected(), 1e-11)
    assert not readout[0].any()


@pytest.mark.parametrize("sink", [None, 1.0])
@pytest.mark.parametrize("length", [0, 2])
def test_item_without_any_page_reads_zeros(sink: float | None, length: int) -> None:
    sample = make_sample(slots=[[-1] * length or [0]], sink=sink, value_channels=128)
    if not length:
        sample = replace(sample, slots=torch.empty(1, 0, dtype=torch.int32))
    readout = sample.read()
    assert readout.shape == (1, 4, 6, 128)
    assert not readout.any()


def test_empty_pool_is_read_as_zeros_by_items_without_pages() -> None:
    sample = make_sample(slots=[[-1, -1]])
    sample = replace(sample, keys=sample.keys[:0], values=sample.values[:0])
    assert not sample.read().any()


def test_same_page_may_be_read_twice() -> None:
    twice = make_sample(slots=[[1, 1, 2]], window_size=5)
    assert_close(twice.read(), twice.expected(), 1e-11)


@pytest.mark.parametrize("order", [[4, 2, 0], [0, 4, 2], [2, 0, 4]])
def test_order_of_the_slots_does_not_matter(order: list[int]) -> None:
    sample = make_sample(slots=[[0, 2, 4]], window_size=5)
    reordered = replace(sample, slots=torch.tensor([order], dtype=torch.int32))
    assert_close(reordered.read(), sample.read(), 1e-12)


def test_place_of_the_pages_in_the_pool_does_not_matter() -> None:
    sample = make_sample(window_size=5, slots=[[0, 2, -1], [4, 1, 3]])
    place = torch.tensor([3, 1, 4, 0, 2])
    moved_slots = torch.where(sample.slots >= 0, place[sample.slots.long()].int(), -1).int()
    moved = replace(
        sample,
        keys=torch.empty_like(sample.keys).index_copy_(0, place, sample.keys),
        values=torch.empty_like(sample.values).index_copy_(0, place, sample.values),
        slots=moved_slots,
    )
    assert_close(moved.read(), sample.read(), 1e-12)


def test_batch_neighbours_do_not_matter() -> None:
    sample = make_sample(slots=[[0, 2, 4], [-1, 1, 3], [-1, -1, -1], [2, 2, 0]], window_size=5)
    together = sample.read()
    for item in range(4):
        alone = replace(
            sample,
            query=sample.query[item : item + 1],
            slots=sample.slots[item : item + 1],
        )
        assert_close(together[item : item + 1], alone.read(), 1e-12)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_content_of_unread_pages_does_not_matter(garbage: float) -> None:
    sample = make_sample(slots=[[1, 3], [3, 4]], window_size=5)
    expected = sample.read()
    sample.keys[[0, 2]], sample.values[[0, 2]] = garbage, garbage
    assert_close(sample.read(), expected, 0)


@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("slots", [[[-1, 3], [4, -1]], [[-1, -1], [3, 4]]])
def test_absent_slots_touch_no_page(garbage: float, slots: list[list[int]]) -> None:
    """A pool starts uninitialised, so a page that nobody was told to read may hold anything."""
    sample = make_sample(slots=slots, window_size=5)
    expected = sample.expected()
    for page in (0, 1, 2):
        sample.keys[page], sample.values[page] = garbage, garbage
    assert_close(sample.read(), expected, 1e-11)


@pytest.mark.parametrize("sink", [-1e4, -2.0, 0.0, 2.0, 1e4])
def test_sink_takes_mass_and_gives_nothing(sink: float) -> None:
    sample = make_sample(window_size=5, sink=sink)
    assert_close(sample.read(), sample.expected(), 1e-11)
    ones = replace(sample, values=torch.ones_like(sample.values))
    without = replace(ones, sink=None)
    assert (ones.read() <= without.read() + 1e-12).all()


def test_sink_may_be_a_scalar() -> None:
    sample = make_sample(sink=0.7)
    assert sample.sink is not None
    scalar = replace(sample, sink=sample.sink.squeeze())
    assert_close(scalar.read(), sample.read(), 0)


@pytest.mark.parametrize("groups", [2, 3])
def test_wide_values_are_read_from_groups_of_64_channels(groups: int) -> None:
    sample = make_sample(value_channels=64 * groups, window_size=5)
    readout = sample.read()
    assert readout.shape == (2, 4, 6, 64 * groups)
    assert_close(readout, sample.expected(), 1e-11)


def test_one_group_of_64_channels_equals_the_plain_layout() -> None:
    plain = make_sample(value_channels=64)
    grouped = replace(plain, values=plain.values.unsqueeze(1))
    assert_close(grouped.read(), plain.read(), 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value_channels", [3, 128])
def test_half_pools_are_read_at_the_precision_of_a_float_query(
    dtype: torch.dtype, value_channels: int
) -> None:
    sample = make_sample(
        slots=[[0, 1, -1, 3], [4, 2, 1, 0]], window_size=9, value_channels=value_channels, sink=0.5
    )
    query = sample.query.float()
    sample = replace(sample.to(dtype), query=query)
    readout = sample.read()
    assert readout.dtype == torch.float32
    assert_close(readout, sample.expected(), 1e-5)


@pytest.mark.parametrize(("dtype", "epsilon"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-7)])
def test_half_query_loses_no_more_than_the_rounding_of_its_result(
    dtype: torch.dtype, epsilon: float
) -> None:
    """Scores of about 40 do not fit half precision: scores and softmax must be kept in float32."""
    sample = make_sample(slots=[[0, 1, 2, 3]], size=(6, 20), key_channels=16, window_size=9)
    sample = replace(sample, query=sample.query * 3).to(dtype)
    readout = sample.read()
    expected = sample.expected()
    assert readout.dtype == dtype
    assert_close(readout, expected, epsilon * float(np.abs(expected).max()))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("sign", [1, -1])
def test_huge_scores_stay_finite_and_right(dtype: torch.dtype, sign: int) -> None:
    """Keys of -64..64 times queries of 160 score up to 10240; all are exact in each dtype."""
    sample = make_sample(slots=[[0, 1, 2], [3, -1, 4]], key_channels=1, window_size=5)
    generator = torch.Generator().manual_seed(1)
    keys = 64.0 * torch.randint(-1, 2, sample.keys.shape, generator=generator).double()
    query = torch.full_like(sample.query, 160.0 * sign)
    sample = replace(sample, query=query, keys=keys).to(dtype)
    readout = sample.read()
    assert torch.isfinite(readout).all()
    tolerance = {torch.float64: 1e-11, torch.float32: 1e-5, torch.float16: 3e-3}[dtype]
    assert_close(readout, sample.expected(), tolerance)


def test_scores_far_below_zero_everywhere_read_nothing_at_the_border() -> None:
    """Neighbours outside score 0 and so win against scores of -10000; the middle has none."""
    sample = make_sample(slots=[[0, 1]], size=(5, 7), window_size=3, key_channels=1)
    sample = replace(
        sample,
        query=torch.full_like(sample.query, 100.0),
        keys=torch.full_like(sample.keys, -100.0),
    )
    readout = sample.read()
    assert_close(readout, sample.expected(), 1e-11)
    border = readout.clone()
    border[:, 1:-1, 1:-1] = 0.0
    assert not border.any()
    assert readout.any()


def test_tensors_need_not_be_contiguous() -> None:
    sample = make_sample(window_size=5, value_channels=128)

    def strided(tensor: Tensor) -> Tensor:
        order = (0, 3, 1, 2) if tensor.dim() == 4 else (0, 1, 4, 2, 3)
        back = (0, 2, 3, 1) if tensor.dim() == 4 else (0, 1, 3, 4, 2)
        return tensor.permute(order).contiguous().permute(back)

    twin = replace(
        sample,
        query=strided(sample.query),
        keys=strided(sample.keys),
        values=strided(sample.values),
        slots=sample.slots.T.contiguous().T,
    )
    assert_close(twin.read(), sample.read(), 1e-12)


def test_arguments_are_left_as_they_were() -> None:
    sample = make_sample(slots=[[-1, 2], [0, 1]], sink=0.5)
    tensors = (sample.query, sample.keys, sample.values, sample.slots)
    before = [tensor.clone() for tensor in tensors]
    sample.read()
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


@pytest.mark.parametrize("value_channels", [2, 128])
@pytest.mark.parametrize("slots", [[[0, 1], [2, -1]], [[-1, -1], [1, 1]]])
def test_gradients_are_those_of_the_read(value_channels: int, slots: list[list[int]]) -> None:
    sample = make_sample(
        slots=slots,
        num_slots=3,
        size=(2, 3) if value_channels == 2 else (1, 2),
        key_channels=2,
        value_channels=value_channels,
        sink=0.2,
    )
    inputs = (sample.query, sample.keys, sample.values, sample.sink)

    def read(query: Tensor, keys: Tensor, values: Tensor, sink: Tensor) -> Tensor:
        return local_memory_attention(query, keys, values, sample.slots, 3, sink=sink)

    assert torch.autograd.gradcheck(
        read, tuple(t.clone().requires_grad_() for t in inputs if t is not None), fast_mode=True
    )


def test_item_without_pages_has_zero_gradients() -> None:
    sample = make_sample(slots=[[-1, -1], [1, 2]], sink=0.1)
    query = sample.query.requires_grad_()
    total = replace(sample, query=query).read().sum()
    (gradient,) = torch.autograd.grad(total, query)
    assert not gradient[0].any()
    assert gradient[1].any()


BAD_ARGUMENTS: list[tuple[str, dict[str, Any]]] = [
    ("query", {"query": torch.zeros(2, 4, 6)}),
    ("query", {"query": torch.zeros(2, 4, 6, 4, 1)}),
    ("query", {"query": torch.zeros(2, 4, 6, 4, dtype=torch.int64)}),
    ("keys", {"keys": torch.zeros(5, 4, 6)}),
    ("keys", {"keys": torch.zeros(5, 4, 6, 3)}),
    ("keys", {"keys": torch.zeros(5, 3, 6, 4)}),
    ("keys", {"keys": torch.zeros(5, 4, 5, 4)}),
    ("values", {"values": torch.zeros(())}),
    ("values", {"values": torch.zeros(5, 4, 6)}),
    ("values", {"values": torch.zeros(4, 4, 6, 3)}),
    ("values", {"values": torch.zeros(5, 6, 4, 3)}),
    ("values", {"values": torch.zeros(5, 2, 4, 6, 32)}),
    ("values", {"values": torch.zeros(5, 4, 6, 2, 64)}),
    ("slots", {"slots": torch.zeros(2, dtype=torch.int32)}),
    ("slots", {"slots": torch.zeros(2, 3, 1, dtype=torch.int32)}),
    ("slots", {"slots": torch.zeros(3, 3, dtype=torch.int32)}),
    ("slots", {"slots": torch.zeros(2, 3, dtype=torch.int64)}),
    ("slots", {"slots": torch.zeros(2, 3)}),
    ("slots", {"slots": torch.full((2, 3), 5, dtype=torch.int32)}),
    ("slots", {"slots": torch.full((2, 3), -2, dtype=torch.int32)}),
    ("window_size", {"window_size": 4}),
    ("window_size", {"window_size": 0}),
    ("window_size", {"window_size": -3}),
    ("sink", {"sink": torch.zeros(2)}),
    ("sink", {"sink": torch.zeros(0)}),
    ("device", {"keys": torch.zeros(5, 4, 6, 4, device="meta")}),
    ("device", {"sink": torch.zeros(1, device="meta")}),
]


@pytest.mark.parametrize(("name", "change"), BAD_ARGUMENTS)
def test_bad_argument_is_named(name: str, change: dict[str, Any]) -> None:
    sample = replace(make_sample().to(torch.float32), **change)
    with pytest.raises(ValueError, match=name):
        sample.read()
