"""The CPU kernel against row-band torch in float64, and what it promises about bits and memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segstream.attention import cpu, row_band
from segstream.shared_library import Isa

BEST = cpu.best_isa()
pytestmark = pytest.mark.skipif(BEST is None, reason="the kernel was not built")
ISAS = [isa for isa in Isa if isa != Isa.BEST and BEST is not None and isa <= BEST]
HALVES = [torch.float16, torch.bfloat16]


@dataclass(frozen=True)
class Sample:
    """Arguments of the operator."""

    query: Tensor
    keys: Tensor
    values: Tensor
    slots: Tensor
    window_size: int
    sink: Tensor | None = None

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, int, Tensor | None]:
        return self.query, self.keys, self.values, self.slots, self.window_size, self.sink

    def read(self, isa: Isa = Isa.BEST) -> Tensor:
        return cpu.forward(*self.arguments(), isa=isa)

    def gradients(self, grad: Tensor, isa: Isa = Isa.BEST) -> tuple[Tensor, ...]:
        return cpu.backward(grad, self.read(isa), *self.arguments(), [True] * 4, isa=isa)

    def expected(self) -> Tensor:
        return row_band.forward(*self.double().arguments())

    def double(self) -> "Sample":
        return replace(
            self,
            query=self.query.double(),
            keys=self.keys.double(),
            values=self.values.double(),
            sink=None if self.sink is None else self.sink.double(),
        )


def make_sample(
    *,
    seed: int = 0,
    slots: list[list[int]] | None = None,
    num_pages: int = 5,
    size: tuple[int, int] = (9, 21),
    key_channels: int = 16,
    value_channels: int = 64,
    window_size: int = 5,
    sink: float | None = None,
    scale: float = 1.0,
) -> Sample:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    table = torch.tensor(slots or [[2, 0, 4], [1, -1, 2]], dtype=torch.int32)
    blocks = value_channels // 64 if value_channels > 64 and value_channels % 64 == 0 else 0
    values = normal(num_pages, blocks, *size, 64) if blocks else None
    return Sample(
        query=scale * normal(len(table), *size, key_channels) / key_channels**0.5,
        keys=normal(num_pages, *size, key_channels),
        values=normal(num_pages, *size, value_channels) if values is None else values,
        slots=table,
        window_size=window_size,
        sink=None if sink is None else torch.tensor([sink]),
    )


ROUNDING = {torch.float32: 0.0, torch.float16: 2**-11, torch.bfloat16: 2**-8}


def assert_agrees(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Within the tolerance, and what rounding the result to its own dtype adds to that."""
    assert actual.shape == expected.shape
    rounding = ROUNDING[actual.dtype]
    allowed = tolerance + rounding * (expected.abs() + tolerance) + 2.0**-24
    assert ((actual.double() - expected).abs() <= allowed).all()


def largest_difference(actual: Tensor, expected: Tensor) -> float:
    assert actual.shape == expected.shape
    assert actual.isfinite().all()
    return (actual.double() - expected.double()).abs().max().item() if actual.numel() else 0.0


def packed(tensor: Tensor) -> Tensor:
    return tensor


def sliced(tensor: Tensor) -> Tensor:
    """Every second element of a larger tensor along each axis, NaN between them."""
    wide = torch.full([2 * size for size in tensor.shape], float("nan"), dtype=tensor.dtype)
    return wide[tuple(slice(None, None, 2) for _ in tensor.shape)].copy_(tensor)


def margined(tensor: Tensor) -> Tensor:
    """A window of a larger tensor, NaN around it; a pixel's channels lie side by side."""
    wide = torch.full([size + 3 for size in tensor.shape], float("nan"), dtype=tensor.dtype)
    return wide[tuple(slice(1, 1 + size) for size in tensor.shape)].copy_(tensor)


def channels_first(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 1).contiguous().movedim(1, -1)


def byte_shifted(tensor: Tensor) -> Tensor:
    """At an address that is no multiple of the element size."""
    size = tensor.element_size()
    memory = torch.zeros(tensor.numel() * size + 1, dtype=torch.uint8).numpy()
    moved = torch.frombuffer(memory, dtype=tensor.dtype, offset=1, count=tensor.numel())
    assert moved.data_ptr() % size
    return moved.view(tensor.shape).copy_(tensor)


def expanded(tensor: Tensor) -> Tensor:
    """The first page or item in the place of all."""
    return tensor[:1].expand(tensor.shape)


