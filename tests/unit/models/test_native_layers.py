"""Each layer of the native engine against torch in float64, at all borders."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d, conv_transpose2d, max_pool2d, pad

from segstream.models.native.library import Element, Kind, Layer
from segstream.shared_library import Isa
from tests.unit.models.native_steps import (
    BEST,
    ISAS,
    pixels,
    planes,
    random,
    run,
    run_heads,
    same_conv,
    weights,
)

pytestmark = pytest.mark.skipif(BEST is None, reason="the kernel was not built")

SIZES = st.tuples(st.integers(1, 21), st.integers(1, 70))
EVEN_SIZES = st.tuples(st.integers(1, 9), st.integers(1, 40)).map(lambda s: (2 * s[0], 2 * s[1]))
ISA = st.sampled_from(ISAS) if ISAS else st.just(Isa.BEST)
TILES = st.sampled_from([2, 4])
CHANNELS = st.sampled_from([16, 48, 64])


def assert_close(found: Tensor, wanted: Tensor, tolerance: float = 2e-5) -> None:
    """Within a few float32 roundings of numbers of unit variance."""
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=tolerance)


@given(
    size=SIZES,
    channels=CHANNELS,
    dilation=st.sampled_from([1, 2, 3, 8, 16]),
    tile=st.sampled_from([1, 2, 4]),
    isa=ISA,
    has_residual=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_pair(
    size: tuple[int, int], channels: int, dilation: int, tile: int, isa: Isa, has_residual: bool
) -> None:
    c, d = channels, dilation
    x, residual = random(*size, c), random(*size, c, seed=1)
    vertical, horizontal = (weights(c, c, 3, fan_in=3 * c, seed=seed) for seed in (2, 3))
    biases = [random(c, seed=seed).double() for seed in (4, 5)]
    layer = Layer(Kind.PAIR, c, c, (vertical, horizontal), biases, dilation=d, tile=tile, isa=isa)
    out = run(
        layer, x, torch.full_like(x, -1.0), residual=residual.data_ptr() if has_residual else None
    )

    between = conv2d(
        planes(x), vertical.unsqueeze(3), biases[0], padding=(d, 0), dilation=(d, 1)
    ).relu()
    wanted = conv2d(between, horizontal.unsqueeze(2), biases[1], padding=(0, d), dilation=(1, d))
    if has_residual:
        wanted += planes(residual)
    assert_close(out, pixels(wanted.relu()), 4e-5)


@given(size=SIZES, tile=TILES, isa=ISA, has_relu=st.booleans())
@settings(max_examples=40, deadline=None)
def test_heads_go_to_places_of_their_own(
    size: tuple[int, int], tile: int, isa: Isa, has_relu: bool
) -> None:
    x = random(*size, 32)
    weight, bias = weights(80, 32, 3, 3, fan_in=288, seed=1), random(80, seed=2).double()
    key, value = torch.full((*size, 16), -9.0), torch.full((*size, 64), -9.0)
    layer = Layer(Kind.HEADS, 32, 80, (weight,), (bias,), tile=tile, isa=isa)
    run_heads(layer, x, (key, value), has_relu=has_relu)
    wanted = same_conv(planes(x), weight, bias)
    wanted = pixels(wanted.relu() if has_relu else wanted)
    assert_close(key, wanted[..., :16], 4e-5)
    assert_close(value, wanted[..., 16:], 4e-5)


@given(size=SIZES, tile=TILES, isa=ISA, has_residual=st.booleans())
@settings(max_examples=30, deadline=None)
def test_fusion(size: tuple[int, int], tile: int, isa: Isa, has_residual: bool) -> None:
    x, residual = random(*size, 32), random(*size, 48, seed=5)
    parts = [weights(48, n, 3, 3, fan_in=9 * n, seed=n + i) for i, n in enumerate((16, 16, 32, 32))]
    biases = [random(48, seed=i).double() for i in range(4)]
    shift = random(48, seed=9).double()
    layer = Layer(Kind.FUSION, 32, 48, parts, biases, shift=shift, tile=tile, isa=isa)
    address = residual.data_ptr() if has_residual else None
    out = run(layer, x, torch.full((*size, 48), -1.0), residual=address)

    both = planes(x)
    query, memory = both[:, :16], both[:, 16:]
    inputs = (query, memory, both, both)
    q, m, query_gate, memory_gate = (
        same_conv(*arguments) for arguments in zip(inputs, parts, biases, strict=True)
    )
    wanted = q * query_gate.sigmoid() + m * memory_gate.sigmoid() + shift.view(1, -1, 1, 1)
    wanted = wanted + planes(residual) if has_residual else wanted
    assert_close(out, pixels(wanted.relu()), 4e-5)


def test_gates_far_out_are_shut_or_open() -> None:
    zeros = torch.zeros(16, 16, 3, 3, dtype=torch.float64)
    gates = [torch.zeros(16, 32, 3, 3, dtype=torch.float64)] * 2
    ones = torch.ones(16, dtype=torch.float64)
    layer = Layer(
        *(Kind.FUSION, 32, 16, (zeros, zeros, *gates), (ones, ones, -1e4 * ones, 1e4 * ones)),
        shift=0 * ones,
    )
    out = run(layer, random(3, 5, 32), torch.empty(3, 5, 16))
    assert torch.equal(out, torch.ones(3, 5, 16))


@given(size=EVEN_SIZES, channels=st.sampled_from([(16, 64), (64, 128)]), isa=ISA)
@settings(max_examples=30, deadline=None)
def test_down(size: tuple[int, int], channels: tuple[int, int], isa: Isa) -> None:
    x = random(*size, channels[0])
    out, wanted = down(Kind.DOWN, x, channels, planes(x), size, isa)
    assert_close(out, wanted)


@given(size=SIZES, isa=ISA, is_uint8=st.booleans(), is_planar=st.booleans())
@settings(max_examples=40, deadline=None)
def test_stem_repeats_the_border_of_the_frame(
    size: tuple[int, int], isa: Isa, is_uint8: bool, is_planar: bool
) -> None:
    full = tuple(-(-n // 8) * 8 for n in size)
    frame = random(*size, 3).mul(60).add(128).clamp(0, 255).to(torch.uint8)
    floats = frame.double() / 255
    if not is_uint8:
        frame = frame.float() / 255
    if is_planar:
        frame = frame.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    padding = (0, full[1] - size[1], 0, full[0] - size[0])
    padded = pad(floats.permute(2, 0, 1)[None], padding, mode="replicate")
    strides = frame.stride()
    out, wanted = down(
        *(Kind.STEM, frame, (3, 16), padded, full, isa),
        height=full[0],
        width=full[1],
        frame_height=size[0],
        frame_width=size[1],
        element=Element.UINT8 if is_uint8 else Element.FLOAT32,
        row_stride=strides[0],
        pixel_stride=strides[1],
        channel_stride=strides[2],
    )
    assert_close(out, wanted)


def down(
    kind: Kind,
    x: Tensor,
    channels: tuple[int, int],
    exact: Tensor,
    size: tuple[int, ...],
    isa: Isa,
    **fields: int,
) -> tuple[Tensor, Tensor]:
    """What the layer gives for ``x``, and torch for ``exact``."""
    in_channels, out_channels = channels
    n = out_channels - in_channels
    weight = weights(n, in_channels, 3, 3, fan_in=9 * in_channels, seed=1)
    bias = random(n, seed=2).double()
    scale, shift = random(in_channels, seed=3).double(), random(in_channels, seed=4).double()
    layer = Layer(kind, in_channels, out_channels, (weight, scale), (bias, shift), isa=isa)
    out = run(layer, x, torch.empty(size[0] // 2, size[1] // 2, out_channels), **fields)
    pooled = max_pool2d(exact, 2) * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)
    convolved = conv2d(exact, weight, bias, stride=2, padding=1)
    return out, pixels(torch.cat([convolved, pooled], dim=1).relu())


@given(size=SIZES, channels=st.sampled_from([(128, 64), (64, 16)]), isa=ISA)
@settings(max_examples=30, deadline=None)
def test_up(size: tuple[int, int], channels: tuple[int, int], isa: Isa) -> None:
    x = random(*size, channels[0])
    weight = weights(*channels, 3, 3, fan_in=4 * channels[0], seed=1)
    bias = random(channels[1], seed=2).double()
    layer = Layer(Kind.UP, *channels, (weight,), (bias,), isa=isa)
    out = run(layer, x, torch.empty(2 * size[0], 2 * size[1], channels[1]))
    wanted = conv_transpose2d(planes(x), weight, bias, stride=2, padding=1, output_padding=1)
    assert_close(out, pixels(wanted.relu()))


@given(
    size=SIZES,
    num_channels=st.integers(1, 23),
    cut=st.tuples(st.booleans(), st.booleans()),
    isa=ISA,
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_label_is_the_best_of_the_classes(
    size: tuple[int, int], num_channels: int, cut: tuple[bool, bool], isa: Isa, data: st.DataObject
) -> None:
    x = random(*size, 16)
    weight = weights(16, num_channels, 2, 2, fan_in=16, seed=1)
    bias = random(num_channels, seed=2).double()
    layer = Layer(Kind.LABELS, 16, num_channels, (weight,), (bias,), isa=isa)
    height, width = (2 * n - is_cut for n, is_cut in zip(size, cut, strict=True))
    frame = {"frame_height": height, "frame_width": width}
    logits = torch.empty(num_channels, height, width)
    run(layer, x, logits, num_classes=num_channels, element=Element.FLOAT32, **frame)
    wanted = conv_transpose2d(planes(x), weight, bias, stride=2)[0, :, :height, :width]
    assert_close(logits, wanted)

    num_classes = data.draw(st.integers(1, num_channels))
    labels = torch.empty(height, width, dtype=torch.uint8)
    run(layer, x, labels, num_classes=num_classes, element=Element.UINT8, **frame)
    assert torch.equal(labels, logits[:num_classes].argmax(dim=0).to(torch.uint8))

    again, confidence = torch.empty_like(labels), torch.empty_like(labels)
    asked = frame | {"num_classes": num_classes, "confidence": confidence.data_ptr()}
    run(layer, x, again, element=Element.UINT8, **asked)
    assert torch.equal(again, labels)
    softmax = logits[:num_classes].double().softmax(dim=0).amax(dim=0)
    assert (confidence.double() - 255 * softmax).abs().max() <= 0.501


def test_of_equal_classes_the_first_is_the_best() -> None:
    nothing = torch.zeros(16, 5, 2, 2), torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0])
    layer = Layer(Kind.LABELS, 16, 5, nothing[:1], nothing[1:])
    labels = torch.empty(6, 8, dtype=torch.uint8)
    size = {"frame_height": 6, "frame_width": 8, "num_classes": 5, "element": Element.UINT8}
    run(layer, random(3, 4, 16), labels, **size)
    assert torch.equal(labels, torch.ones_like(labels))


@given(size=SIZES, isa=ISA)
@settings(max_examples=20, deadline=None)
def test_affine(size: tuple[int, int], isa: Isa) -> None:
    x = random(*size, 32)
    scale, shift = random(32, seed=1).double(), random(32, seed=2).double()
    layer = Layer(Kind.AFFINE, 32, 32, (scale,), (shift,), isa=isa)
    joined = torch.full((*size, 64), -9.0)
    run(layer, x, joined, pixel_stride=32, row_stride=64)
    assert_close(joined[..., :32], (x.double() * scale + shift).relu())
    assert (joined[..., 32:] == -9.0).all()


@pytest.mark.parametrize("tile", [1, 2, 4])
def test_instruction_sets_that_fuse_agree_to_the_bit(tile: int) -> None:
    x = random(37, 53, 64)
    parts = [weights(64, 64, 3, fan_in=192, seed=seed) for seed in (1, 2)]
    biases = [random(64, seed=seed).double() for seed in (3, 4)]
    outs = [
        run(
            Layer(Kind.PAIR, 64, 64, parts, biases, dilation=2, tile=tile, isa=isa),
            *(x, torch.empty_like(x)),
            num_threads=num_threads,
        )
        for isa in ISAS
        if isa >= Isa.X86_64_V3
        for num_threads in (1, 3)
    ]
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize(
    ("kind", "channels", "options", "message"),
    [
        (Kind.PAIR, (20, 20), {}, "in_channels must be a multiple of 16, got 20"),
        (Kind.UP, (64, 0), {}, "out_channels must be a multiple of 16, got 0"),
        (Kind.STEM, (0, 16), {}, "in_channels must be a multiple of 16, got 0"),
        (Kind.PAIR, (16, 16), {"dilation": 0}, "dilation must be at least 1, got 0"),
        (Kind.PAIR, (16, 16), {"tile": 3}, r"tile must be one of \(1, 2, 4\), got 3"),
        (Kind.HEADS, (16, 16), {"tile": 1}, r"tile must be one of \(2, 4\), got 1"),
    ],
)
def test_refuses(
    kind: Kind, channels: tuple[int, int], options: dict[str, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Layer(kind, *channels, (), (), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", list(Kind))
def test_refuses_tensors_that_do_not_fit(kind: Kind) -> None:
    with pytest.raises(ValueError, match=f"a layer of kind {kind.name} with 32 and 64 channels"):
        Layer(kind, 32, 64, (torch.zeros(3),), (torch.zeros(5),))
