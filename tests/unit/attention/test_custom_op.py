"""The operator as torch sees it: registration, gradients, compilation, export, bad arguments."""

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segstream.attention import cpu, local_memory_attention, operator, row_band

Arguments = dict[str, Any]


def make_arguments(
    dtype: torch.dtype = torch.float32, *, value_channels: int = 5, sink: bool = True
) -> Arguments:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    blocks = (value_channels // 64,) if value_channels > 64 else ()
    return {
        "query": normal(2, 4, 5, 3),
        "keys": normal(4, 4, 5, 3),
        "values": normal(4, *blocks, 4, 5, 64 if blocks else value_channels),
        "slots": torch.tensor([[2, -1], [0, 3]], dtype=torch.int32),
        "window_size": 3,
        "sink": normal(1) if sink else None,
    }


def leaves(arguments: Arguments) -> list[Tensor]:
    names = ("query", "keys", "values", "sink")
    return [arguments[name].requires_grad_() for name in names if arguments[name] is not None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value_channels", [5, 128])
@pytest.mark.parametrize("sink", [False, True])
def test_opcheck(dtype: torch.dtype, value_channels: int, sink: bool) -> None:
    arguments = make_arguments(dtype, value_channels=value_channels, sink=sink)
    leaves(arguments)
    forward = torch.ops.segstream.local_memory_attention.default
    torch.library.opcheck(forward, tuple(arguments.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value_channels", [5, 128])
@pytest.mark.parametrize("sink", [False, True])
def test_opcheck_of_the_backward(dtype: torch.dtype, value_channels: int, sink: bool) -> None:
    arguments = make_arguments(dtype, value_channels=value_channels, sink=sink)
    readout = local_memory_attention(**arguments)
    backward = torch.ops.segstream.local_memory_attention_backward.default
    for needed in ([True, True, True, sink], [False, True, False, False]):
        given = (torch.ones_like(readout), readout, *arguments.values(), needed)
        torch.library.opcheck(backward, given)


@pytest.mark.parametrize("value_channels", [2, 128])
def test_gradcheck(value_channels: int) -> None:
    """In float64, so of row-band torch; test_cpu_kernel compares the kernel's with it."""
    arguments = make_arguments(torch.float64, value_channels=value_channels)

    def read(query: Tensor, keys: Tensor, values: Tensor, sink: Tensor) -> Tensor:
        slots, window_size = arguments["slots"], arguments["window_size"]
        return local_memory_attention(query, keys, values, slots, window_size, sink=sink)

    assert torch.autograd.gradcheck(read, leaves(arguments), fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
@pytest.mark.parametrize("value_channels", [5, 128])
def test_gradients_are_those_of_autograd(dtype: torch.dtype, value_channels: int) -> None:
    arguments = make_arguments(dtype, value_channels=value_channels)
    readout = local_memory_attention(**arguments | {"query": arguments["query"].clone()})
    grad = torch.ones_like(readout).cumsum(dim=-1) / value_channels
    inputs = leaves(arguments)
    found = torch.autograd.grad(local_memory_attention(**arguments), inputs, grad)
    exact: Arguments = {
        name: value.detach().double() if isinstance(value, Tensor) and name != "slots" else value
        for name, value in arguments.items()
    }
    exact_inputs = leaves(exact)
    wanted = torch.autograd.grad(row_band.forward(**exact), exact_inputs, grad.double())
    tolerance = {torch.float32: 2e-5, torch.float64: 1e-12, torch.float16: 2e-2}[dtype]
    for actual, expected, leaf in zip(found, wanted, inputs, strict=True):
        assert actual.dtype == leaf.dtype
        torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


def test_gradients_stop_where_none_are_wanted() -> None:
    arguments = make_arguments()
    arguments["values"].requires_grad_()
    readout = local_memory_attention(**arguments)
    torch.autograd.backward(readout, torch.ones_like(readout))
    assert arguments["values"].grad is not None
    assert arguments["query"].grad is None


class Reader(nn.Module):
    def forward(self, query: Tensor, keys: Tensor, values: Tensor, slots: Tensor) -> Tensor:
        return 2 * local_memory_attention(query, keys, values, slots, 3)


def test_compiles_without_a_graph_break() -> None:
    arguments = list(make_arguments(sink=False).values())[:4]
    reader = torch.compile(Reader(), backend="aot_eager", fullgraph=True)
    grads = []
    for read in (reader, Reader()):
        inputs = [tensor.clone() for tensor in arguments]
        inputs[0].requires_grad_()
        readout = read(*inputs)
        readout.square().sum().backward()
        grads.append((readout.detach(), inputs[0].grad))
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


def test_exports_with_any_batch_and_memory_length() -> None:
    arguments = list(make_arguments(sink=False).values())[:4]
    batch, length = torch.export.Dim("batch", max=8), torch.export.Dim("length", max=8)
    shapes = ({0: batch}, None, None, {0: batch, 1: length})
    program = torch.export.export(Reader(), tuple(arguments), dynamic_shapes=shapes)
    query, keys, values, _ = arguments
    slots = torch.tensor([[1, 2, 3]] * 3, dtype=torch.int32)
    query = query[:1].repeat(3, 1, 1, 1)
    wanted = Reader()(query, keys, values, slots)
    assert torch.equal(program.module()(query, keys, values, slots), wanted)


BAD: list[tuple[str, Any, str]] = [
    ("query", torch.ones(2, 4, 5), "query must be"),
    ("query", torch.ones(2, 4, 5, 3, dtype=torch.int64), "query must be floating"),
    ("query", torch.ones(2, 4, 0, 3), "query must be"),
    ("keys", torch.ones(4, 4, 6, 3), "keys must be"),
    ("keys", torch.ones(4, 4, 5, 4), "keys must be"),
    ("keys", torch.ones(4, 4, 5, 3, dtype=torch.complex64), "keys must be floating"),
    ("keys", torch.ones(4, 4, 5, 3).to_sparse(), "keys must be dense"),
    ("keys", torch.ones(4, 4, 5, 3, device="meta"), "keys must lie on the query's device"),
    ("values", torch.ones(3, 4, 5, 5), "values must be"),
    ("values", torch.ones(4, 5, 4, 5), "values must be"),
    ("values", torch.ones(4, 2, 4, 5, 32), "values must be"),
    ("values", torch.ones(4, 4, 5, 0), "values must be"),
    ("values", torch.ones(4, 4, 5, 5).bool(), "values must be floating"),
    ("slots", torch.zeros(2, 2), "slots must be"),
    ("slots", torch.zeros(3, 2, dtype=torch.int32), "slots must be"),
    ("slots", torch.zeros(2, dtype=torch.int32), "slots must be"),
    ("slots", torch.zeros(2, 2, dtype=torch.int64), "slots must be"),
    ("slots", torch.full((2, 2), 4, dtype=torch.int32), r"slots must be in -1\.\.3"),
    ("slots", torch.full((2, 2), -2, dtype=torch.int32), r"slots must be in -1\.\.3"),
    ("window_size", 4, "window_size must be odd"),
    ("window_size", 0, "window_size must be odd"),
    ("window_size", -3, "window_size must be odd"),
    ("sink", torch.zeros(2), "sink must hold a single logit"),
    ("sink", torch.zeros(1, dtype=torch.int32), "sink must be floating"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "value", "message"), BAD)
def test_a_bad_argument_is_named(dtype: torch.dtype, name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        local_memory_attention(**make_arguments(dtype) | {name: value})


BAD_READOUTS: list[tuple[Tensor, str]] = [
    (torch.ones(2, 4, 5, 6), "must be (B, h, w, Dv) = (2, 4, 5, 5), got (2, 4, 5, 6)"),
    (torch.ones(2, 4, 5, 5, dtype=torch.int32), "must be floating point"),
    (torch.ones(2, 4, 5, 5).to_sparse(), "must be dense"),
    (torch.ones(2, 4, 5, 5, device="meta"), "must lie on the query's device"),
]


@pytest.mark.parametrize("name", ["grad_readout", "readout"])
@pytest.mark.parametrize(("bad", "message"), BAD_READOUTS)
def test_a_bad_read_out_is_named(name: str, bad: Tensor, message: str) -> None:
    arguments = make_arguments()
    good = torch.ones(2, 4, 5, 5)
    readouts = {"grad_readout": good, "readout": good} | {name: bad}
    # Called without the dispatcher, which would send other devices and layouts elsewhere.
    with pytest.raises(ValueError, match=re.escape(f"{name} {message}")):
        operator._backward._init_fn(*readouts.values(), *arguments.values(), [True] * 4)


def test_fake_tensors_are_checked_too() -> None:
    arguments = make_arguments()
    on_meta: Arguments = {
        name: value.to("meta") if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
    assert local_memory_attention(**on_meta).shape == (2, 4, 5, 5)
    with pytest.raises(ValueError, match="window_size must be odd"):
        local_memory_attention(**on_meta | {"window_size": 2})


@pytest.mark.parametrize("content", [None, b"not a library"])
def test_works_without_the_kernel_and_says_so_once(
    content: bytes | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    library = tmp_path / "kernel.so"
    if content is not None:
        library.write_bytes(content)
    arguments = make_arguments()
    expected = local_memory_attention(**arguments)
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(cpu, "LIBRARY", library)
        cpu.library.cache_clear()
        readouts = [local_memory_attention(**arguments) for _ in range(2)]
    cpu.library.cache_clear()
    assert [record.name for record in caplog.records] == ["segstream.shared_library"]
    assert "no CPU attention kernel" in caplog.text
    for readout in readouts:
        torch.testing.assert_close(readout, expected, rtol=1e-5, atol=1e-5)


def test_float64_goes_through_torch() -> None:
    arguments = make_arguments(torch.float64)
    readout = local_memory_attention(**arguments)
    assert readout.dtype == torch.float64
    assert torch.equal(readout, row_band.forward(**arguments))


def test_a_window_beyond_the_kernel_goes_through_torch() -> None:
    arguments = make_arguments()
    query, keys, values = (arguments[name] for name in ("query", "keys", "values"))
    assert operator._kernel_for(query, keys, values, cpu.MAX_WINDOW_SIZE + 2) is row_band
