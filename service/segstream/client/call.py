"""The StreamSegment calls of one session: when one breaks, the next goes on.

They have threads of their own. Both clients run on them, the asynchronous one too: grpc.aio reports
INTERNAL in place of the service's status when a write fails as the call ends (grpc issue 36066).
"""

import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Final

from segstream.client.messages import FrameResult, SessionInfo
from segstream.client.protocol import SessionProtocol
from segstream.client.resume import RetryPolicy, may_resume
from segstream.errors import UnavailableError
from segstream.v1 import segmentation_pb2 as pb
from segstream.v1.segmentation_pb2_grpc import SegmentationServiceStub

Event = SessionInfo | FrameResult | Exception
"""SessionInfo comes first, then results, at last what ended the session."""

# How long a call that is closed in order waits for the service's last word.
_CLOSE_TIMEOUT_SECONDS: Final = 5.0
# How long a replica may take to say that it goes on with the session, before another is tried.
_READY_TIMEOUT_SECONDS: Final = 4.0

_Requests = SimpleQueue[pb.StreamSegmentRequest | None]


class SegmentCall:
    """Sends frames and gives every event, read and checked, to ``deliver`` in a reader thread."""

    def __init__(
        self,
        stub: SegmentationServiceStub,
        protocol: SessionProtocol,
        deliver: Callable[[Event], None],
    ) -> None:
        self._stub = stub
        self._protocol = protocol
        self._deliver = deliver
        self._lock = threading.Lock()
        self._requests: _Requests | None = None  # None while no call takes frames
        self._call: Any = None
        self._is_closing = threading.Event()
        self._reader = threading.Thread(target=self._read, name="segstream-client", daemon=True)
        self._reader.start()

    def send(self, frame: pb.Frame) -> None:
        """Send an encoded frame under the next index, now or with the next call; does not wait."""
        with self._lock:
            self._protocol.take(frame)
            if self._requests is not None:
                self._requests.put(self._protocol.frame_request(frame))

    def close(self, *, in_order: bool) -> None:
        """Say goodbye and wait for the service's last word, or else cancel; no events after."""
        with self._lock:
            self._is_closing.set()
            requests, call = self._requests, self._call
        if in_order and requests is not None:
            requests.put(None)
            self._reader.join(_CLOSE_TIMEOUT_SECONDS)
        if call is not None:
            call.cancel()
        self._reader.join()

    def _read(self) -> None:
        """Call after call, until one ends the session."""
        retry = RetryPolicy(self._protocol.options.resume_timeout_seconds)
        while True:
            last = self._run_call()
            if self._protocol.has_progressed():
                retry.progressed()
            if self._is_closing.is_set() or not may_resume(last, self._protocol):
                break
            pause = retry.next_pause(last)
            if pause is None or self._is_closing.wait(pause):
                break
        self._deliver(self._protocol.error_of(last))

    def _run_call(self) -> Exception:
        """One call from its configuration to its end; returns what ended it."""
        requests: _Requests = SimpleQueue()
        try:
            requests.put(self._protocol.config_request())
            for response in self._responses(requests):
                self._accept(response, requests)
            return self._protocol.end_of_stream()
        except Exception as error:
            if self._call is not None:
                self._call.cancel()  # else the end of the requests would be taken for a goodbye
            return error
        finally:
            with self._lock:
                self._requests = None
            requests.put(None)

    def _responses(self, requests: _Requests) -> Iterator[pb.StreamSegmentResponse]:
        """What a new call brings; nothing if the session is closing."""
        with self._lock:
            if self._is_closing.is_set():
                return
            self._call = call = self._begin(requests)
        impatience = threading.Timer(_READY_TIMEOUT_SECONDS, call.cancel)
        if self._protocol.is_resuming:
            impatience.start()
        try:
            for response in call:
                impatience.cancel()
                yield response
        finally:
            impatience.cancel()

    def _begin(self, requests: _Requests) -> Any:
        try:
            return self._stub.StreamSegment(
                iter(requests.get, None),
                metadata=self._protocol.metadata,
                wait_for_ready=not self._protocol.is_resuming,
            )
        except ValueError as error:  # gRPC's word for a closed channel
            self._is_closing.set()  # nothing goes on over it
            raise UnavailableError(
                f"the connection to segstream at {self._protocol.address} was closed"
            ) from error

    def _accept(self, response: pb.StreamSegmentResponse, requests: _Requests) -> None:
        event: Event | None
        if response.WhichOneof("message") != "ready":
            event = self._protocol.accept(response)
        else:
            with self._lock:
                event = self._protocol.accept_ready(response.ready)
                for request in self._protocol.resend(response.ready.next_frame_index):
                    requests.put(request)
                self._requests = requests
        if event is not None:
            self._deliver(event)