LAYOUTS = [packed, sliced, margined, channels_first, byte_shifted, expanded]


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    """Any map, memory, window, number of channels, dtypes and layouts of memory.

    -1 and repeated slots fall anywhere.
    """
    sample = draw(shapes())
    dtypes = st.sampled_from([torch.float32, *HALVES])

    def stored(tensor: Tensor) -> Tensor:
        return draw(st.sampled_from(LAYOUTS))(tensor.to(draw(dtypes)))

    return replace(
        sample,
        query=stored(sample.query),
        keys=stored(sample.keys),
        values=stored(sample.values),
        slots=draw(st.sampled_from([packed, byte_shifted]))(sample.slots),
        sink=None if sample.sink is None else sample.sink.to(draw(dtypes)),
    )


@st.composite
def shapes(draw: st.DrawFn) -> Sample:
    """Any map, memory, window and number of channels, in packed float32."""
    num_pages = draw(st.integers(1, 5))
    length = draw(st.integers(1, 4))
    row = st.lists(st.integers(-1, num_pages - 1), min_size=length, max_size=length)
    return make_sample(
        seed=draw(st.integers(0, 2**31)),
        slots=draw(st.lists(row, min_size=1, max_size=3)),
        num_pages=num_pages,
        size=(draw(st.integers(1, 30)), draw(st.integers(1, 37))),
        key_channels=draw(st.sampled_from([1, 3, 4, 7, 16, 20])),
        value_channels=draw(st.sampled_from([1, 5, 16, 48, 64, 70, 128])),
        window_size=draw(st.sampled_from([1, 3, 5, 7, 9, 13, 21, 35])),
        sink=draw(st.none() | st.floats(-5.0, 5.0, width=32)),
        scale=draw(st.sampled_from([1.0, 4.0])),
    )


@settings(max_examples=40, deadline=None)
@given(samples(), st.sampled_from(ISAS))
def test_agrees_with_float64(sample: Sample, isa: Isa) -> None:
    assert_agrees(sample.read(isa), sample.expected(), 1e-5)


@pytest.mark.parametrize("default", [torch.float64, torch.float32, *HALVES])
@pytest.mark.parametrize("value_channels", [64, 128])
def test_torchs_default_dtype_does_not_matter(default: torch.dtype, value_channels: int) -> None:
    sample = make_sample(value_channels=value_channels, sink=0.5)
    grad = torch.ones(sample.read().shape)
    expected = (sample.read(), *sample.gradients(grad))
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        found = (sample.read(), *sample.gradients(grad))
    finally:
        torch.set_default_dtype(before)
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("window_size", [1, 3, 5, 7, 9, 11, 21])
def test_every_window_on_every_instruction_set(isa: Isa, window_size: int) -> None:
    for size in ((1, 1), (2, 50), (26, 9), (29, 33)):
        sample = make_sample(size=size, window_size=window_size, sink=0.5)
        assert largest_difference(sample.read(isa), sample.expected()) <= 1e-5


@pytest.mark.parametrize("isa", ISAS)
def test_scores_of_many_channels_are_summed_with_care(isa: Isa) -> None:
    """Of unit variance, 128 channels make scores of 11 on average, whose rounding counts.

    Parts of 16 channels, one added to the other, would give 5.3e-7 in the mean.
    """
    generator = torch.Generator().manual_seed(0)
    query, keys, values = (
        torch.randn(pages, 30, 30, channels, generator=generator)
        for pages, channels in ((1, 128), (3, 128), (3, 64))
    )
    sample = Sample(query, keys, values, torch.tensor([[0, 1, 2]], dtype=torch.int32), 21)
    error = sample.read(isa) - sample.expected()
    assert error.abs().max() <= 1e-5
    assert error.square().mean().sqrt() <= 4.9e-7


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value_channels", [64, 20, 128])
def test_half_pages_are_summed_in_float32(
    dtype: torch.dtype, isa: Isa, value_channels: int
) -> None:
    sample = make_sample(value_channels=value_channels, window_size=7)
    sample = replace(sample, keys=sample.keys.to(dtype), values=sample.values.to(dtype))
    readout = sample.read(isa)
    assert readout.dtype == torch.float32
    assert largest_difference(readout, sample.expected()) <= 1e-5


@pytest.mark.parametrize("dtype", HALVES)
def test_a_half_query_gets_a_half_read_out(dtype: torch.dtype) -> None:
    sample = make_sample()
    sample = replace(sample, query=sample.query.to(dtype))
    readout = sample.read()
    assert readout.dtype == dtype
    assert torch.equal(readout, replace(sample, query=sample.query.float()).read().to(dtype))


