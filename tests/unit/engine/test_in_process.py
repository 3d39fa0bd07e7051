import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from structlog.typing import EventDict
from torch import Tensor

from segstream.engine import InProcessEngine, Step, StepResult
from segstream.errors import EngineError, UnavailableError
from segstream.label_sets import CAMVID
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import DeviceStorage
from tests.unit.engine.networks import (
    MEMORY_LENGTH,
    TIMEOUT_SECONDS,
    WINDOW_SIZE,
    GatedLMANet,
    as_frames,
    make_network,
)

HEIGHT, WIDTH = 32, 40
STAGES = {"queue", "encode", "memory_read", "fuse_decode"}
WHITE = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)


class Video:
    """The frames of one session, its bank, and what its own stream says of the frames so far."""

    def __init__(self, network: GatedLMANet, pool: PagePool, seed: int = 0) -> None:
        self.bank = MemoryBank(pool, network.config.memory_length)
        self._stream = network.stream(runtime="torch")
        self._rng = np.random.default_rng(seed)

    def next_image(self, height: int = HEIGHT, width: int = WIDTH) -> Image:
        light = self._rng.uniform(0.2, 1.0, (1, 1, 3))
        return (self._rng.integers(0, 256, (height, width, 3)) * light).astype(np.uint8)

    async def segment(self, engine: InProcessEngine, image: Image, model: str) -> StepResult:
        read_slots, write_slot = self.bank.slots, self.bank.reserve()
        step = Step(model, image, self.bank.pages, read_slots, write_slot)
        try:
            result = await engine.step(step)
        except BaseException:
            self.bank.rollback()
            raise
        self.bank.commit()
        return result

    def expected_logits(self, image: Image) -> Tensor:
        return self._stream.step(as_frames(image))[0]


class Harness:
    """An engine whose thread a test can hold up while it queues steps."""

    def __init__(self, max_batch_size: int) -> None:
        self.network = make_network(0)
        self.other = make_network(1)
        self.blocker = make_network(2)
        models = {"net": self.network, "other": self.other, "blocker": self.blocker}
        self.engine = InProcessEngine(models, max_batch_size=max_batch_size, runtime="torch")
        self.pool = self.new_pool()
        self._blocking: asyncio.Task[StepResult] | None = None

    def new_pool(
        self, height: int = HEIGHT, width: int = WIDTH, dtype: torch.dtype = torch.float32
    ) -> PagePool:
        pool = PagePool(self.engine.page_geometry("net", height, width), 24, DeviceStorage(dtype))
        # What nobody wrote must not be read.
        pool.pages.keys.fill_(float("nan"))
        pool.pages.values.fill_(float("nan"))
        return pool

    def video(self, seed: int = 0, pool: PagePool | None = None) -> Video:
        return Video(self.network, pool or self.pool, seed)

    @asynccontextmanager
    async def held_up(self) -> AsyncIterator[None]:
        """The engine is busy with a frame; what is asked meanwhile gathers until the end."""
        self.blocker.shut()
        video = Video(self.blocker, self.new_pool())
        blocking = asyncio.create_task(video.segment(self.engine, video.next_image(), "blocker"))
        await asyncio.to_thread(self.blocker.has_entered.wait, TIMEOUT_SECONDS)
        try:
            yield
        finally:
            self.blocker.gate.set()
            assert (await blocking).batch_size == 1

    async def together(self, steps: Sequence[Coroutine[Any, Any, StepResult]]) -> list[StepResult]:
        """The results of steps that were all waiting when the engine came to them."""
        async with self.held_up():
            tasks = [asyncio.create_task(step) for step in steps]
            await has_begun()
        return await asyncio.gather(*tasks)


async def has_begun() -> None:
    """One round of the event loop: every task has run to its first wait, its step is queued."""
    await asyncio.sleep(0)


MakeHarness = Callable[..., Awaitable[Harness]]


@pytest.fixture
async def make_harness() -> AsyncIterator[MakeHarness]:
    harnesses: list[Harness] = []

    async def make(max_batch_size: int = 8) -> Harness:
        harness = Harness(max_batch_size)
        harnesses.append(harness)
        harness.engine.start()
        for network in (harness.network, harness.other, harness.blocker):
            network.batches.clear()
        return harness

    yield make
    for harness in harnesses:
        for network in (harness.network, harness.other, harness.blocker):
            network.gate.set()
        await harness.engine.stop()


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as events:
        yield events


@pytest.fixture
async def harness(make_harness: MakeHarness) -> Harness:
    return await make_harness()


def assert_is_label_map_of(label_map: LabelMap, logits: Tensor) -> None:
    """Each pixel has the best class; rounding may decide between classes as good as equal."""
    logits = logits[: CAMVID.num_classes]
    given = logits.gather(0, torch.from_numpy(label_map).long()[None])[0]
    assert label_map.dtype == np.uint8
    assert (logits.amax(dim=0) - given).max() < 1e-4


