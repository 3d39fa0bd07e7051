"""A service on a real loopback socket whose every answer a test decides."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import grpc
import numpy as np

from segstream import wire
from segstream.label_sets import CAMVID
from segstream.media.images import Image, ImageEncoding, decode_image
from segstream.media.label_maps import (
    IdSpace,
    LabelMap,
    encode_label_map,
    label_map_digest,
)
from segstream.v1 import segmentation_pb2 as pb
from segstream.v1.segmentation_pb2_grpc import (
    SegmentationServiceServicer,
    add_SegmentationServiceServicer_to_server,
)
from segstream.wire import inverted

MEMORY_LENGTH = 3
IMAGE_ENCODINGS = {1: ImageEncoding.JPEG, 2: ImageEncoding.PNG, 3: ImageEncoding.RAW_RGB}
LABEL_MAP_ENCODINGS = inverted(wire.LABEL_MAP_ENCODINGS)


def images(count: int, height: int = 4, width: int = 6) -> list[Image]:
    return [np.full((height, width, 3), index % 256, np.uint8) for index in range(count)]


def label_map_of(image: Image) -> LabelMap:
    """The fake network: the red channel modulo the number of classes."""
    return np.ascontiguousarray(image[:, :, 0] % CAMVID.num_classes)


@dataclass
class FakeService(SegmentationServiceServicer):
    delay_seconds: float = 0.0
    class_names: tuple[str, ...] = tuple(label.name for label in CAMVID.labels)
    next_frame_index: int = 0
    frame_errors: dict[int, pb.FrameError] = field(default_factory=dict)
    refuse_session: tuple[grpc.StatusCode, str] | None = None
    fail_at: dict[int, tuple[grpc.StatusCode, str]] = field(default_factory=dict)
    hints: tuple[tuple[str, str], ...] = ()
    epochs: tuple[int, ...] = (1,)
    end_at: int = -1
    fails_once: bool = False
    silent_from: int = 1 << 62
    skipped: tuple[int, ...] = ()
    false_digests: bool = False
    broken_label_maps: bool = False
    first_message: pb.StreamSegmentResponse | None = None

    configs: list[pb.SessionConfig] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    frames: list[pb.Frame] = field(default_factory=list)
    num_answered: int = 0
    most_in_flight: int = 0
    was_cancelled: bool = False
    ended_in_order: bool = False

    async def StreamSegment(
        self,
        request_iterator: AsyncIterator[pb.StreamSegmentRequest],
        context: grpc.aio.ServicerContext[pb.StreamSegmentRequest, pb.StreamSegmentResponse],
    ) -> AsyncIterator[pb.StreamSegmentResponse]:
        metadata = context.invocation_metadata() or ()
        self.headers.append({str(key): str(value) for key, value in metadata})
        self.configs.append((await anext(request_iterator)).config)
        if self.refuse_session:
            await context.abort(*self.refuse_session)
        inbox: asyncio.Queue[pb.Frame | None] = asyncio.Queue()
        receiver = asyncio.create_task(self._receive(request_iterator, inbox))
        try:
            yield self.first_message or self._ready()
            while (frame := await inbox.get()) is not None:
                await asyncio.sleep(self.delay_seconds)
                is_to_fail = not self.fails_once or len(self.configs) == 1
                if frame.index in self.fail_at and is_to_fail:
                    await context.abort(*self.fail_at[frame.index], self.hints)
                if frame.index == self.end_at and is_to_fail:
                    yield self._ended(pb.SESSION_END_REASON_SHUTDOWN)
                    return
                if frame.index in self.skipped:
                    continue
                if frame.index >= self.silent_from:
                    await asyncio.sleep(60)
                self.num_answered += 1
                yield pb.StreamSegmentResponse(result=self._result(frame))
            yield self._ended(pb.SESSION_END_REASON_CLIENT_CLOSED)
            self.ended_in_order = True
        except (asyncio.CancelledError, GeneratorExit):  # the latter while an answer is written
            self.was_cancelled = True
            raise
        finally:
            receiver.cancel()

    async def _receive(
        self,
        requests: AsyncIterator[pb.StreamSegmentRequest],
        inbox: asyncio.Queue[pb.Frame | None],
    ) -> None:
        async for request in requests:
            self.frames.append(request.frame)
            self.most_in_flight = max(self.most_in_flight, len(self.frames) - self.num_answered)
            inbox.put_nowait(request.frame)
        inbox.put_nowait(None)

    def _ready(self) -> pb.StreamSegmentResponse:
        return pb.StreamSegmentResponse(
            ready=pb.SessionReady(
                session_id=self.configs[-1].session_id or "chosen",
                model=self.configs[-1].model or "default",
                epoch=self.epochs[min(len(self.configs), len(self.epochs)) - 1],
                origin=pb.SESSION_ORIGIN_NEW,
                next_frame_index=self.next_frame_index,
                memory_length=MEMORY_LENGTH,
                class_names=self.class_names,
            )
        )

    def _ended(self, reason: pb.SessionEndReason) -> pb.StreamSegmentResponse:
        return pb.StreamSegmentResponse(
            ended=pb.SessionEnded(reason=reason, num_label_maps=self.num_answered)
        )

    def _result(self, frame: pb.Frame) -> pb.FrameResult:
        result = pb.FrameResult(frame_index=frame.index, timestamp_us=frame.timestamp_us)
        if frame.index in self.frame_errors:
            result.error.CopyFrom(self.frame_errors[frame.index])
            return result
        result.label_map.CopyFrom(self._label_map(frame))
        result.num_memory_frames = min(MEMORY_LENGTH, frame.index)
        result.timings.encode_seconds = 0.25
        result.timings.total_seconds = 0.5
        result.timings.batch_size = 1
        return result

    def _label_map(self, frame: pb.Frame) -> pb.LabelMap:
        image = decode_image(
            frame.data, IMAGE_ENCODINGS[frame.encoding], width=frame.width, height=frame.height
        )
        label_map = label_map_of(image)
        config = self.configs[-1]
        id_space = IdSpace.LABEL_ID if config.id_space == 2 else IdSpace.TRAIN_ID
        encoding = LABEL_MAP_ENCODINGS[config.label_map_encoding]
        data = encode_label_map(label_map, encoding, id_space, CAMVID)
        return pb.LabelMap(
            encoding=config.label_map_encoding,
            width=image.shape[1],
            height=image.shape[0],
            data=data[:-1] if self.broken_label_maps else data,
            digest=b"false" if self.false_digests else label_map_digest(label_map),
        )


@dataclass(frozen=True)
class Served:
    """A running fake: where it listens, and how to take it away."""

    address: str
    server: grpc.aio.Server
    loop: asyncio.AbstractEventLoop

    def vanish(self) -> None:
        """From another thread: cut all connections."""
        asyncio.run_coroutine_threadsafe(self.server.stop(None), self.loop).result(10)


@asynccontextmanager
async def serving(fake: FakeService) -> AsyncIterator[Served]:
    """Serve in the running event loop."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    add_SegmentationServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Served(f"127.0.0.1:{port}", server, asyncio.get_running_loop())
    finally:
        await server.stop(None)


@contextmanager
def serving_in_thread(fake: FakeService) -> Iterator[Served]:
    """Serve in a thread with an event loop of its own."""
    started = threading.Event()
    served: list[Served] = []
    stop = asyncio.Event()

    async def serve() -> None:
        async with serving(fake) as running:
            served.append(running)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(10)
        yield served[0]
    finally:
        served[0].loop.call_soon_threadsafe(stop.set)
        thread.join()
