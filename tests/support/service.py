"""The real service on loopback sockets in the test's event loop, and ways to talk to it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import grpc
import grpc.aio
import httpx
from prometheus_client.parser import text_string_to_metric_families

from segstream.api.service import Service
from segstream.client import AsyncClient, ImageEncoding
from segstream.engine import InProcessEngine, ModelInfo, Step, StepResult
from segstream.media.images import Image
from segstream.memory.page_storage import PageStorage
from segstream.models import LMANet
from segstream.pages import PageGeometry
from segstream.settings import Settings
from segstream.v1 import segmentation_pb2 as pb
from segstream.v1.segmentation_pb2_grpc import SegmentationServiceStub
from tests.support.models import digests, make_video, segment_alone
from tests.support.requests import config_request

TIMEOUT_SECONDS = 60.0
_UNBOUNDED = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))


class GatedEngine:
    """The in-process engine behind a gate: while it is shut, steps wait in front of it.

    A step that finds a fault among ``faults`` takes it and fails with it.
    """

    def __init__(self, engine: InProcessEngine) -> None:
        self._engine = engine
        self.gate = asyncio.Event()
        self.gate.set()
        self.faults: list[Exception] = []
        self.num_waiting = 0
        self.arrived = asyncio.Condition()

    @property
    def models(self) -> dict[str, ModelInfo]:
        return self._engine.models

    @property
    def is_ready(self) -> bool:
        return self._engine.is_ready

    def page_geometry(self, model: str, height: int, width: int) -> PageGeometry:
        return self._engine.page_geometry(model, height, width)

    async def step(self, step: Step) -> StepResult:
        async with self.arrived:
            self.num_waiting += 1
            self.arrived.notify_all()
        try:
            await self.gate.wait()
        finally:
            self.num_waiting -= 1
        if self.faults:
            raise self.faults.pop()
        return await self._engine.step(step)

    async def wait_for_steps(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS), self.arrived:
            await self.arrived.wait_for(lambda: self.num_waiting >= count)

    async def stop(self) -> None:
        await self._engine.stop()


@dataclass
class RunningService:
    """A service that listens, and the connections that tests made to it."""

    service: Service
    engine: GatedEngine
    models: Mapping[str, LMANet]
    _channel: grpc.aio.Channel | None = None
    _http: httpx.AsyncClient | None = None
    _stopping: asyncio.Task[None] | None = None

    @property
    def grpc_address(self) -> str:
        return self.service.addresses["grpc"]

    @property
    def channel(self) -> grpc.aio.Channel:
        if self._channel is None:
            self._channel = grpc.aio.insecure_channel(self.grpc_address, _UNBOUNDED)
        return self._channel

    @property
    def http(self) -> httpx.AsyncClient:
        if self._http is None:
            self._http = httpx.AsyncClient(
                base_url=self.service.addresses["http"], timeout=TIMEOUT_SECONDS, trust_env=False
            )
        return self._http

    def call(self) -> "RawCall":
        """A stream whose every message the test writes."""
        return RawCall(SegmentationServiceStub(self.channel).StreamSegment(timeout=60))

    def client(self) -> AsyncClient:
        return AsyncClient(self.grpc_address, connect_timeout_seconds=TIMEOUT_SECONDS)

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples with these labels, as a scrape shows them."""
        text = (await self.http.get("/metrics")).text
        return sum(
            sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    async def wait_for_metric(self, name: str, value: float, **labels: str) -> None:
        """Until the metric has this value; the service tells of it in no other way."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while await self.metric(name, **labels) != value:
                continue  # the scrape has let the service go on

    def stop(self) -> "asyncio.Task[None]":
        """Begin the shutdown, as SIGTERM does; the task ends with it."""
        if self._stopping is None:
            self._stopping = asyncio.create_task(self.service.__aexit__(None, None, None))
        return self._stopping

    async def close(self) -> None:
        self.engine.gate.set()
        await self.disconnect()
        await self.stop()

    async def disconnect(self) -> None:
        """Close what tests connected."""
        if self._http is not None:
            await self._http.aclose()
        if self._channel is not None:
            await self._channel.close()


@asynccontextmanager
async def running_service(
    models: Mapping[str, LMANet], *, storage: PageStorage | None = None, **settings: Any
) -> AsyncIterator[RunningService]:
    """Serve ``models``, the first being the default, until the block ends.

    Clips lie in a folder of their own that goes with the block, unless told otherwise.
    """
    with tempfile.TemporaryDirectory(prefix="clips-") as folder:
        settings = {"clip_storage": folder, **settings}
        async with _running_service(models, storage, settings) as running:
            yield running


@asynccontextmanager
async def _running_service(
    models: Mapping[str, LMANet], storage: PageStorage | None, settings: Mapping[str, Any]
) -> AsyncIterator[RunningService]:
    engine = InProcessEngine(
        models,
        max_batch_size=settings.get("max_batch_size", 8),
        runtime=settings.get("runtime", "auto"),
    )
    engine.start()
    gated = GatedEngine(engine)
    settings = {"port": 0, "http_port": 0, "drain_seconds": 5.0, **settings}
    service = Service(Settings(**settings), gated, storage)
    await service.__aenter__()
    running = RunningService(service, gated, models)
    try:
        yield running
    finally:
        await running.close()


class RawCall:
    """One StreamSegment call of a client that may misbehave; every wait is bounded."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def send(self, *requests: pb.StreamSegmentRequest) -> Self:
        for request in requests:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self._call.write(request)
        return self

    async def half_close(self) -> Self:
        await self._call.done_writing()
        return self

    def cancel(self) -> None:
        self._call.cancel()

    async def next(self) -> pb.StreamSegmentResponse:
        """The next response; it must be there."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            response = await self._call.read()
        assert response is not grpc.aio.EOF, "the stream ended"
        assert isinstance(response, pb.StreamSegmentResponse)
        return response

    async def next_result(self) -> pb.FrameResult:
        response = await self.next()
        assert response.WhichOneof("message") == "result", response
        return response.result

    async def next_error(self) -> pb.FrameError:
        result = await self.next_result()
        assert result.WhichOneof("outcome") == "error", result
        return result.error

    async def open(self, **config: Any) -> pb.SessionReady:
        response = await (await self.send(config_request(**config))).next()
        assert response.WhichOneof("message") == "ready", response
        return response.ready

    async def close(self) -> pb.SessionEnded:
        """Half-close and read to the end, which must be in order."""
        await self.half_close()
        return await self.read_end()

    async def read_end(self) -> pb.SessionEnded:
        response = await self.next()
        assert response.WhichOneof("message") == "ended", response
        assert await self.status() == (grpc.StatusCode.OK, "")
        return response.ended

    async def status(self) -> tuple[grpc.StatusCode, str]:
        """How the call ended."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await self._call.code(), await self._call.details() or ""

    async def trailing_metadata(self) -> list[tuple[str, str | bytes]]:
        """What the server said besides the status."""
        return list(await self._call.trailing_metadata() or ())


_PERIOD = 7


@cache
def _bystander_video() -> list[Image]:
    return make_video(_PERIOD, 40, 56, seed=5)


def _bystander_image(index: int) -> Image:
    return _bystander_video()[index % _PERIOD]


@cache
def _bystander_digests(model: LMANet) -> list[bytes]:
    return digests(segment_alone(model, map(_bystander_image, range(2 * _PERIOD))))


@dataclass
class Bystander:
    """A well-behaved session that streams on while something happens beside it."""

    service: RunningService
    _digests: list[bytes] = field(default_factory=list)
    _is_done: bool = False
    _progress: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def stream(self) -> None:
        async with (
            self.service.client() as client,
            client.stream(frame_encoding=ImageEncoding.RAW_RGB, session_id="bystander") as session,
        ):
            async for result in session.segment(self._frames(), max_in_flight=2):
                assert result.error is None
                assert result.frame_index == len(self._digests)
                self._digests.append(result.digest)
                async with self._progress:
                    self._progress.notify_all()
        assert session.end is not None
        assert session.end.num_label_maps == len(self._digests)

    async def wait_for_more(self, count: int) -> None:
        """Until that many further frames were answered."""
        wanted = len(self._digests) + count
        async with self._progress:
            await self._progress.wait_for(lambda: len(self._digests) >= wanted)

    def finish(self) -> None:
        self._is_done = True

    def check(self) -> None:
        """Each label map is the one of a session that is alone in the world."""
        expected = _bystander_digests(next(iter(self.service.models.values())))
        for index, digest in enumerate(self._digests):
            # Once the memory is full, a label map depends on the last T + 1 frames alone.
            place = index if index < _PERIOD else _PERIOD + index % _PERIOD
            assert digest == expected[place], f"frame {index}"

    async def _frames(self) -> AsyncIterator[Image]:
        index = 0
        while not self._is_done:
            yield _bystander_image(index)
            index += 1


@asynccontextmanager
async def undisturbed_bystander(
    service: RunningService, timeout_seconds: float = 2 * TIMEOUT_SECONDS
) -> AsyncIterator[None]:
    """Whatever the block does, a session beside it must get all its label maps, all of them right.

    Its frames have a size of their own, so that no other session's frame is in its batches and its
    label maps are bit for bit those of a lone session.
    """
    bystander = Bystander(service)
    async with asyncio.timeout(timeout_seconds), asyncio.TaskGroup() as group:
        group.create_task(bystander.stream())
        await bystander.wait_for_more(2)
        yield
        await bystander.wait_for_more(3)
        bystander.finish()
    bystander.check()