@pytest.mark.parametrize("isa", ISAS)
def test_every_half_is_widened_exactly(isa: Isa) -> None:
    """One query, one key: the read-out is the value itself."""
    halves = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.float16)
    values = halves[halves.isfinite()].view(1, 1, 1, -1)
    nothing = torch.zeros(1, 1, 1, 4)
    slots = torch.zeros(1, 1, dtype=torch.int32)
    readout = cpu.forward(nothing, nothing, values, slots, 1, None, isa=isa)
    assert torch.allclose(readout, values.float(), rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [25, 3])
@pytest.mark.parametrize("value_channels", [64, 128])
def test_scores_of_any_size_are_exact(isa: Isa, size: int, value_channels: int) -> None:
    """Whole numbers, so that float32 holds every score: within 1e4 for 25 and 16 channels."""
    sample = make_sample(value_channels=value_channels, window_size=9, size=(14, 35))
    generator = torch.Generator().manual_seed(1)

    def whole_numbers(like: Tensor) -> Tensor:
        return torch.randint(-size, size + 1, like.shape, generator=generator).float()

    sample = replace(
        sample,
        query=whole_numbers(sample.query),
        keys=whole_numbers(sample.keys),
        sink=torch.tensor([17.0]),
    )
    assert largest_difference(sample.read(isa), sample.expected()) <= 2e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("sign", [-1.0, 1.0])
