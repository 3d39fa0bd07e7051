import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from segstream.attention import gpu, row_band
from segstream.attention.cuda import local_memory_attention_cuda
from segstream.attention.cuda.cuda_device import CudaDevice
from segstream.attention.cuda.errors import KernelUnavailableError
from segstream.attention.cuda.launch import attend
from segstream.attention.cuda.operands import Operands
from segstream.attention.cuda.plan import GpuTraits, KernelLaunch
from segstream.attention.cuda.problem import Problem
from segstream.attention.cuda.variants import Element, PlainVariant, TensorCoreVariant, Variant
from tests.unit.engine.taped_graphs import TapedGraphs

BIG_GPU = GpuTraits(architecture=80, multiprocessors=108, max_shared_bytes=163 * 1024)


class FakeDevice:
    """Notes what it is asked to do; writes nothing."""

    traits = BIG_GPU

    def __init__(self, *, without: type | None = None) -> None:
        self.without = without
        self.launches: list[tuple[Variant, dict[str, int | None]]] = []
        self.shapes: list[tuple[tuple[int, ...], torch.dtype]] = []

    def prepare(self, variants: Sequence[Variant]) -> None:
        if self.without and any(isinstance(v, self.without) for v in variants):
            raise KernelUnavailableError("not here")

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        self.shapes.append((tuple(shape), dtype))
        return torch.zeros(tuple(shape), dtype=dtype)

    def launch(self, kernel: KernelLaunch, problem: Problem) -> None:
        fields = {name: getattr(problem, name) for name, *_ in Problem._fields_}
        self.launches.append((kernel.variant, fields))


class SmallDevice(FakeDevice):
    """Has less shared memory than any kernel needs."""

    traits = replace(BIG_GPU, max_shared_bytes=256)


def operands(dtype: torch.dtype = torch.float16, *, pages: int = 3, window: int = 21) -> Operands:
    pool = torch.zeros(4, 2 * 9 * 17 * 64, dtype=dtype)
    return Operands.of(
        torch.zeros(2, 9, 17, 16, dtype=dtype),
        pool[:, : 9 * 17 * 16].view(4, 9, 17, 16),
        pool[:, 9 * 17 * 64 :].view(4, 9, 17, 64),
        torch.zeros(2, pages, dtype=torch.int32),
        window,
        torch.tensor(0.5),
    )


def test_a_split_call_fills_every_field_and_has_workspace() -> None:
    device, call = FakeDevice(), operands()
    out = attend(call, device)
    assert (out.shape, out.dtype) == ((2, 9, 17, 64), torch.float16)
    assert device.shapes == [
        ((2, 9, 17, 64), torch.float16),
        ((3, 2, 9, 17, 64), torch.float32),
        ((3, 2, 9, 17, 1, 2), torch.float32),
    ]
    (_, first), (_, second) = device.launches
    assert first == second
    assert None not in first.values()
    assert first["out"] == out.data_ptr()
    assert first["keys"] == call.keys.data_ptr()
    assert first["values"] == call.values.data_ptr()
    assert first["key_page_stride"] == first["value_page_stride"] == 2 * 9 * 17 * 64
    assert (first["batch"], first["table_length"], first["num_slots"]) == (2, 3, 4)
    assert (first["height"], first["width"], first["window"]) == (9, 17, 21)
    assert (first["key_channels"], first["value_channels"], first["value_blocks"]) == (16, 64, 1)


def test_a_whole_call_has_no_workspace() -> None:
    device = FakeDevice()
    attend(operands(pages=1), device)
    ((_, fields),) = device.launches
    assert fields["partial_sums"] is None
    assert len(device.shapes) == 1


def test_the_plain_kernel_computes_in_fp32_and_answers_in_the_querys_dtype() -> None:
    device, call = FakeDevice(), operands(window=33)
    out = attend(call, device)
    ((variant, fields),) = device.launches
    assert isinstance(variant, PlainVariant)
    assert device.shapes == [((2, 9, 17, 64), torch.float32)]
    assert fields["query"] != call.query.data_ptr()
    assert out.dtype == torch.float16


def test_without_its_tensor_core_kernel_the_plain_one_serves(
    caplog: pytest.LogCaptureFixture,
) -> None:
    device = FakeDevice(without=TensorCoreVariant)
    with caplog.at_level(logging.WARNING):
        attend(operands(window=19), device)
        attend(operands(window=19), device)
    assert [type(variant) for variant, _ in device.launches] == [PlainVariant] * 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not here" in caplog.text


