"""The GPU executor on a stand-in for the GPU, beside torch's own."""

import asyncio
import copy
import gc
import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs
from torch import Tensor

from segstream.engine import InProcessEngine, Step, cuda_executor, runtimes
from segstream.engine.batch import run_batch
from segstream.engine.cuda_executor import CudaExecutor, bucket
from segstream.engine.executor import Executor, Lap, Prediction
from segstream.engine.torch_executor import TorchExecutor
from segstream.errors import EngineError
from segstream.label_sets import CAMVID
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import DeviceStorage
from segstream.models import LMANet, LMANetConfig, NetworkBuilder
from segstream.models.espnet import espnet
from segstream.models.network import NetworkSpec
from segstream.models.pspnet import pspnet50
from segstream.pages import Pages, empty_pages
from tests.support.networks import make_patches_lmanet
from tests.unit.engine.networks import (
    MEMORY_LENGTH,
    as_frames,
    make_network,
    make_plain_network,
)
from tests.unit.engine.taped_graphs import TapedGraphs

HEIGHT, WIDTH = 36, 44
NUM_OLD = 6
# Cold, warm to different depths, only to be memorised.
READ_SLOTS: tuple[tuple[int, ...], ...] = ((), (0, 1), (2,), (), (3, 4), (5,), (0, 2))
MEMORISED_ONLY = (3, 6)
CONFIDENT = (1, 3, 4)


