"""The client for programs without an event loop."""

from collections.abc import Iterable, Iterator
from queue import Empty, SimpleQueue
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


class Client:
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

    def stream(self, **options: Unpack[StreamKeywords]) -> "Session":
        """A session to open with ``with``; `StreamOptions` tells the arguments.

        Raises InvalidInputError for a bad option; opening raises UnavailableError if no service
        answers, and what the service refuses the session with, such as NotFoundError.
        """
        return Session(self, self._stub, StreamOptions(**options))

    def close(self) -> None:
        """Cut the connection, and with it every session still open."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Session:
    """One video on its way through the service. Not for use by several threads at once."""

    ready: SessionInfo

    def __init__(
        self, client: Client, stub: SegmentationServiceStub, options: StreamOptions
    ) -> None:
        self._client = client
        self._stub = stub
        self._protocol = SessionProtocol(client.address, options, client.metadata)
        self._events: SimpleQueue[Event] = SimpleQueue()
        self._num_outstanding = 0

    @property
    def resumptions(self) -> tuple[Resumption, ...]:
        """How often the session went on elsewhere after its service was gone, and how."""
        return tuple(self._protocol.resumptions)

    @property
    def end(self) -> SessionEnd | None:
        """The service's last word, once the session was closed in order."""
        return self._protocol.end

    def __enter__(self) -> Self:
        self._call = SegmentCall(self._stub, self._protocol, self._events.put)
        try:
            timeout_seconds = self._client.connect_timeout_seconds
            self.ready = cast(SessionInfo, self._next_event(timeout_seconds))
        except BaseException:
            self._call.close(in_order=False)
            raise
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._call.close(in_order=error_type is None and not self._num_outstanding)

    def segment(
        self, frames: Iterable[Frame | Image], *, max_in_flight: int = 4
    ) -> Iterator[FrameResult]:
        """Stream ``frames`` and yield their results in order, as they come.

        At most ``max_in_flight`` frames have been taken whose results have not. The next frame is
        taken only while the caller asks for a result, in the caller's thread: with a live source
        choose 1, or the asynchronous client. The results of frames in flight when the caller
        stops early are dropped. Raises what ended the session (UnavailableError, EngineError,
        ...) and InvalidInputError for what is no frame; the error of one frame comes as a result.
        """
        check_max_in_flight(max_in_flight)
        while self._num_outstanding:
            self._next_result()
        for frame in frames:
            self._call.send(self._protocol.encode(frame))
            self._num_outstanding += 1
            while self._num_outstanding >= max_in_flight or not self._events.empty():
                yield self._next_result()
        while self._num_outstanding:
            yield self._next_result()

    def _next_event(self, timeout_seconds: float | None = None) -> SessionInfo | FrameResult:
        try:
            event = self._events.get(timeout=timeout_seconds)
        except Empty:
            raise no_service(self._client.address) from None
        if isinstance(event, Exception):
            self._events.put(event)
            raise event
        return event

    def _next_result(self) -> FrameResult:
        result = cast(FrameResult, self._next_event())
        self._num_outstanding -= 1
        return result