@pytest.mark.parametrize("magnitude", [30.0, 100.0, 1e4])
def test_the_reference_follows_every_lane_both_ways(
    isa: Isa, sign: float, magnitude: float
) -> None:
    """Neighbouring pixels with scores far above and far below zero, drifting down the map."""
    height, width = 30, 32
    rows, columns = torch.arange(height).view(-1, 1), torch.arange(width)
    query = (
        torch.where(columns % 2 == 0, sign, -sign)
        .expand(height, width)
        .reshape(1, height, width, 1)
    )
    keys = (magnitude * (1 + rows / 16) * torch.ones(width)).view(1, height, width, 1)
    values = torch.randn(1, height, width, 64, generator=torch.Generator().manual_seed(0))
    slots = torch.zeros(1, 1, dtype=torch.int32)
    sample = Sample(query.contiguous(), keys.float(), values, slots, 7)
    assert largest_difference(sample.read(isa), sample.expected()) <= 1e-5


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value_channels", [64, 128])
@pytest.mark.parametrize("late", [1.0, -1.0])
def test_keys_of_a_trained_network_stay_finite(isa: Isa, value_channels: int, late: float) -> None:
    """The best score of some pixels lies near -80 while that of their neighbours reaches +104.

    On the first page the pixels on the left see keys that face them, those on the right keys that
    face away; so it stays on the second page, or the two change places.
    """
    height, width, window_size = 34, 30, 5
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(16, generator=generator)
    direction /= direction.norm()

    def noisy(length: Tensor) -> Tensor:
        noise = torch.randn(*length.shape, 16, generator=generator)
        return length.unsqueeze(-1) * direction + 0.1 * noise

    columns = torch.arange(width)
    side = torch.where(columns < width // 2, 10.2, -8.0).expand(height, width)
    query = noisy(side.unsqueeze(0))
    facing = noisy(torch.full((1, height, width), 10.2))
    away = noisy(torch.full((1, height, width), late * 10.2))
    values = torch.randn(2, height, width, value_channels, generator=generator)
    if value_channels > 64:
        values = values.view(*values.shape[:3], -1, 64).permute(0, 3, 1, 2, 4)
    slots = torch.tensor([[0, 1]], dtype=torch.int32)
    sample = Sample(query, torch.cat([facing, away]), values, slots, window_size)
    scores = (query * facing).sum(dim=-1)
    assert scores.max() > 100
    assert scores.min() < -80
    readout = sample.read(isa)
    assert largest_difference(readout, sample.expected()) <= 5e-5
    found = sample.gradients(torch.ones_like(readout), isa)
    assert all(grad.isfinite().all() for grad in found)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value_channels", [64, 128])
def test_keys_without_any_weight_give_nothing(isa: Isa, value_channels: int) -> None:
    """A weight of e^-100 is no float32: however large the value behind it, nothing is read."""
    keys, values = torch.zeros(2, 3, 9, 1), torch.zeros(2, 3, 9, value_channels)
    keys[1], values[1] = -100.0, 3e38
    slots = torch.tensor([[0, 1]], dtype=torch.int32)
    readout = cpu.forward(torch.ones(1, 3, 9, 1), keys, values, slots, 1, None, isa=isa)
    assert not readout.any()


def test_more_neighbours_outside_the_map_than_32_bits_count() -> None:
    one = torch.ones(1, 1, 1, 1)
    slots = torch.zeros(1, 2200, dtype=torch.int32)
    assert 2200 * cpu.MAX_WINDOW_SIZE * (cpu.MAX_WINDOW_SIZE - 1) > 2**31
    readout = cpu.forward(one, torch.zeros_like(one), one, slots, cpu.MAX_WINDOW_SIZE, None)
    assert readout.item() == pytest.approx(cpu.MAX_WINDOW_SIZE**-2)


def test_nan_is_not_hidden() -> None:
    sample = make_sample(slots=[[0]], size=(12, 20))
    sample.keys[0, 5, 5] = float("nan")
    wrong = sample.read()[0].isnan().any(dim=-1)
    expected = torch.zeros(12, 20, dtype=torch.bool)
    expected[3:8, 3:8] = True
    assert torch.equal(wrong, expected)


@pytest.mark.parametrize("value_channels", [64, 128])
def test_absent_and_foreign_pages_are_never_read(value_channels: int) -> None:
    sample = make_sample(slots=[[1, -1, 3], [-1, -1, -1]], value_channels=value_channels)
    for page in (0, 2, 4):
        sample.keys[page] = sample.values[page] = float("nan")
    readout = sample.read()
    assert readout[0].isfinite().all()
    assert not readout[1].any()
    _, grad_keys, grad_values, _ = sample.gradients(torch.ones_like(readout))
    assert all(grad[[0, 2, 4]].eq(0).all() for grad in (grad_keys, grad_values))
    assert all(grad[[1, 3]].isfinite().all() for grad in (grad_keys, grad_values))


def test_nothing_to_read_reads_zeros() -> None:
    sample = make_sample(slots=[[0]])
    for slots in (torch.empty(1, 0), torch.full((1, 3), -1)):
        assert not replace(sample, slots=slots.int()).read().any()
    assert replace(sample, query=sample.query[:0], slots=sample.slots[:0]).read().numel() == 0


@settings(max_examples=40, deadline=None)
@given(samples(), st.sampled_from(ISAS))
def test_gradients_agree_with_float64(sample: Sample, isa: Isa) -> None:
    """Given the exact read-out: rounded to a half query's dtype it would be the largest error."""
    exact = sample.double()
    leaves = [exact.query, exact.keys, exact.values]
    if exact.sink is not None:
        leaves.append(exact.sink)
    for leaf in leaves:
        leaf.requires_grad_()
    readout = row_band.forward(*exact.arguments())
    grad = torch.randn(readout.shape, generator=torch.Generator().manual_seed(0))
    if not readout.requires_grad:
        assert not any(found.any() for found in sample.gradients(grad))
        return
    wanted = torch.autograd.grad(readout, leaves, grad.double(), allow_unused=True)
    needed = [True, True, True, sample.sink is not None]
    found = cpu.backward(grad, readout.detach(), *sample.arguments(), needed, isa=isa)
    for actual, expected in zip(found, wanted, strict=False):
        assert expected is not None
        assert_agrees(actual, expected, 3e-5 * (1.0 + expected.abs().max().item()))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("size", [25, 1000, 25000])
@pytest.mark.parametrize("sink", [None, 5.0])
def test_gradients_hold_for_scores_of_any_size(isa: Isa, size: int, sink: float | None) -> None:
    """Whole numbers again; scores reach 1e10, where float32 still tells the largest from the next.

    What is left of a gradient of 0 is the rounding of g . v, times a key or a query.
    """
    generator = torch.Generator().manual_seed(1)

    def whole_numbers(like: Tensor) -> Tensor:
        return torch.randint(-size, size + 1, like.shape, generator=generator).float()

    sample = make_sample(window_size=9, size=(14, 35), sink=sink)
    sample = replace(sample, query=whole_numbers(sample.query), keys=whole_numbers(sample.keys))
    grad = torch.randn(sample.read().shape, generator=generator)
    found = sample.gradients(grad, isa)
    exact, needed = sample.double(), [True, True, True, sink is not None]
    wanted = row_band.backward(grad.double(), exact.expected(), *exact.arguments(), needed)
    for actual, expected, factor in zip(found, wanted, (size, size, 1, 1), strict=True):
        if expected.numel():
            assert largest_difference(actual, expected) <= 2e-5 * factor


def test_only_wanted_gradients_are_computed() -> None:
    sample = make_sample(sink=0.0)
    grad = torch.ones(sample.read().shape)
    everything = sample.gradients(grad)
    for index in range(4):
        needed = [place == index for place in range(4)]
        found = cpu.backward(grad, sample.read(), *sample.arguments(), needed)
        assert torch.equal(found[index], everything[index])
        assert all(not other.numel() for place, other in enumerate(found) if place != index)


def test_wide_values_are_read_alike_in_strips_of_any_height() -> None:
    """A slot table this long and a map this wide leave memory for strips of three rows."""
    sample = make_sample(
        slots=[[1]], num_pages=2, size=(14, 300), key_channels=4, value_channels=128, window_size=21
    )
    table = torch.full((1, 40), -1, dtype=torch.int32)
    table[0, 17] = 1
    readout = sample.read()
    assert torch.equal(replace(sample, slots=table).read(), readout)
    assert largest_difference(readout, sample.expected()) <= 1e-5


def test_avx2_and_avx512_give_the_same_bits() -> None:
    if Isa.X86_64_V4 not in ISAS:
        pytest.skip("this processor has no AVX-512")
    for value_channels in (64, 70, 128):
        sample = make_sample(value_channels=value_channels, scale=8.0, size=(14, 40), sink=1.0)
        assert torch.equal(sample.read(Isa.X86_64_V3), sample.read(Isa.X86_64_V4))
        grad = torch.randn(sample.read().shape)
        both = (sample.gradients(grad, isa) for isa in (Isa.X86_64_V3, Isa.X86_64_V4))
        assert all(torch.equal(*pair) for pair in zip(*both, strict=True))


@settings(max_examples=15, deadline=None)
@given(samples(), st.randoms(use_true_random=False), st.integers(0, 2))
def test_bits_depend_on_the_item_alone(sample: Sample, random: Random, absent: int) -> None:
    """Other items around it, other slots for its pages, -1 between them: all the same."""
    together = sample.read()
    places = list(range(len(sample.keys) + 3))
    random.shuffle(places)
    for item, row in enumerate(sample.slots.tolist()):
        moved = [places[slot] if slot >= 0 else -1 for slot in row]
        for _ in range(absent):
            moved.insert(random.randint(0, len(moved)), -1)
        keys, values = (
            torch.full((len(places), *pool.shape[1:]), float("nan"))
            for pool in (sample.keys, sample.values)
        )
        for slot, place in enumerate(places[: len(sample.keys)]):
            keys[place], values[place] = sample.keys[slot], sample.values[slot]
        alone = replace(
            sample,
            query=sample.query[item : item + 1],
            keys=keys,
            values=values,
            slots=torch.tensor([moved], dtype=torch.int32),
        )
        assert torch.equal(alone.read()[0], together[item])


@pytest.fixture
def restore_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("restore_threads")
@pytest.mark.parametrize("value_channels", [64, 192])
def test_bits_do_not_depend_on_the_number_of_threads(value_channels: int) -> None:
    sample = make_sample(size=(50, 40), window_size=15, value_channels=value_channels, sink=0.0)
    grad = torch.randn(sample.read().shape)
    found = []
    for threads in (1, 2, 3, 7):
        torch.set_num_threads(threads)
        found.append((sample.read(), *sample.gradients(grad)))
    for other in found[1:]:
        assert all(torch.equal(*pair) for pair in zip(found[0], other, strict=True))


@pytest.mark.parametrize("layout", [sliced, margined, channels_first, byte_shifted])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_any_layout_gives_the_same_bits(
    layout: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    sample = make_sample(size=(11, 18))
    query, keys, values = (t.to(dtype) for t in (sample.query, sample.keys, sample.values))
    plain = replace(sample, query=query, keys=keys, values=values)
    changed = replace(
        plain,
        query=layout(query),
        keys=layout(keys),
        values=layout(values),
        slots=byte_shifted(sample.slots.t().contiguous()).t(),
    )
    assert torch.equal(changed.read(), plain.read())


def test_an_expanded_pool_will_do() -> None:
    sample = make_sample(num_pages=3, slots=[[0, 2, 1]])
    changed = replace(sample, keys=expanded(sample.keys), values=expanded(sample.values))
    first = replace(sample, slots=torch.zeros_like(sample.slots))
    assert torch.equal(changed.read(), first.read())


@pytest.mark.parametrize("slot", [-2, 5, 2**31 - 1, -(2**31)])
def test_a_slot_out_of_range_is_refused(slot: int) -> None:
    sample = make_sample(slots=[[0, slot, 1]])
    with pytest.raises(ValueError, match=r"slots must be in -1\.\.4"):
        sample.read()
    with pytest.raises(ValueError, match=r"slots must be in -1\.\.4"):
        cpu.backward(
            torch.ones(1, 9, 21, 64), torch.ones(1, 9, 21, 64), *sample.arguments(), [True] * 4
        )