def label_map_of(result: StepResult) -> LabelMap:
    assert result.label_map is not None
    return result.label_map


def labels(logits: Tensor) -> Tensor:
    return logits[: CAMVID.num_classes].argmax(dim=0)


def test_the_networks_of_these_tests_tell_memories_apart(harness: Harness) -> None:
    video, stranger = harness.video(0), harness.video(1)
    images = [video.next_image() for _ in range(4)]
    maps = [labels(video.expected_logits(image)) for image in images]
    shallow = harness.video()
    shallow.expected_logits(images[2])
    stranger.expected_logits(stranger.next_image())
    others = [
        labels(harness.video().expected_logits(images[3])),
        labels(shallow.expected_logits(images[3])),
        labels(stranger.expected_logits(images[3])),
        labels(Video(harness.other, harness.pool).expected_logits(images[3])),
    ]
    assert len(maps[3].unique()) >= 4
    for other in others:
        assert (other != maps[3]).any()


async def test_one_session_after_the_other_gets_what_its_stream_gives(harness: Harness) -> None:
    for seed in range(2):
        video = harness.video(seed)
        for _ in range(MEMORY_LENGTH + 3):
            image = video.next_image()
            result = await video.segment(harness.engine, image, "net")
            assert_is_label_map_of(label_map_of(result), video.expected_logits(image))
            assert result.batch_size == 1


async def test_sessions_of_any_age_in_one_batch_get_what_their_streams_give(
    harness: Harness,
) -> None:
    videos: list[Video] = []
    for age in range(MEMORY_LENGTH + 3):
        videos.append(harness.video(seed=age))
        images = [video.next_image() for video in videos]
        results = await harness.together(
            [
                video.segment(harness.engine, image, "net")
                for video, image in zip(videos, images, strict=True)
            ]
        )
        for video, image, result in zip(videos, images, results, strict=True):
            assert result.batch_size == len(videos)
            assert_is_label_map_of(label_map_of(result), video.expected_logits(image))


async def test_sizes_that_are_no_multiple_of_eight_keep_their_own_size(harness: Harness) -> None:
    video = harness.video(pool=harness.new_pool(29, 43))
    for _ in range(3):
        image = video.next_image(29, 43)
        result = await video.segment(harness.engine, image, "net")
        assert label_map_of(result).shape == (29, 43)
        assert_is_label_map_of(label_map_of(result), video.expected_logits(image))


async def test_memory_in_half_precision_is_read_and_written(harness: Harness) -> None:
    video = harness.video(pool=harness.new_pool(dtype=torch.float16))
    for _ in range(3):
        image = video.next_image()
        result = await video.segment(harness.engine, image, "net")
        expected = labels(video.expected_logits(image)).numpy()
        assert (label_map_of(result) == expected).mean() > 0.95


async def test_channel_for_void_is_never_a_label(harness: Harness) -> None:
    bias = harness.network.state_dict()["decoder.output_conv.bias"]
    bias[CAMVID.num_classes] = 1e6
    video = harness.video()
    result = await video.segment(harness.engine, video.next_image(), "net")
    assert label_map_of(result).max() < CAMVID.num_classes


async def test_batch_is_no_larger_than_allowed_and_oldest_come_first(
    make_harness: MakeHarness,
) -> None:
    harness = await make_harness(max_batch_size=2)
    finished: list[int] = []

    async def segment(number: int) -> StepResult:
        video = harness.video(number)
        result = await video.segment(harness.engine, video.next_image(), "net")
        finished.append(number)
        return result

    results = await harness.together([segment(number) for number in range(5)])
    assert [result.batch_size for result in results] == [2, 2, 2, 2, 1]
    assert finished == sorted(finished)


async def test_frames_of_different_size_never_share_a_forward(harness: Harness) -> None:
    same_pages, other_pages = (30, 38), (16, 24)
    sizes = [(HEIGHT, WIDTH), same_pages, other_pages]
    pools = [harness.pool, harness.pool, harness.new_pool(*other_pages)]
    videos = [harness.video(seed, pool) for seed, pool in enumerate(pools)]
    images = [video.next_image(*size) for video, size in zip(videos, sizes, strict=True)]
    results = await harness.together(
        [v.segment(harness.engine, image, "net") for v, image in zip(videos, images, strict=True)]
    )
    assert [result.batch_size for result in results] == [1, 1, 1]
    for video, image, result in zip(videos, images, results, strict=True):
        assert_is_label_map_of(label_map_of(result), video.expected_logits(image))


