"""The WebSocket wire: the sessions of gRPC's StreamSegment, for browsers."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from http import HTTPStatus
from typing import Final

import structlog
from fastapi import FastAPI, Response, WebSocket, WebSocketDisconnect
from starlette.types import Receive, Scope, Send

from segstream.api.grpc_messages import (
    config_from_pb,
    ended_to_pb,
    error_to_pb,
    frame_from_pb,
    ready_to_pb,
    result_to_pb,
)
from segstream.api.http_doors import account_of
from segstream.api.problems import problem, problem_of
from segstream.api.websocket_messages import (
    FrameHeadError,
    message_from_response,
    request_from_message,
)
from segstream.errors import EngineError, ExhaustedError, InvalidInputError, SegstreamError
from segstream.streaming import Frame, Segmenter, SessionEndReason, Stream
from segstream.v1 import segmentation_pb2 as pb
from segstream.wire import status_of

_log = structlog.get_logger(__name__)

PROTOCOL: Final = "segstream.v1"
"""What the service speaks, to be named by browsers that name a key as well."""

_MAX_HANDSHAKE_SECONDS = 10.0
_IN_ORDER = 1000
# Private codes: a session's error closes the socket with this plus its gRPC status.
_FIRST_ERROR = 4000
# What a control frame has left for the reason.
_MAX_REASON_BYTES = 123


def add_stream(app: FastAPI, segmenter: Segmenter) -> None:
    """Serve sessions at ``/v1/stream``."""
    # Twice: a stream that is one too many is told so, and why, by the segmenter.
    max_sockets = 2 * segmenter.limits.max_sessions
    num_open = 0

    @app.websocket("/v1/stream")
    async def stream(socket: WebSocket) -> None:
        """One session; see docs/websocket.md."""
        nonlocal num_open
        if num_open >= max_sockets:
            error = ExhaustedError(
                f"{num_open} WebSockets are open, which is the limit; try again later",
                limit=max_sockets,
            )
            await socket.send_denial_response(problem_of(error))
            return
        num_open += 1
        try:
            await socket.accept(PROTOCOL if PROTOCOL in socket.scope["subprotocols"] else None)
            await _Conversation(socket, segmenter).run()
        finally:
            num_open -= 1


def refuse_other_upgrades(app: FastAPI) -> None:
    """Tell clients that come to the wrong path, or to ``/v1/stream`` without upgrading."""

    @app.get("/v1/stream", include_in_schema=False)
    async def no_upgrade() -> Response:
        detail = "/v1/stream is a WebSocket: send the headers of its opening handshake"
        response = problem(HTTPStatus.UPGRADE_REQUIRED, detail)
        response.headers.update({"Connection": "Upgrade", "Upgrade": "websocket"})
        return response

    not_found = app.router.default

    async def no_stream(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await not_found(scope, receive, send)
            return
        detail = f"there is no WebSocket at {scope['path']!r}; it is at /v1/stream"
        socket = WebSocket(scope, receive, send)
        await socket.send_denial_response(problem(HTTPStatus.NOT_FOUND, detail))

    app.router.default = no_stream


class _Conversation:
    """One session over one socket."""

    def __init__(self, socket: WebSocket, segmenter: Segmenter) -> None:
        self._socket = socket
        self._segmenter = segmenter
        self._handshake_seconds = min(segmenter.limits.idle_seconds, _MAX_HANDSHAKE_SECONDS)
        self._stream: Stream | None = None

    async def run(self) -> None:
        """The whole of it; whatever goes wrong is told to the client, if it is still there."""
        try:
            try:
                await self._stream_segment()
            except SegstreamError as error:
                await self._fail(error)
            except WebSocketDisconnect:
                raise
            except Exception:
                _log.exception("unexpected error")
                await self._fail(EngineError("internal error; see the service's log"))
        except WebSocketDisconnect:
            return  # the session is parked, or was none
        except asyncio.CancelledError:
            if self._stream is None or self._stream.end_reason is not SessionEndReason.IDLE:
                raise
            # The client has stopped reading: it cannot be told either.
            task = asyncio.current_task()
            assert task is not None
            task.uncancel()

    async def _stream_segment(self) -> None:
        config = config_from_pb(await self._first())
        async with self._segmenter.open(config, account_of(self._socket)) as session:
            stream = self._stream = session.stream
            with _departure_noted(stream):
                await self._send(ready_to_pb(session))
                pipeline = self._segmenter.pipeline(session)
                async with aclosing(pipeline.results(self._frames())) as results:
                    async for result in results:
                        await self._send(result_to_pb(result))
                await self._segmenter.leave(session, stream)
                await self._send(ended_to_pb(session, stream))
                await self._socket.close(_IN_ORDER, stream.end_reason.value)

    async def _first(self) -> pb.StreamSegmentRequest:
        try:
            async with asyncio.timeout(self._handshake_seconds):
                return request_from_message(await self._receive())
        except TimeoutError as error:
            raise InvalidInputError(
                f"config was not there within {self._handshake_seconds:g} seconds; "
                "send it as the first message",
                field="config",
                limit=self._handshake_seconds,
            ) from error

    async def _frames(self) -> AsyncIterator[Frame]:
        while True:
            try:
                request = request_from_message(await self._receive())
            except FrameHeadError as error:
                yield Frame(error.frame_index, None, b"", fault=error)
                continue
            if request.HasField("end_of_frames"):
                return
            yield frame_from_pb(request)

    async def _receive(self) -> str | bytes:
        """The next message. Raises WebSocketDisconnect when the client is gone."""
        message = await self._socket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message["code"], message.get("reason"))
        text: str | None = message.get("text")
        data: bytes | None = message.get("bytes")
        return text if text is not None else data or b""

    async def _send(self, response: pb.StreamSegmentResponse) -> None:
        message = message_from_response(response)
        if isinstance(message, str):
            await self._socket.send_text(message)
        else:
            await self._socket.send_bytes(message)

    async def _fail(self, error: SegstreamError) -> None:
        await self._send(error_to_pb(error))
        reason = error.message.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
        await self._socket.close(_FIRST_ERROR + status_of(error).value[0], reason)


@contextmanager
def _departure_noted(stream: Stream) -> Iterator[None]:
    """A client that goes without a word may come back: its session is parked."""
    try:
        yield
    except WebSocketDisconnect:
        stream.end(SessionEndReason.CLIENT_GONE)
        raise