@pytest.fixture(autouse=True)
def bits_of_its_own() -> Iterator[None]:
    """Torch's plain convolutions: a frame's bits do not depend on its batch, unlike oneDNN's."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    yield
    torch._C._set_mkldnn_enabled(before)


def make_pages(model: LMANet, seed: int = 0, dtype: torch.dtype = torch.float32) -> Pages:
    pages = empty_pages(model.page_geometry(HEIGHT, WIDTH), NUM_OLD + len(READ_SLOTS) + 1)
    generator = torch.Generator().manual_seed(seed)
    filled = (pool.normal_(generator=generator).to(dtype) for pool in (pages.keys, pages.values))
    return Pages(*filled)


def make_steps(numbers: Sequence[int], pages: Pages, seed: int = 0) -> list[Step]:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (len(READ_SLOTS), HEIGHT, WIDTH, 3), dtype=np.uint8)
    return [
        Step(
            *("net", images[i], pages, READ_SLOTS[i], NUM_OLD + i, i not in MEMORISED_ONLY),
            wants_confidence=i in CONFIDENT,
        )
        for i in numbers
    ]


def execute(executor: Executor, steps: Sequence[Step]) -> list[Prediction]:
    return executor(steps, lambda _: None)


def assert_equal(found: Sequence[Prediction], expected: Sequence[Prediction]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.label_map, other.label_map)
        np.testing.assert_array_equal(one.confidence, other.confidence)


BATCHES = {
    "mixed": range(7),
    "another order": (4, 3, 2, 6, 1, 0),
    "one warm": (1,),
    "one cold": (0,),
    "only memorised": (6, 3),
    "rows to spare": (0, 1, 2, 3, 4, 6),
}


@pytest.mark.parametrize("numbers", [pytest.param(BATCHES[name], id=name) for name in BATCHES])
def test_eager_captured_and_replayed_batches_give_what_torch_gives(numbers: Sequence[int]) -> None:
    model, device = make_plain_network(), TapedGraphs()
    ours, reference = CudaExecutor(model, device), TorchExecutor(model, "cpu")
    pages, expected_pages = make_pages(model), make_pages(model)
    for seed in range(4):
        found = execute(ours, make_steps(numbers, pages, seed))
        expected = execute(reference, make_steps(numbers, expected_pages, seed))
        assert_equal(found, expected)
        # Of the whole pool: rows to spare wrote nowhere.
        assert torch.equal(pages.keys, expected_pages.keys)
        assert torch.equal(pages.values, expected_pages.values)
    assert "replay" in device.log


def test_frames_and_weights_may_lie_in_torchs_own_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_plain_network()
    reference = TorchExecutor(copy.deepcopy(model), "cpu")
    monkeypatch.setattr(NetworkSpec, "layout", lambda self, device: torch.contiguous_format)
    ours = CudaExecutor(model, TapedGraphs())
    weights = [p for p in model.parameters() if p.dim() == 4 and min(p.shape) > 1]
    assert weights
    assert all(weight.is_contiguous() for weight in weights)
    pages, expected_pages = make_pages(model), make_pages(model)
    for seed in range(3):
        found = execute(ours, make_steps(range(7), pages, seed))
        expected = execute(reference, make_steps(range(7), expected_pages, seed))
        for one, other in zip(found, expected, strict=True):
            assert (one.label_map is None) == (other.label_map is None)
            if one.label_map is not None:
                assert np.mean(one.label_map == other.label_map) > 0.999
    torch.testing.assert_close(pages.keys, expected_pages.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(pages.values, expected_pages.values, atol=1e-4, rtol=1e-4)


def test_a_batch_may_grow_and_shrink_within_one_graph() -> None:
    model, device = make_plain_network(), TapedGraphs()
    ours, reference = CudaExecutor(model, device), TorchExecutor(model, "cpu")
    pages, expected_pages = make_pages(model), make_pages(model)
    warm = [1, 2, 4, 5]
    extra = Step("net", make_steps([2], pages, 9)[0].image, pages, (1, 0), NUM_OLD + 7)
    for seed, has_extra in enumerate((False, True, False, True)):
        steps = make_steps(warm, pages, seed)
        more = [extra, Step("net", extra.image, pages, (3,), NUM_OLD)] if has_extra else [extra]
        found = execute(ours, [*steps, *more])
        at_home = [
            Step(
                *("net", step.image, expected_pages, step.read_slots, step.write_slot),
                wants_confidence=step.wants_confidence,
            )
            for step in (*steps, *more)
        ]
        assert_equal(found, execute(reference, at_home))
        assert torch.equal(pages.keys, expected_pages.keys)
    assert device.log.count("capture") == 1
    assert device.log.count("replay") == 3


def test_a_row_does_not_read_what_the_one_before_it_read() -> None:
    model = make_plain_network()
    ours, reference = CudaExecutor(model, TapedGraphs()), TorchExecutor(model, "cpu")
    pages = make_pages(model)
    for number in (1, 2, 1, 2):  # two slots, one slot
        found = execute(ours, make_steps([number], pages))
        assert_equal(found, execute(reference, make_steps([number], pages)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_pages_keep_their_own_type(dtype: torch.dtype) -> None:
    model = make_plain_network()
    ours, reference = CudaExecutor(model, TapedGraphs()), TorchExecutor(model, "cpu")
    pages, expected_pages = make_pages(model, dtype=dtype), make_pages(model, dtype=dtype)
    for seed in range(3):
        found = execute(ours, make_steps(range(7), pages, seed))
        assert_equal(found, execute(reference, make_steps(range(7), expected_pages, seed)))
        assert torch.equal(pages.values, expected_pages.values)


@pytest.mark.parametrize("has_memory", [True, False])
def test_other_networks_are_captured(has_memory: bool) -> None:
    model, device = make_patches_lmanet(has_memory=has_memory), TapedGraphs()
    ours, reference = CudaExecutor(model, device), TorchExecutor(model, "cpu")
    numbers = range(7) if has_memory else (0, 3)
    pages, expected_pages = make_pages(model), make_pages(model)
    for seed in range(3):
        found = execute(ours, make_steps(numbers, pages, seed))
        assert_equal(found, execute(reference, make_steps(numbers, expected_pages, seed)))
        assert torch.equal(pages.values, expected_pages.values)
    assert "replay" in device.log


@pytest.mark.parametrize(
    ("build", "fusion"), [(espnet, "gated-scores"), (pspnet50, "sigmoid-down1")]
)
def test_published_networks_can_be_captured(build: NetworkBuilder, fusion: str) -> None:
    config = LMANetConfig(CAMVID, 12, memory_length=2, window_size=3, fusion=fusion)
    model = LMANet(config, build(12)).eval().requires_grad_(False)
    frames, slots = torch.rand(2, 3, 40, 48), torch.tensor([[0, 1], [-1, -1]], dtype=torch.int32)
    pages = empty_pages(model.page_geometry(40, 48), 2)
    pages.keys.zero_(), pages.values.zero_()
    logits = torch.empty(2, 12, 40, 48)

    def work(lap: Lap) -> None:
        logits.copy_(model.segment(frames, (pages, slots), lap=lap)[0])

    with torch.inference_mode():
        replay = TapedGraphs().capture(work)
        frames.uniform_()
        replay(lambda _: None)
        found = logits.clone()
        work(lambda _: None)
    assert torch.equal(found, logits)


def test_the_host_waits_only_when_all_is_enqueued() -> None:
    model, device = make_plain_network(), TapedGraphs()
    ours, pages = CudaExecutor(model, device), make_pages(model)
    for seed in range(2):
        execute(ours, make_steps([1, 2], pages, seed))
    device.log.clear()
    laps: list[str] = []
    ours(make_steps([1, 2], pages), laps.append)
    assert device.log == ["begin", "replay", *["mark"] * 3, *["wait"] * 3, "end"]
    assert laps == ["encode", "memory_read", "fuse_decode"]


@pytest.mark.parametrize("number", [0, 1, MEMORISED_ONLY[0]])
def test_the_stages_are_those_of_torch(number: int) -> None:
    model = make_plain_network()
    ours, reference = CudaExecutor(model, TapedGraphs()), TorchExecutor(model, "cpu")
    pages = make_pages(model)
    for _ in range(3):
        laps, expected = list[str](), list[str]()
        ours(make_steps([number], pages), laps.append)
        reference(make_steps([number], pages), expected.append)
        assert laps == list(dict.fromkeys(expected))


def test_pools_that_are_used_once_are_not_captured() -> None:
    model, device = make_plain_network(), TapedGraphs()
    ours = CudaExecutor(model, device)
    for seed in range(4):
        execute(ours, make_steps([1, 2], make_pages(model), seed))
    assert "capture" not in device.log


def test_pools_have_graphs_of_their_own_and_are_not_kept_by_them() -> None:
    model, device = make_plain_network(), TapedGraphs()
    ours, reference = CudaExecutor(model, device), TorchExecutor(model, "cpu")
    pools = [make_pages(model, seed) for seed in range(2)]
    for seed in range(3):
        for pages in pools:
            steps = make_steps([1, 2], pages, seed)
            expected = execute(
                reference, make_steps([1, 2], Pages(pages.keys.clone(), pages.values.clone()), seed)
            )
            assert_equal(execute(ours, steps), expected)
    del steps, pages
    gone = [weakref.ref(pool) for pool in pools]
    pools.clear()
    gc.collect()
    assert [ref() for ref in gone] == [None, None]
    execute(ours, make_steps([1], make_pages(model)))
    assert len(ours._programs) == 1


def test_the_kinds_that_were_seen_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_executor, "MAX_GRAPHS", 2)
    model, device = make_plain_network(), TapedGraphs()
    ours, pages = CudaExecutor(model, device), make_pages(model)
    for numbers in ([0], [1], [0], [3]):  # the last one takes the place of the second
        execute(ours, make_steps(numbers, pages))
    device.log.clear()
    execute(ours, make_steps([0], pages))
    assert "replay" in device.log
    device.log.clear()
    execute(ours, make_steps([1], pages))
    assert not {"capture", "replay"} & set(device.log)
    assert len(ours._programs) == 2


def test_a_network_that_cannot_be_captured_runs_without_and_says_so_once() -> None:
    model = make_network()  # asks in its forward whether a frame is white
    ours, reference = CudaExecutor(model, TapedGraphs()), TorchExecutor(model, "cpu")
    pages, expected_pages = make_pages(model), make_pages(model)
    with capture_logs() as logs:
        for seed in range(3):
            found = execute(ours, make_steps(range(7), pages, seed))
            assert_equal(found, execute(reference, make_steps(range(7), expected_pages, seed)))
    assert [line["log_level"] for line in logs] == ["warning"]
    assert "cannot be captured" in logs[0]["event"]


class FragileLMANet(LMANet):
    """Fails in its decoder when told to."""

    must_fail = False

    def decode(self, features: object) -> Tensor:
        if self.must_fail:
            raise RuntimeError("told to")
        return super().decode(features)  # type: ignore[arg-type]


def test_after_a_failure_a_kind_of_batch_begins_anew() -> None:
    plain, device = make_plain_network(), TapedGraphs()
    model = FragileLMANet(plain.config).eval().requires_grad_(False)
    model.load_state_dict(plain.state_dict())
    ours, pages = CudaExecutor(model, device), make_pages(model)
    before = pages.keys.clone()
    model.must_fail = True
    with capture_logs():
        [error] = run_batch(ours, make_steps([1], pages))
    assert isinstance(error, EngineError)
    assert torch.equal(pages.keys, before)
    model.must_fail = False
    for _ in range(3):
        execute(ours, make_steps([1], pages))
    assert [entry for entry in device.log if entry in ("capture", "replay")] == [
        *("capture", "replay", "replay")
    ]


def test_more_slots_than_the_memory_is_long_fail_the_step_alone() -> None:
    model = make_plain_network()
    ours, pages = CudaExecutor(model, TapedGraphs()), make_pages(model)
    good = make_steps([1], pages)[0]
    bad = Step("net", good.image, pages, tuple(range(MEMORY_LENGTH + 1)), NUM_OLD + 3)
    with capture_logs():
        fine, error = run_batch(ours, [good, bad])
    assert not isinstance(fine, EngineError)
    assert isinstance(error, EngineError)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> TapedGraphs:
    """What the package takes for a CUDA device."""
    device = TapedGraphs()
    monkeypatch.setattr(runtimes, "has_cuda_graphs", lambda _: True)
    monkeypatch.setattr(runtimes, "CudaGraphs", lambda _: device)
    return device


async def test_sessions_of_an_engine_share_graphs_and_nothing_else(device: TapedGraphs) -> None:
    model = make_plain_network()
    engine = InProcessEngine({"net": model}, runtime="torch")
    engine.start()
    assert device.log.count("capture") == 2  # without and with memory, before the first frame
    device.log.clear()
    pool = PagePool(model.page_geometry(HEIGHT, WIDTH), 24, DeviceStorage())
    for tensor in (pool.pages.keys, pool.pages.values):
        tensor.fill_(float("nan"))  # what nobody wrote must not be read

    async def check_video(seed: int) -> None:
        bank, stream = MemoryBank(pool, MEMORY_LENGTH), model.stream(runtime="torch")
        rng = np.random.default_rng(seed)
        for _ in range(5):
            image = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
            step = Step("net", image, bank.pages, bank.slots, bank.reserve())
            label_map = (await engine.step(step)).label_map
            bank.commit()
            logits = stream.step(as_frames(image))[0, : CAMVID.num_classes]
            np.testing.assert_array_equal(label_map, logits.argmax(dim=0).numpy())

    try:
        await asyncio.gather(*(check_video(seed) for seed in range(5)))
    finally:
        await engine.stop()
    assert "replay" in device.log


@given(st.integers(1, 256))
def test_less_than_a_third_of_a_bucket_is_to_spare(num_frames: int) -> None:
    rows = bucket(num_frames)
    assert num_frames <= rows
    assert 3 * (rows - num_frames) < rows
    assert bucket(rows) == rows


def test_there_are_few_buckets() -> None:
    assert sorted({bucket(n) for n in range(1, 33)}) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]
