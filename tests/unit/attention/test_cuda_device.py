"""What only a GPU can tell: run by ``make test`` wherever there is one."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from segstream.attention import local_memory_attention
from segstream.attention.cuda import local_memory_attention_cuda
from segstream.attention.cuda.cuda_device import CudaDevice
from segstream.attention.cuda.operands import Operands
from segstream.attention.cuda.variants import (
    PREBUILT,
    Element,
    PlainVariant,
    TensorCoreVariant,
    Variant,
)
from tests.attention.cuda_emulation.samples import (
    Sample,
    interleaved,
    reference,
    strongly_negative,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

HALF, BF16, FP32 = torch.float16, torch.bfloat16, torch.float32
TOLERANCE = {HALF: 2e-3, BF16: 1.6e-2, FP32: 1e-5}
# Tensor cores cut off what lies below the last bit of a score of 1e4, which is 1e-3.
BIG_TOLERANCE = 5e-3
TABLE = ((2, 0, 1), (-1, 1, -1), (-1, -1, -1))
SAMPLES = {
    "erfnet": Sample(height=16, width=24, slots=TABLE),
    "sink": Sample(height=16, width=24, slots=TABLE, sink=1.5),
    "unit variance": Sample(score_scale=1.0),
    "bf16": Sample(dtype=BF16, slots=TABLE),
    "fp32": Sample(dtype=FP32, slots=TABLE),
    "pspnet": Sample(key_channels=128, value_channels=256, score_scale=0.09),
    "pspnet, fp32": Sample(dtype=FP32, key_channels=128, value_channels=256, score_scale=0.09),
    **{f"window {p}": Sample(window=p) for p in (1, 3, 5, 13, 29, 33)},
    "odd channels": Sample(key_channels=5, value_channels=7, slots=TABLE),
    "fp32 query, fp16 pool": Sample(dtype=FP32, pool_dtype=HALF, slots=TABLE),
    "bf16 query, fp32 pool": Sample(dtype=BF16, pool_dtype=FP32, slots=TABLE),
}


def to_gpu(operands: Operands) -> Operands:
    sink = None if operands.sink is None else operands.sink.cuda()
    # Pages keep their distances: a view of one pool stays a view of one pool.
    return replace(
        operands,
        query=operands.query.cuda(),
        keys=_same_strides(operands.keys),
        values=_same_strides(operands.values),
        slots=operands.slots.cuda(),
        sink=sink,
    )


def _same_strides(tensor: Tensor) -> Tensor:
    moved = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
    return moved.copy_(tensor)


def run(operands: Operands) -> Tensor:
    return local_memory_attention_cuda(
        operands.query,
        operands.keys,
        operands.values,
        operands.slots,
        operands.window,
        operands.sink,
    )


def error(operands: Operands) -> float:
    result = run(to_gpu(operands)).cpu()
    assert torch.isfinite(result).all()
    return (result.double() - reference(operands)).abs().max().item()


@pytest.mark.parametrize("name", SAMPLES)
def test_agrees_with_float64(name: str) -> None:
    sample = SAMPLES[name]
    assert error(sample.operands()) <= TOLERANCE[sample.dtype]


@pytest.mark.parametrize("dtype", [HALF, FP32])
@pytest.mark.parametrize("sink", [None, 1e4, -1e4])
def test_scores_of_any_size(dtype: torch.dtype, sink: float | None) -> None:
    sample = Sample(dtype=dtype, window=5, slots=((0, 1),), score_scale=2500.0, sink=sink)
    big = sample.operands()
    assert error(big) <= BIG_TOLERANCE
    assert error(strongly_negative(big)) <= BIG_TOLERANCE


@pytest.mark.parametrize("size", [(64, 128), (45, 60)])
def test_a_whole_frame_agrees_with_torch(size: tuple[int, int]) -> None:
    sample = Sample(height=size[0], width=size[1], slots=((2, 0, 1, 3),), num_slots=4)
    operands = sample.operands()
    exact = Operands.of(
        operands.query.float(),
        operands.keys.float(),
        operands.values.float(),
        operands.slots,
        operands.window,
        None,
    )
    result = run(to_gpu(operands)).cpu().float()
    expected = local_memory_attention(
        exact.query, exact.keys, exact.values, exact.slots, exact.window
    )
    assert (result - expected).abs().max() <= 2e-3


@pytest.mark.parametrize("dtype", [HALF, BF16, FP32])
def test_an_item_is_bit_identical_in_any_company(dtype: torch.dtype) -> None:
    alone = to_gpu(Sample(dtype=dtype, slots=((0,),), num_slots=1).operands())
    company = to_gpu(Sample(dtype=dtype, slots=((0, 2), (-1, 1))).operands())
    company.keys[1], company.values[1] = alone.keys[0], alone.values[0]
    company.query[1] = alone.query[0]
    assert torch.equal(run(company)[1], run(alone)[0])


@pytest.mark.parametrize("dtype", [HALF, FP32])
def test_the_same_call_gives_the_same_bits(dtype: torch.dtype) -> None:
    operands = to_gpu(Sample(dtype=dtype, height=64, width=128, slots=((0, 2, 1),)).operands())
    first = run(operands)
    assert all(torch.equal(run(operands), first) for _ in range(5))


def test_pages_may_lie_apart() -> None:
    assert error(interleaved(Sample(slots=((2, 0),)).operands())) <= TOLERANCE[HALF]


def test_work_goes_to_the_current_stream() -> None:
    operands = to_gpu(Sample().operands())
    expected = run(operands)
    late = replace(operands, query=torch.zeros_like(operands.query))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.query.copy_(operands.query)
        result = run(late)
    stream.synchronize()
    assert torch.equal(result, expected)


def test_a_call_can_be_captured_into_a_graph() -> None:
    operands = to_gpu(Sample(slots=((2, 0, 1),)).operands())
    expected = run(operands)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run(operands)
    result.zero_()
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(result, expected)


def test_every_kernel_can_be_had() -> None:
    device = CudaDevice.of(torch.device("cuda", torch.cuda.current_device()))
    rare: list[Variant] = [
        TensorCoreVariant(Element.HALF, 5, 32, 16),
        PlainVariant(Element.HALF, Element.FLOAT),
    ]
    wanted = [v for v in (*PREBUILT, *rare) if v.oldest_architecture <= device.traits.architecture]
    device.prepare(wanted)


def test_slots_out_of_range_are_refused_or_take_no_part() -> None:
    operands = to_gpu(Sample(slots=((2, 0),)).operands())
    wrong = replace(operands, slots=operands.slots.clone())
    wrong.slots[0, 1] = 99
    with pytest.raises(ValueError, match="slots must be in"):
        run(wrong)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        unchecked = run(wrong)
    graph.replay()
    torch.cuda.synchronize()
    absent = replace(operands, slots=operands.slots.clone())
    absent.slots[0, 1] = -1
    assert torch.equal(unchecked, run(absent))


def test_without_a_kernel_torch_computes_on_the_gpu() -> None:
    """Queries of 65536 channels do not fit any GPU's shared memory."""
    generator = torch.Generator().manual_seed(0)
    query, keys = (torch.randn(1, 2, 3, 65536, generator=generator) / 256 for _ in range(2))
    values = torch.randn(1, 2, 3, 4, generator=generator)
    slots = torch.zeros(1, 1, dtype=torch.int32)
    found = local_memory_attention(query.cuda(), keys.cuda(), values.cuda(), slots.cuda(), 3)
    expected = local_memory_attention(query, keys, values, slots, 3)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)


def test_gradients() -> None:
    cpu = Sample(dtype=FP32, window=3, height=4, width=5, slots=((1, 0),), num_slots=2).operands()
    gradient = torch.randn(1, 4, 5, 64)
    found = []
    for operands in (cpu, to_gpu(cpu)):
        leaves = [t.clone().requires_grad_() for t in (operands.query, operands.keys)]
        result = local_memory_attention(
            leaves[0], leaves[1], operands.values, operands.slots, operands.window
        )
        torch.autograd.backward(result, gradient.to(result.device))
        found.append([leaf.grad for leaf in leaves])
    for expected, grad in zip(*found, strict=True):
        assert expected is not None
        assert grad is not None
        torch.testing.assert_close(grad.cpu(), expected, rtol=1e-3, atol=1e-4)