async def test_models_never_share_a_forward(harness: Harness) -> None:
    videos = [Video(harness.network, harness.pool), Video(harness.other, harness.pool)]
    image = videos[0].next_image()
    results = await harness.together(
        [
            video.segment(harness.engine, image, model)
            for video, model in zip(videos, ("net", "other"), strict=True)
        ]
    )
    assert [result.batch_size for result in results] == [1, 1]
    for video, result in zip(videos, results, strict=True):
        assert_is_label_map_of(label_map_of(result), video.expected_logits(image))


async def test_pools_never_share_a_forward(harness: Harness) -> None:
    videos = [harness.video(0), harness.video(1, harness.new_pool())]
    for _ in range(2):
        images = [video.next_image() for video in videos]
        results = await harness.together(
            [v.segment(harness.engine, i, "net") for v, i in zip(videos, images, strict=True)]
        )
        assert [result.batch_size for result in results] == [1, 1]
        for video, image, result in zip(videos, images, results, strict=True):
            assert_is_label_map_of(label_map_of(result), video.expected_logits(image))


async def test_those_that_do_not_fit_the_oldest_wait_for_their_own_turn(harness: Harness) -> None:
    small = harness.new_pool(16, 24)
    large_videos = [harness.video(0), harness.video(1)]
    small_videos = [harness.video(2, small), harness.video(3, small)]
    steps = []
    for one, other in zip(large_videos, small_videos, strict=True):
        steps.append(one.segment(harness.engine, one.next_image(), "net"))
        steps.append(other.segment(harness.engine, other.next_image(16, 24), "net"))
    results = await harness.together(steps)
    assert [result.batch_size for result in results] == [2, 2, 2, 2]
    sizes = [(HEIGHT, WIDTH)] * 2 + [(16, 24)] * 2
    assert [shape[2:] for shape in harness.network.batches] == sizes


async def test_failing_frame_fails_alone(harness: Harness, logs: list[EventDict]) -> None:
    videos = [harness.video(seed) for seed in range(3)]
    for video in videos:
        image = video.next_image()
        await video.segment(harness.engine, image, "net")
        video.expected_logits(image)
    images = [videos[0].next_image(), WHITE, videos[2].next_image()]
    async with harness.held_up():
        tasks = [
            asyncio.create_task(video.segment(harness.engine, image, "net"))
            for video, image in zip(videos, images, strict=True)
        ]
        await has_begun()
    first, poison, last = await asyncio.gather(*tasks, return_exceptions=True)
    assert [(event["event"], event["batch_size"]) for event in logs] == [
        ("forward failed", 3),
        ("forward failed", 1),
    ]
    assert isinstance(poison, EngineError)
    assert "RuntimeError: poison frame" in poison.message
    for video, image, result in ((videos[0], images[0], first), (videos[2], images[2], last)):
        assert isinstance(result, StepResult)
        assert result.batch_size == 1
        assert_is_label_map_of(label_map_of(result), video.expected_logits(image))


async def test_session_goes_on_after_a_failed_frame(harness: Harness) -> None:
    video = harness.video()
    for frame in range(4):
        if frame == 2:
            with pytest.raises(EngineError, match="poison"):
                await video.segment(harness.engine, WHITE, "net")
        image = video.next_image()
        result = await video.segment(harness.engine, image, "net")
        assert_is_label_map_of(label_map_of(result), video.expected_logits(image))


async def test_step_of_an_unknown_model_is_an_engine_error(harness: Harness) -> None:
    video = harness.video()
    with pytest.raises(EngineError, match="unheard-of"):
        await video.segment(harness.engine, video.next_image(), "unheard-of")
    await video.segment(harness.engine, video.next_image(), "net")


async def test_cancelled_steps_are_not_run(harness: Harness) -> None:
    videos = [harness.video(seed) for seed in range(3)]
    images = [video.next_image() for video in videos]
    before = harness.pool.pages.keys.clone()
    async with harness.held_up():
        tasks = [
            asyncio.create_task(video.segment(harness.engine, image, "net"))
            for video, image in zip(videos, images, strict=True)
        ]
        await has_begun()
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
    result = await tasks[2]
    assert [task.cancelled() for task in tasks] == [True, True, False]
    assert result.batch_size == 1
    assert [shape[0] for shape in harness.network.batches] == [1]
    untouched = [slot for slot in range(harness.pool.num_pages) if slot not in videos[2].bank.slots]
    assert torch.equal(harness.pool.pages.keys[untouched].isnan(), before[untouched].isnan())
    assert harness.pool.num_used == 1


async def test_engine_goes_on_when_all_that_waited_are_cancelled(harness: Harness) -> None:
    videos = [harness.video(seed) for seed in range(4)]
    async with harness.held_up():
        tasks = [
            asyncio.create_task(video.segment(harness.engine, video.next_image(), "net"))
            for video in videos
        ]
        await has_begun()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    image = videos[0].next_image()
    result = await videos[0].segment(harness.engine, image, "net")
    assert_is_label_map_of(label_map_of(result), videos[0].expected_logits(image))
    assert len(harness.network.batches) == 2, "the frame itself and its expectation"


