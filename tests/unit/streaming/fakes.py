"""The borders of a session, played by the test: the wire, the engine and the codec threads."""

import asyncio
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import Executor, Future
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np

from segstream.engine import ModelInfo, Step, StepResult
from segstream.label_sets import CAMVID, CITYSCAPES, LabelSet
from segstream.media.images import ImageEncoding, ImageLimits, encode_image
from segstream.media.label_maps import LabelMap
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import DeviceStorage
from segstream.memory.session_store import SessionStore
from segstream.memory.spill_store import Claim
from segstream.memory.spill_tier import SpillTier
from segstream.pages import PageGeometry
from segstream.streaming import (
    Frame,
    FrameResult,
    Resources,
    Segmenter,
    Session,
    SessionConfig,
    StreamLimits,
)
from segstream.streaming.degradation import DegradationLadder
from segstream.telemetry.metrics import Metrics

MODEL, OTHER_MODEL = "drive", "street"
MEMORY_LENGTH = 2
WIDTH, HEIGHT = 16, 12
ENGINE_SECONDS = {"queue": 0.25, "encode": 0.5, "memory_read": 0.125, "fuse_decode": 0.0625}
LIMITS = ImageLimits(max_pixels=10_000)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def make_frame(
    index: int, mark: int | None = None, *, width: int = WIDTH, height: int = HEIGHT
) -> Frame:
    """A frame of one colour: ``mark``, by which the fake engine knows it; its index by default."""
    image = np.full((height, width, 3), index if mark is None else mark, np.uint8)
    return Frame(index, None, encode_image(image, ImageEncoding.PNG), timestamp_us=1000 + index)


def corrupt_frame(index: int) -> Frame:
    return Frame(index, None, make_frame(index).data[:-20], timestamp_us=1000 + index)


def label_map_of(mark: int, *, width: int = WIDTH, height: int = HEIGHT) -> LabelMap:
    return np.full((height, width), mark % CAMVID.num_classes, np.uint8)


@dataclass(frozen=True)
class Stepped:
    """A step that the fake engine took: the frame's mark and those found in its memory."""

    mark: int
    memory: tuple[int, ...]
    size: tuple[int, int]


