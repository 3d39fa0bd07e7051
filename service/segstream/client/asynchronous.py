"""The client for programs with an event loop."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self, Unpack, cast

from segstream.client.call import Event, SegmentCall
from segstream.client.channel import ClientTls, key_metadata, no_service, open_channel
from segstream.client.messages import (
    Frame,
    FrameResult,
    Resumption,
    SessionEnd,
    SessionInfo,
    StreamKeywords,
    StreamOptions,
)
from segstream.client.protocol import SessionProtocol, check_max_in_flight
from segstream.media.images import Image
from segstream.v1.segmentation_pb2_grpc import SegmentationServiceStub

Frames = Iterable[Frame | Image] | AsyncIterable[Frame | Image]

_END = object()


class AsyncClient:
    """A connection to a segstream service at ``host:port``; any number of sessions at once.

    Several replicas: ``host:port,host:port``. A session whose replica is gone goes on with another
    one by itself, none of its frames lost, none answered twice. ``tls`` None: unencrypted.
    """

    def __init__(
        self,
        address: str,
        *,
        connect_timeout_seconds: float = 10.0,
        api_key: str = "",
        tls: ClientTls | None = None,
    ) -> None:
        self.address = address
        self.connect_timeout_seconds = connect_timeout_seconds
        self.metadata = key_metadata(api_key)
        self._channel = open_channel(address, tls)
        # One for all sessions: gRPC crashes when a stub is made over a closed channel.
        self._stub = SegmentationServiceStub(self._channel)

    def stream(self, **options: Unpack[StreamKeywords]) -> "AsyncSession":
        """A session to open with ``async with``; otherwise as `Client.stream`."""
        return AsyncSession(self, self._stub, StreamOptions(**options))

    async def close(self) -> None:
        """Cut the connection, and with it every session still open."""
        await asyncio.to_thread(self._channel.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()


class AsyncSession:
    """One video on its way through the service. Not for use by several tasks at once."""

    ready: SessionInfo

    def __init__(
        self, client: AsyncClient, stub: SegmentationServiceStub, options: StreamOptions
    ) -> None:
        self._client = client
        self._stub = stub
        self._protocol = SessionProtocol(client.address, options, client.metadata)
        self._events: asyncio.Queue[Event | asyncio.Task[None]] = asyncio.Queue()
        self._num_outstanding = 0
        self._sender: asyncio.Task[None] | None = None

    @property
    def resumptions(self) -> tuple[Resumption, ...]:
        """How often the session went on elsewhere after its service was gone, and how."""
        return tuple(self._protocol.resumptions)

    @property
    def end(self) -> SessionEnd | None:
        """The service's last word, once the session was closed in order."""
        return self._protocol.end

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._call = SegmentCall(self._stub, self._protocol, self._deliver)
        try:
            async with asyncio.timeout(self._client.connect_timeout_seconds):
                self.ready = cast(SessionInfo, await self._next_event())
        except TimeoutError:
            await self._close(in_order=False)
            raise no_service(self._client.address) from None
        except BaseException:
            await self._close(in_order=False)
            raise
        return self

    async def __aexit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop_sending()
        await self._close(in_order=error_type is None and not self._num_outstanding)

    async def segment(
        self, frames: Frames, *, max_in_flight: int = 4
    ) -> AsyncGenerator[FrameResult, None]:
        """Stream ``frames`` and yield their results in order, as they come.

        At most ``max_in_flight`` frames have been taken whose results have not. A plain iterable
        is advanced in worker threads, one frame at a time, so that it may block. The results of
        frames in flight when the caller stops early are dropped. Raises what ended the session
        (UnavailableError, EngineError, ...) and InvalidInputError for what is no frame; the error
        of one frame comes as a result.
        """
        check_max_in_flight(max_in_flight)
        await self._drop_outstanding()
        window = asyncio.Semaphore(max_in_flight)
        self._sender = sender = asyncio.create_task(self._send_all(frames, window))
        sender.add_done_callback(self._events.put_nowait)
        is_all_sent = False
        try:
            while self._num_outstanding or not is_all_sent:
                event = await self._next_event()
                if isinstance(event, FrameResult):
                    self._num_outstanding -= 1
                    window.release()
                    yield event
                elif event is sender:
                    await sender
                    is_all_sent = True
        finally:
            await self._stop_sending()

    async def _send_all(self, frames: Frames, window: asyncio.Semaphore) -> None:
        upcoming = _asynchronous(frames)
        await window.acquire()
        async for frame in upcoming:
            self._call.send(await asyncio.to_thread(self._protocol.encode, frame))
            self._num_outstanding += 1
            await window.acquire()

    async def _stop_sending(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)

    async def _drop_outstanding(self) -> None:
        await self._stop_sending()
        while self._num_outstanding:
            if isinstance(await self._next_event(), FrameResult):
                self._num_outstanding -= 1

    def _deliver(self, event: Event) -> None:
        with suppress(RuntimeError):  # the loop was closed before the session
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def _next_event(self) -> SessionInfo | FrameResult | asyncio.Task[None]:
        event = await self._events.get()
        if isinstance(event, Exception):
            self._events.put_nowait(event)
            raise event
        return event

    async def _close(self, *, in_order: bool) -> None:
        await asyncio.to_thread(self._call.close, in_order=in_order)


async def _asynchronous(frames: Frames) -> AsyncIterator[Frame | Image]:
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
        return
    iterator = iter(frames)
    while (item := await _advanced(iterator)) is not _END:
        yield cast(Frame | Image, item)


async def _advanced(iterator: Iterator[object]) -> object:
    """The next item; when cancelled, the thread is waited for: nobody else may advance then."""
    advancing = asyncio.create_task(asyncio.to_thread(lambda: next(iterator, _END)))
    try:
        return await asyncio.shield(advancing)
    except asyncio.CancelledError:
        await asyncio.wait([advancing])
        raise
