"""Which calls of CUDA a capture makes, in which order; ``test_cuda_graphs`` makes them for real."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from segstream.engine.cuda_graphs import CudaGraphs, has_cuda_graphs
from segstream.engine.executor import Lap

Log = list[str]


class FakeCuda:
    """What ``torch.cuda`` is asked for; it only takes notes."""

    def __init__(self) -> None:
        self.log: Log = []

    @contextmanager
    def stream(self, stream: object) -> Iterator[None]:
        self.log.append("enter")
        yield
        self.log.append("leave")

    def default_stream(self, device: torch.device) -> str:
        return "default"

    def graph_pool_handle(self) -> str:
        return "pool"

    def empty_cache(self) -> None:
        self.log.append("empty")

    def Stream(self, device: torch.device) -> SimpleNamespace:
        return SimpleNamespace(wait_stream=lambda other: self.log.append(f"wait for {other}"))

    def Event(self, *, blocking: bool) -> SimpleNamespace:
        assert blocking
        return SimpleNamespace(
            record=lambda: self.log.append("record"),
            synchronize=lambda: self.log.append("synchronize"),
        )

    def CUDAGraph(self) -> SimpleNamespace:
        number = sum(call.startswith("begin") for call in self.log)

        def begin(pool: str, *, capture_error_mode: str) -> None:
            self.log.append(f"begin {number} {pool} {capture_error_mode}")

        return SimpleNamespace(
            capture_begin=begin,
            capture_end=lambda: self.log.append(f"end {number}"),
            replay=lambda: self.log.append(f"replay {number}"),
        )


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """What is called, in order."""
    fake = FakeCuda()
    for name in (
        *("Stream", "Event", "CUDAGraph", "stream"),
        *("default_stream", "graph_pool_handle", "empty_cache"),
    ):
        monkeypatch.setattr(torch.cuda, name, getattr(fake, name))
    return fake.log


def three_stages(log: Log) -> Callable[[Lap], None]:
    def work(lap: Lap) -> None:
        log.append("encode")
        lap("encode")
        log.append("read")
        lap("memory_read")
        log.append("decode")

    return work


def test_each_stage_is_a_graph_of_one_pool(log: Log) -> None:
    device = CudaGraphs("cuda:0")
    replay = device.capture(three_stages(log))
    assert log == [
        "empty",
        *("begin 0 pool thread_local", "encode", "end 0"),
        *("begin 1 pool thread_local", "read", "end 1"),
        *("begin 2 pool thread_local", "decode", "end 2"),
    ]
    for _ in range(2):
        log.clear()
        replay(lambda stage: log.append(f"lap {stage}"))
        assert log == ["replay 0", "lap encode", "replay 1", "lap memory_read", "replay 2"]


def test_a_capture_that_fails_is_ended(log: Log) -> None:
    def work(lap: Lap) -> None:
        lap("encode")
        raise RuntimeError("not while capturing")

    with pytest.raises(RuntimeError, match="not while capturing"):
        CudaGraphs("cuda:0").capture(work)
    assert log[-3:] == ["end 0", "begin 1 pool thread_local", "end 1"]


def test_work_follows_the_default_stream_and_is_waited_for_even_if_it_fails(log: Log) -> None:
    device = CudaGraphs("cuda:0")
    with pytest.raises(ZeroDivisionError), device.working():
        log.append(f"work {1 // 0}")
    assert log == ["enter", "wait for default", "record", "synchronize"]
    log.clear()
    with device.working():
        log.append("work")
    assert log == ["enter", "wait for default", "work", "record", "synchronize", "leave"]


def test_only_cuda_devices_of_cuda_builds_have_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_cuda_graphs("cuda")
    assert has_cuda_graphs("cuda:1")
    assert not has_cuda_graphs("cpu")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert not has_cuda_graphs("cuda")