async def test_step_cancelled_in_mid_forward_does_not_disturb_its_batch(harness: Harness) -> None:
    videos = [harness.video(seed) for seed in range(2)]
    images = [video.next_image() for video in videos]
    harness.network.shut()
    async with harness.held_up():
        tasks = [
            asyncio.create_task(video.segment(harness.engine, image, "net"))
            for video, image in zip(videos, images, strict=True)
        ]
        await has_begun()
    await asyncio.to_thread(harness.network.has_entered.wait, TIMEOUT_SECONDS)
    tasks[0].cancel()
    await has_begun()
    harness.network.gate.set()
    result = await tasks[1]
    assert tasks[0].cancelled()
    assert result.batch_size == 2
    assert_is_label_map_of(label_map_of(result), videos[1].expected_logits(images[1]))


async def test_stages_of_a_batch_are_timed(harness: Harness) -> None:
    videos = [harness.video(seed) for seed in range(2)]
    before = time.perf_counter()
    results = await harness.together(
        [video.segment(harness.engine, video.next_image(), "net") for video in videos]
    )
    passed = time.perf_counter() - before
    for result in results:
        assert set(result.stage_seconds) == STAGES
        assert min(result.stage_seconds.values()) >= 0
        assert sum(result.stage_seconds.values()) <= passed
    first, second = (dict(result.stage_seconds) for result in results)
    assert first.pop("queue") >= second.pop("queue")
    assert first == second


async def test_queue_time_is_the_wait_for_the_forward_before(harness: Harness) -> None:
    video = harness.video()
    async with harness.held_up():
        task = asyncio.create_task(video.segment(harness.engine, video.next_image(), "net"))
        await has_begun()
        queued = time.perf_counter()
        await asyncio.to_thread(lambda: None)
        held = time.perf_counter() - queued
    assert (await task).stage_seconds["queue"] >= held


async def test_stop_finishes_what_was_taken_and_refuses_more(harness: Harness) -> None:
    videos = [harness.video(seed) for seed in range(3)]
    async with harness.held_up():
        tasks = [
            asyncio.create_task(video.segment(harness.engine, video.next_image(), "net"))
            for video in videos[:2]
        ]
        await has_begun()
        stopping = asyncio.create_task(harness.engine.stop())
        await has_begun()
        assert not harness.engine.is_ready
        with pytest.raises(UnavailableError):
            await videos[2].segment(harness.engine, videos[2].next_image(), "net")
        assert not stopping.done()
    assert [result.batch_size for result in await asyncio.gather(*tasks)] == [2, 2]
    await stopping
    with pytest.raises(UnavailableError):
        await videos[2].segment(harness.engine, videos[2].next_image(), "net")
    assert harness.pool.num_used == 2


async def test_stopped_engine_leaves_no_thread_and_may_be_stopped_again(harness: Harness) -> None:
    assert harness.engine.is_ready
    assert "engine" in [thread.name for thread in threading.enumerate()]
    await harness.engine.stop()
    await harness.engine.stop()
    assert "engine" not in [thread.name for thread in threading.enumerate()]


async def test_engine_that_has_not_started_takes_no_steps_and_may_be_stopped() -> None:
    network = make_network()
    engine = InProcessEngine({"net": network}, runtime="torch")
    pool = PagePool(engine.page_geometry("net", HEIGHT, WIDTH), 3, DeviceStorage())
    video = Video(network, pool)
    assert not engine.is_ready
    with pytest.raises(UnavailableError):
        await video.segment(engine, video.next_image(), "net")
    assert pool.num_used == 0
    await engine.stop()


async def test_every_model_is_run_with_and_without_memory_before_the_first_frame() -> None:
    networks = {"net": make_network(0), "other": make_network(1)}
    engine = InProcessEngine(networks, runtime="torch")
    engine.start()
    assert [len(network.batches) for network in networks.values()] == [2, 2]
    await engine.stop()


def test_models_are_told_with_their_memory(harness: Harness) -> None:
    assert list(harness.engine.models) == ["net", "other", "blocker"]
    info = harness.engine.models["other"]
    assert info.name == "other"
    assert info.label_set is CAMVID
    assert (info.memory_length, info.window_size) == (MEMORY_LENGTH, WINDOW_SIZE)


@pytest.mark.parametrize(("height", "width"), [(32, 40), (25, 33)])
def test_page_geometry_is_the_networks_at_an_eighth(
    harness: Harness, height: int, width: int
) -> None:
    geometry = harness.engine.page_geometry("net", height, width)
    assert (geometry.height, geometry.width) == (4, 5)
    assert geometry == harness.network.page_geometry(height, width)
