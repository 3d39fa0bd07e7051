"""What only a GPU can tell of the executor: run by ``make test`` wherever there is one."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from segstream.engine import InProcessEngine, Step
from segstream.engine.cuda_executor import CudaExecutor
from segstream.engine.cuda_graphs import CudaGraphs
from segstream.engine.executor import Executor, Prediction
from segstream.engine.precision_guard import usable_precision
from segstream.engine.runtimes import make_executor
from segstream.engine.torch_executor import TorchExecutor
from segstream.models import LMANet, load, model_digest
from segstream.pages import Pages, empty_pages
from tests.unit.engine.networks import make_plain_network

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DEVICE = "cuda:0"
HEIGHT, WIDTH = 72, 100
READ_SLOTS: tuple[tuple[int, ...], ...] = ((), (0, 1), (2,), (), (3, 4), (5,))
MEMORISED_ONLY = 3
NUM_ROUNDS = 4  # eager, captured, replayed twice


def make_pages(model: LMANet, num_pages: int = 16) -> Pages:
    pages = empty_pages(model.page_geometry(HEIGHT, WIDTH), num_pages, device=DEVICE)
    generator = torch.Generator(DEVICE).manual_seed(0)
    for pool in (pages.keys, pages.values):
        pool.normal_(generator=generator)
    return pages


def make_steps(pages: Pages, seed: int, numbers: Sequence[int] = range(6)) -> list[Step]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (6, HEIGHT, WIDTH, 3), dtype=np.uint8)
    return [
        Step(
            *("net", images[i], pages, READ_SLOTS[i], 8 + i, i != MEMORISED_ONLY),
            wants_confidence=i % 2 == 1,
        )
        for i in numbers
    ]


def execute(executor: Executor, steps: Sequence[Step]) -> list[Prediction]:
    return executor(steps, lambda _: None)


@contextmanager
def exact_float32() -> Iterator[None]:
    """TF32 would let two ways of computing differ more than the comparison allows."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def test_graphs_give_what_torch_gives_on_this_gpu() -> None:
    model = make_plain_network().to(DEVICE)
    ours, reference = CudaExecutor(model, CudaGraphs(DEVICE)), TorchExecutor(model, DEVICE)
    pages, expected_pages = make_pages(model), make_pages(model)
    with exact_float32():
        for seed in range(NUM_ROUNDS):
            found = execute(ours, make_steps(pages, seed))
            expected = execute(reference, make_steps(expected_pages, seed))
            for one, other in zip(found, expected, strict=True):
                assert (one.label_map is None) == (other.label_map is None)
                assert (one.confidence is None) == (other.confidence is None)
                if one.label_map is not None:
                    assert np.mean(one.label_map == other.label_map) > 0.999
                if one.confidence is not None and other.confidence is not None:
                    gap = np.abs(one.confidence.astype(int) - other.confidence)
                    assert np.mean(gap <= 1) > 0.999
            assert torch.allclose(pages.keys, expected_pages.keys, atol=1e-3)
            assert torch.allclose(pages.values, expected_pages.values, atol=1e-3)
    assert all(program.is_captured for program in ours._programs.values())


def test_only_the_pages_of_the_steps_are_written() -> None:
    model = make_plain_network().to(DEVICE)
    ours, pages = CudaExecutor(model, CudaGraphs(DEVICE)), make_pages(model)
    others = [slot for slot in range(16) if slot not in range(8, 14)]
    before = pages.keys[others].clone(), pages.values[others].clone()
    for seed in range(NUM_ROUNDS):
        execute(ours, make_steps(pages, seed))
    assert torch.equal(pages.keys[others], before[0])
    assert torch.equal(pages.values[others], before[1])


def test_a_replayed_batch_asks_the_device_nothing() -> None:
    model = make_plain_network().to(DEVICE)
    ours, pages = CudaExecutor(model, CudaGraphs(DEVICE)), make_pages(model)
    for seed in range(2):
        execute(ours, make_steps(pages, seed))
    torch.cuda.set_sync_debug_mode("error")  # which lets waiting for an event pass
    try:
        execute(ours, make_steps(pages, 2))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_batch_sees_what_the_default_stream_was_given_before() -> None:
    model = make_plain_network().to(DEVICE)
    ours, pages = CudaExecutor(model, CudaGraphs(DEVICE)), make_pages(model)
    steps = make_steps(pages, 0, [1])
    for _ in range(NUM_ROUNDS):
        expected = execute(ours, steps)[0]
    kept = pages.keys.clone(), pages.values.clone()
    pages.keys.zero_(), pages.values.zero_()
    torch.cuda._sleep(50_000_000)
    pages.keys.copy_(kept[0]), pages.values.copy_(kept[1])
    np.testing.assert_array_equal(execute(ours, steps)[0].label_map, expected.label_map)


def test_other_threads_may_use_the_device_during_a_capture() -> None:
    model = make_plain_network().to(DEVICE)
    stop, errors = threading.Event(), list[Exception]()

    def allocate() -> None:
        try:
            while not stop.is_set():
                torch.ones(1 << 20, device=DEVICE).sum().item()
                torch.empty(64 << 20, dtype=torch.uint8, device=DEVICE)
        except RuntimeError as error:
            errors.append(error)

    other = threading.Thread(target=allocate)
    other.start()
    try:
        ours, pages = CudaExecutor(model, CudaGraphs(DEVICE)), make_pages(model)
        for seed in range(NUM_ROUNDS):
            execute(ours, make_steps(pages, seed))
    finally:
        stop.set()
        other.join()
    assert not errors
    assert all(program.is_captured for program in ours._programs.values())


def test_stages_take_time_and_come_in_order() -> None:
    model = make_plain_network().to(DEVICE)
    ours, pages = CudaExecutor(model, CudaGraphs(DEVICE)), make_pages(model)
    for seed in range(NUM_ROUNDS):
        laps: list[str] = []
        ours(make_steps(pages, seed, [1, 2]), laps.append)
        assert laps == ["encode", "memory_read", "fuse_decode"]


def test_it_is_what_runs_a_network_on_a_gpu() -> None:
    model = load("lmanet-erfnet-camvid")
    executor = make_executor(model, model_digest(model), runtime="auto", device=DEVICE)
    assert isinstance(executor, CudaExecutor)
    assert executor._can_capture


async def test_a_precision_is_used_if_the_network_bears_it() -> None:
    model = load("lmanet-erfnet-camvid")
    precision = usable_precision(model, "float16", DEVICE)
    assert precision == "float16"
    engine = InProcessEngine({"net": model}, device=DEVICE, precision=precision)
    engine.start()
    try:
        assert engine.models["net"].digest.endswith("-torch.float16")
    finally:
        await engine.stop()