def test_without_any_kernel_the_error_is_told() -> None:
    with pytest.raises(KernelUnavailableError, match="not here"):
        attend(operands(torch.float32), FakeDevice(without=PlainVariant))


def test_an_empty_table_gives_zeros_without_a_launch() -> None:
    device = FakeDevice()
    out = attend(operands(pages=0), device)
    assert not out.any()
    assert not device.launches


@pytest.mark.parametrize("failing", ["kernel", "plan"])
def test_without_any_kernel_torch_computes_and_says_so_once(
    failing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def launch(*arguments: object) -> Tensor:
        if failing == "kernel":
            return attend(call, FakeDevice(without=PlainVariant))
        return attend(call, SmallDevice())

    call = operands(torch.float32, window=5)
    call.values[1:].normal_(generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(gpu, "local_memory_attention_cuda", launch)
    gpu._warn_once.cache_clear()
    arguments = (call.query, call.keys, call.values, call.slots, call.window, call.sink)
    with caplog.at_level(logging.WARNING):
        readouts = [gpu.forward(*arguments) for _ in range(2)]
    expected = row_band.forward(*arguments)
    assert all(torch.equal(readout, expected) for readout in readouts)
    assert [record.name for record in caplog.records] == ["segstream.attention.gpu"]
    assert {"kernel": "not here", "plan": "bytes of shared memory"}[failing] in caplog.text


def test_a_rocm_device_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = SimpleNamespace(is_cuda=True, dtype=torch.float16)
    assert gpu.supports(tensor, tensor, tensor, 21)  # type: ignore[arg-type]
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert not gpu.supports(tensor, tensor, tensor, 21)  # type: ignore[arg-type]


def test_cpu_tensors_are_refused() -> None:
    call = operands()
    with pytest.raises(ValueError, match="must lie on a GPU, not cpu"):
        local_memory_attention_cuda(
            call.query, call.keys, call.values, call.slots, call.window, call.sink
        )


class FakeDriver:
    def __init__(self) -> None:
        self.context: int | None = None
        self.allowed: list[tuple[int, int]] = []
        self.launched: list[tuple[object, ...]] = []

    def attribute(self, ordinal: int, attribute: int) -> int:
        return {75: 8, 76: 6, 16: 28, 97: 99 * 1024}[attribute]

    def retain_primary_context(self, ordinal: int) -> int:
        return 0xC0

    @contextmanager
    def current(self, context: int) -> Iterator[None]:
        self.context = context
        yield
        self.context = None

    def allow_shared_bytes(self, function: int, shared_bytes: int) -> None:
        assert self.context == 0xC0
        self.allowed.append((function, shared_bytes))

    def launch(self, *arguments: object) -> None:
        assert self.context == 0xC0
        self.launched.append(arguments)


class FakeKernels:
    def function(self, variant: Variant) -> int:
        return 0xF0


def test_a_gpu_launches_on_the_current_stream_in_torchs_context(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    streams = {0: SimpleNamespace(cuda_stream=0x57)}
    monkeypatch.setattr(torch.cuda, "current_stream", lambda ordinal: streams[ordinal])
    driver = FakeDriver()
    device = CudaDevice(0, driver, FakeKernels())  # type: ignore[arg-type]
    assert device.traits == GpuTraits(
        architecture=86, multiprocessors=28, max_shared_bytes=99 * 1024
    )
    variant = PlainVariant(Element.FLOAT, Element.FLOAT)
    problem = Problem()
    for shared_bytes in (2000, 1000, 3000):
        device.launch(KernelLaunch(variant, (1, 2, 3), shared_bytes), problem)
    assert driver.allowed == [(0xF0, 2000), (0xF0, 3000)]
    assert driver.launched[0] == (0xF0, (1, 2, 3), 128, 2000, 0x57, problem)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_after_a_first_call_a_call_does_only_what_a_graph_may_hold(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=0x57))
    driver = FakeDriver()
    device = CudaDevice(0, driver, FakeKernels())  # type: ignore[arg-type]
    monkeypatch.setattr(device, "empty", lambda shape, dtype: torch.zeros(*shape, dtype=dtype))
    call = operands(dtype)
    attend(call, device)
    allowed, num_launches = list(driver.allowed), len(driver.launched)

    def work(lap: Callable[[str], None]) -> None:
        attend(call, device)

    TapedGraphs().capture(work)  # refuses questions to the device
    assert driver.allowed == allowed
    assert len(driver.launched) == 2 * num_launches