class FakeEngine:
    """Writes each frame's mark into its page and labels its pixels by it.

    Each pixel's class is its red modulo the number of classes, its confidence its green.

    While ``gate`` is shut steps wait in it; ``entered`` is released once for each that came.
    """

    def __init__(self) -> None:
        self.is_ready = True
        self.models = {
            name: ModelInfo(name, label_set, MEMORY_LENGTH, 3, digest=name)
            for name, label_set in ((MODEL, CAMVID), (OTHER_MODEL, CITYSCAPES))
        }
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Semaphore(0)
        self.failures: dict[int, Exception] = {}
        self.stage_seconds = ENGINE_SECONDS
        self.steps: list[Stepped] = []
        self.num_running = 0
        self.max_running = 0

    def label_set(self, model: str) -> LabelSet:
        return self.models[model].label_set

    def page_geometry(self, model: str, height: int, width: int) -> PageGeometry:
        return PageGeometry(-(-height // 8), -(-width // 8), 1, 1)

    async def step(self, step: Step) -> StepResult:
        mark = int(step.image[0, 0, 0])
        memory = tuple(int(step.pages.keys[slot, 0, 0, 0].item()) for slot in step.read_slots)
        self.steps.append(Stepped(mark, memory, step.image.shape[:2]))
        self.num_running += 1
        self.max_running = max(self.max_running, self.num_running)
        self.entered.release()
        try:
            await self.gate.wait()
        finally:
            self.num_running -= 1
        step.pages.keys[step.write_slot] = mark
        if mark in self.failures:
            raise self.failures[mark]
        num_classes = self.label_set(step.model).num_classes
        label_map = np.ascontiguousarray(step.image[:, :, 0] % num_classes)
        confidence = step.image[:, :, 1].copy() if step.wants_confidence else None
        return StepResult(label_map, 1, dict(self.stage_seconds), confidence)

    async def stop(self) -> None:
        self.is_ready = False


class Wire:
    """What the client sends, read like the requests of a stream."""

    def __init__(self, *frames: Frame) -> None:
        self._sent: asyncio.Queue[Frame | Exception | None] = asyncio.Queue()
        self.num_read = 0
        self.send(*frames)

    def send(self, *frames: Frame) -> None:
        for frame in frames:
            self._sent.put_nowait(frame)

    def fail(self, error: Exception) -> None:
        self._sent.put_nowait(error)

    def close(self) -> None:
        self._sent.put_nowait(None)

    def __aiter__(self) -> AsyncIterator[Frame]:
        return self

    async def __anext__(self) -> Frame:
        sent = await self._sent.get()
        if sent is None:
            raise StopAsyncIteration
        if isinstance(sent, Exception):
            raise sent
        self.num_read += 1
        return sent


class FakeSpillStore:
    """Keeps snapshots in a dictionary. While ``gate`` is shut whoever asks for something waits."""

    name = "fake"

    def __init__(self) -> None:
        self.snapshots: dict[str, list[bytes]] = {}
        self.logged: dict[str, list[bytes]] = {}
        self.released: list[str] = []
        self.epoch = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def claim(self, session_id: str, owner: str) -> Claim:
        await self.gate.wait()
        self.epoch += 1
        return Claim(self.epoch)

    async def renew(self, owner: str, epochs: Mapping[str, int]) -> set[str]:
        return set()

    async def release(self, session_id: str, epoch: int) -> None:
        self.released.append(session_id)

    async def save(self, session_id: str, epoch: int, parts: Sequence[bytes]) -> None:
        await self.gate.wait()
        self.snapshots[session_id] = list(parts)

    async def load(self, session_id: str) -> list[bytes] | None:
        await self.gate.wait()
        return self.snapshots.get(session_id)

    async def append_frame(
        self, session_id: str, epoch: int, entry: bytes, max_frames: int
    ) -> None:
        self.logged[session_id] = [*self.logged.get(session_id, []), entry][-max_frames:]

    async def frames(self, session_id: str) -> list[bytes]:
        return self.logged.get(session_id, [])

    async def forget(self, session_id: str, epoch: int) -> None:
        await self.gate.wait()
        self.snapshots.pop(session_id, None)
        self.logged.pop(session_id, None)

    async def close(self) -> None:
        pass


class InlineCodecs(Executor):
    """Does all work at once, so that rounds of the event loop are all there is to wait for."""

    def submit(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_R]":
        future: Future[_R] = Future()
        _run(future, lambda: fn(*args, **kwargs))
        return future


@dataclass
class HeldCodecs(Executor):
    """Does work when told to and in the order told."""

    held: list[Callable[[], None]] = field(default_factory=list)

    def submit(self, fn: Callable[_P, _R], /, *args: _P.args, **kwargs: _P.kwargs) -> "Future[_R]":
        future: Future[_R] = Future()
        self.held.append(lambda: _run(future, lambda: fn(*args, **kwargs)))
        return future

    def work(self, which: int = 0) -> None:
        self.held.pop(which)()

    async def work_off(self) -> None:
        """All there is, and all that comes of it."""
        await settle()
        while self.held:
            self.work()
            await settle()


class BrokenCodecs(Executor):
    """An executor that takes no work, as after its shutdown."""

    def submit(self, *_: Any, **__: Any) -> "Future[Any]":
        raise RuntimeError("cannot schedule new futures after shutdown")


def _run(future: "Future[_R]", work: Callable[[], _R]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = work()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)


class Service:
    """A segmenter among fakes."""

    def __init__(
        self,
        *,
        codecs: Executor | None = None,
        max_sessions: int = 4,
        max_bytes: int = 1 << 20,
        max_pending_frames: int = 2,
        idle_seconds: float = 60.0,
        spill_after_seconds: float = 60.0,
        session_ttl_seconds: float = 600.0,
        spill_store: FakeSpillStore | None = None,
        redis: FakeSpillStore | None = None,
    ) -> None:
        self.engine = FakeEngine()
        self.store = SessionStore(
            max_bytes=max_bytes, max_banks_per_pool=max_sessions, storage=DeviceStorage()
        )
        self.spill_store = spill_store or FakeSpillStore()
        self.metrics = Metrics()
        self.spill_tier = SpillTier(
            self.spill_store, redis, owner="me", on_move=self.metrics.memory_moved
        )
        self.segmenter = Segmenter(
            Resources(
                self.engine,
                self.store,
                self.spill_tier,
                codecs or InlineCodecs(),
                self.metrics,
                LIMITS,
                DegradationLadder(MEMORY_LENGTH),
            ),
            StreamLimits(
                max_sessions,
                max_pending_frames,
                idle_seconds,
                spill_after_seconds,
                session_ttl_seconds,
            ),
            MODEL,
        )

    @property
    def pool(self) -> PagePool:
        (pool,) = self.store.pools
        return pool

    def open(self, config: SessionConfig | None = None) -> AbstractAsyncContextManager[Session]:
        return self.segmenter.open(config or SessionConfig())

    async def serve(
        self, wire: AsyncIterator[Frame], config: SessionConfig | None = None
    ) -> AsyncGenerator[FrameResult, None]:
        """A session from its first frame to its end, as the wires serve it."""
        async with self.open(config) as session:
            pipeline = self.segmenter.pipeline(session)
            async with aclosing(pipeline.results(wire)) as results:
                async for result in results:
                    yield result

    async def answers(
        self, wire: AsyncIterator[Frame], config: SessionConfig | None = None
    ) -> list[FrameResult]:
        return [result async for result in self.serve(wire, config)]

    def sample(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"segstream_{name}", labels) or 0.0

    def num_ended(self, reason: str) -> float:
        return self.sample("streams_ended_total", reason=reason)

    def holds(self, session_id: str) -> bool:
        return session_id in [status.session_id for status in self.segmenter.sessions.statuses()]

    async def forget_parked(self) -> None:
        for status in self.segmenter.sessions.statuses():
            await self.segmenter.sessions.close(status.session_id)

    def num_frames(self, outcome: str, model: str = MODEL) -> float:
        return self.sample("frames_total", model=model, outcome=outcome)


async def settle() -> None:
    """Rounds of the event loop, more than any chain of callbacks here is long."""
    for _ in range(100):
        await asyncio.sleep(0)


def marks(steps: list[Stepped]) -> list[int]:
    return [step.mark for step in steps]


def memories(steps: list[Stepped]) -> Iterator[tuple[int, tuple[int, ...]]]:
    return ((step.mark, step.memory) for step in steps)
