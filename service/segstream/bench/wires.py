"""Sessions over each wire of the service, as thin as can be: bytes of frames out, timings back.

The frames are encoded beforehand and label maps are not unpacked, so that a load costs the machine
little besides what the service does.
"""

import asyncio
import json
import struct
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
)
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from http.client import HTTPConnection, HTTPException
from typing import Any, Protocol
from urllib.parse import urlencode

import grpc
import grpc.aio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import WebSocketException

from segstream.errors import InvalidInputError, SegstreamError, UnavailableError
from segstream.media.images import ImageEncoding
from segstream.v1 import segmentation_pb2 as pb
from segstream.v1.segmentation_pb2_grpc import SegmentationServiceStub
from segstream.wire import IMAGE_ENCODINGS, error_type_of

SESSION_PREFIX = "bench-"
ENCODING_NAMES = {
    ImageEncoding.JPEG: "jpeg",
    ImageEncoding.PNG: "png",
    ImageEncoding.RAW_RGB: "raw",
}

_CHANNEL_OPTIONS = (
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.use_local_subchannel_pool", 1),  # each has a TCP connection of its own
)
_HEAD_SIZE = struct.Struct(">I")
_OPEN_SECONDS = 30.0
_ANSWER_SECONDS = 120.0
# Servers close what was unused for longer; uvicorn for 5 seconds.
_KEEP_ALIVE_SECONDS = 2.0


class Wire(StrEnum):
    """How frames get to the service."""

    GRPC = "grpc"
    WEBSOCKET = "websocket"
    REST = "rest"


@dataclass(frozen=True, slots=True)
class FrameFormat:
    """What the frames of a load are; ``model`` is to segment them, empty for the default one."""

    height: int
    width: int
    encoding: ImageEncoding = ImageEncoding.JPEG
    model: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """``stage_seconds`` by stage; ``data`` is the label map: zstd, over HTTP PNG.

    ``error``: what the frame got instead of a label map, empty for none.
    """

    stage_seconds: Mapping[str, float] = field(default_factory=dict)
    batch_size: int = 0
    data: bytes = b""
    error: str = ""


class Session(Protocol):
    """One video on its way; answers come in the order of the frames."""

    async def send(self, frame: bytes) -> None:
        """Send an encoded frame."""

    async def receive(self) -> Answer:
        """The answer to the oldest frame without one. Raises what ended the session."""


class Connection(Protocol):
    """A service over one of its wires."""

    def session(self) -> AbstractAsyncContextManager[Session]:
        """A session for the time of a block."""

    async def memory_bytes(self) -> list[int]:
        """What the memory of each session that is open here takes on the service's device."""


@asynccontextmanager
async def connecting(
    wire: Wire, address: str, frames: FrameFormat, *, api_key: str = ""
) -> AsyncIterator[Connection]:
    """The service at ``host:port``, which is that of the wire: gRPC's, or HTTP's for the others.

    Raises InvalidInputError for frames that the wire does not take.
    """
    headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
    async with AsyncExitStack() as stack:
        match wire:
            case Wire.GRPC:
                channel = grpc.aio.insecure_channel(address, _CHANNEL_OPTIONS)
                await stack.enter_async_context(channel)
                yield _GrpcConnection(channel, address, frames, headers)
            case Wire.WEBSOCKET:
                yield _WebSocketConnection(address, frames, headers)
            case Wire.REST:
                if frames.encoding is ImageEncoding.RAW_RGB:
                    raise InvalidInputError(
                        "encoding is raw, but over REST images are jpeg or png", field="encoding"
                    )
                content_type = f"image/{frames.encoding.value}"
                path = f"/v1/images?{urlencode({'model': frames.model})}"
                yield HttpConnection(address, path, content_type=content_type, headers=headers)


@dataclass(frozen=True, slots=True)
class _GrpcConnection:
    channel: grpc.aio.Channel
    address: str
    frames: FrameFormat
    headers: Mapping[str, str]

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        session_id = new_session_id()
        call = SegmentationServiceStub(self.channel).StreamSegment(
            metadata=(("x-session-id", session_id), *self.headers.items()), wait_for_ready=False
        )
        session = _GrpcSession(call, self.address, self.frames)
        try:
            await session.open(session_id)
            yield session
            await session.close()
        finally:
            call.cancel()

    async def memory_bytes(self) -> list[int]:
        stub = SegmentationServiceStub(self.channel)
        metadata = tuple(self.headers.items())
        listed = await stub.ListSessions(pb.ListSessionsRequest(), metadata=metadata)
        return [
            session.device_bytes
            for session in listed.sessions
            if session.session_id.startswith(SESSION_PREFIX) and session.is_streaming
        ]


class _GrpcSession:
    def __init__(self, call: Any, address: str, frames: FrameFormat) -> None:
        self._call = call
        self._address = address
        self._frames = frames
        self._index = 0

    async def open(self, session_id: str) -> None:
        config = pb.SessionConfig(
            session_id=session_id,
            model=self._frames.model,
            label_map_encoding=pb.LABEL_MAP_ENCODING_ZSTD,
        )
        await self._write(pb.StreamSegmentRequest(config=config))
        await self._read("ready")

    async def send(self, frame: bytes) -> None:
        message = pb.Frame(
            index=self._index,
            encoding=IMAGE_ENCODINGS[self._frames.encoding],
            width=self._frames.width,
            height=self._frames.height,
            data=frame,
        )
        self._index += 1
        await self._write(pb.StreamSegmentRequest(frame=message))

    async def receive(self) -> Answer:
        result: pb.FrameResult = (await self._read("result")).result
        timings = result.timings
        return Answer(
            _stages({name: getattr(timings, name) for name in timings.DESCRIPTOR.fields_by_name}),
            timings.batch_size,
            result.label_map.data,
            result.error.message,
        )

    async def close(self) -> None:
        """In order, so that the service does not keep the session for its client to come back."""
        await self._call.done_writing()
        await self._read("ended")

    async def _write(self, request: pb.StreamSegmentRequest) -> None:
        try:
            await self._call.write(request)
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            raise await self._end() from None

    async def _read(self, kind: str) -> Any:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                response = await self._call.read()
        except grpc.aio.AioRpcError:
            raise await self._end() from None
        except TimeoutError:
            raise _silent(self._address) from None
        if response is grpc.aio.EOF:
            raise await self._end()
        if response.WhichOneof("message") != kind:
            raise UnavailableError(f"the service ended a session: {response}")
        return response

    async def _end(self) -> SegstreamError:
        """What the call ended with."""
        status, details = await self._call.code(), await self._call.details()
        return error_type_of(status)(f"the service at {self._address}: {details or status.name}")


@dataclass(frozen=True, slots=True)
class _WebSocketConnection:
    address: str
    frames: FrameFormat
    headers: Mapping[str, str]

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        session_id = new_session_id()
        try:
            socket = await connect(
                f"ws://{self.address}/v1/stream",
                additional_headers={"x-session-id": session_id, **self.headers},
                open_timeout=_OPEN_SECONDS,
                compression=None,
                max_size=None,
                proxy=None,
            )
        except (WebSocketException, OSError, TimeoutError) as error:
            raise UnavailableError(
                f"no WebSocket of segstream at {self.address}: {error}"
            ) from error
        async with socket:
            session = _WebSocketSession(socket, self.address, self.frames)
            await session.open(session_id)
            yield session
            await session.close()

    async def memory_bytes(self) -> list[int]:
        listed = await asyncio.to_thread(_get_json, self.address, "/v1/sessions", self.headers)
        return [
            session["device_bytes"]
            for session in listed["sessions"]
            if session["session_id"].startswith(SESSION_PREFIX) and session["is_streaming"]
        ]


class _WebSocketSession:
    def __init__(self, socket: ClientConnection, address: str, frames: FrameFormat) -> None:
        self._socket = socket
        self._address = address
        self._head = {
            "encoding": pb.ImageEncoding.Name(IMAGE_ENCODINGS[frames.encoding]),
            "width": frames.width,
            "height": frames.height,
        }
        self._model = frames.model
        self._index = 0

    async def open(self, session_id: str) -> None:
        config = {
            "session_id": session_id,
            "model": self._model,
            "label_map_encoding": "LABEL_MAP_ENCODING_ZSTD",
        }
        await self._send(json.dumps({"config": config}))
        await self._read("ready")

    async def send(self, frame: bytes) -> None:
        head = json.dumps({"frame": {"index": self._index, **self._head}}).encode()
        self._index += 1
        await self._send(_HEAD_SIZE.pack(len(head)) + head + frame)

    async def receive(self) -> Answer:
        result, data = await self._read("result")
        timings = result.get("timings", {})
        error = result.get("error", {}).get("message", "")
        return Answer(_stages(timings), timings.get("batch_size", 0), data, error)

    async def close(self) -> None:
        """In order, so that the service does not keep the session for its client to come back."""
        await self._send(json.dumps({"end_of_frames": {}}))
        await self._read("ended")

    async def _send(self, message: str | bytes) -> None:
        try:
            await self._socket.send(message)
        except WebSocketException as error:
            raise UnavailableError(f"the service at {self._address}: {error}") from error

    async def _read(self, kind: str) -> tuple[dict[str, Any], bytes]:
        message: str | bytes
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                message = await self._socket.recv()
        except WebSocketException as error:
            raise UnavailableError(f"the service at {self._address}: {error}") from error
        except TimeoutError:
            raise _silent(self._address) from None
        data = b""
        if isinstance(message, bytes):
            (size,) = _HEAD_SIZE.unpack_from(message)
            end = _HEAD_SIZE.size + size
            message, data = message[_HEAD_SIZE.size : end], message[end:]
        head: dict[str, Any] = json.loads(message)
        if kind not in head:
            raise UnavailableError(f"the service at {self._address} ended a session: {head}")
        return head[kind], data


class HttpConnection:
    """Images POSTed one by one; a session's requests go over one connection, one after the other.

    Nothing is known of memory. ``body`` makes that of a request out of session id and frame.
    """

    def __init__(
        self,
        address: str,
        path: str,
        *,
        content_type: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[str, bytes], bytes] = lambda _, frame: frame,
    ) -> None:
        """``{session_id}`` in ``path`` is replaced by the id of the session."""
        self._address = address
        self._path = path
        self._headers = {"Content-Type": content_type, **(headers or {})}
        self._body = body

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session]:
        session_id = new_session_id()
        path = self._path.format(session_id=session_id)
        with ThreadPoolExecutor(1, thread_name_prefix="http") as thread:
            body = partial(self._body, session_id)
            session = _HttpSession(self._address, path, self._headers, body, thread)
            try:
                yield session
            finally:
                await session.close()

    async def memory_bytes(self) -> list[int]:
        return []


class _HttpSession:
    def __init__(
        self,
        address: str,
        path: str,
        headers: dict[str, str],
        body: Callable[[bytes], bytes],
        thread: ThreadPoolExecutor,
    ) -> None:
        self._address = address
        self._path = path
        self._headers = headers
        self._body = body
        self._thread = thread
        self._connection = HTTPConnection(address, timeout=_ANSWER_SECONDS)
        self._used_at = 0.0
        self._answers: deque[asyncio.Future[Answer]] = deque()

    async def send(self, frame: bytes) -> None:
        loop = asyncio.get_running_loop()
        self._answers.append(loop.run_in_executor(self._thread, self._post, frame))

    async def receive(self) -> Answer:
        return await self._answers.popleft()

    async def close(self) -> None:
        for answer in self._answers:
            answer.cancel()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)

    def _post(self, frame: bytes) -> Answer:
        if time.monotonic() - self._used_at > _KEEP_ALIVE_SECONDS:
            self._connection.close()  # the next request opens it again
        try:
            self._connection.request("POST", self._path, self._body(frame), self._headers)
            response = self._connection.getresponse()
            body = response.read()
            self._used_at = time.monotonic()
        except (HTTPException, OSError) as error:
            self._connection.close()
            raise UnavailableError(f"no answer of {self._address}: {error!r}") from error
        if response.status != 200:
            return Answer(error=f"HTTP {response.status}: {body[:200].decode(errors='replace')}")
        return Answer(_server_timing(response.getheader("Server-Timing", "")), data=body)


def new_session_id() -> str:
    """An id by which the sessions of a load are known."""
    return SESSION_PREFIX + uuid.uuid4().hex


def _get_json(address: str, path: str, headers: Mapping[str, str]) -> Any:
    with closing(HTTPConnection(address, timeout=_ANSWER_SECONDS)) as connection:
        connection.request("GET", path, headers=dict(headers))
        return json.loads(connection.getresponse().read())


def _stages(timings: Mapping[str, Any]) -> dict[str, float]:
    suffix = "_seconds"
    return {k.removesuffix(suffix): v for k, v in timings.items() if k.endswith(suffix)}


def _server_timing(header: str) -> dict[str, float]:
    """``decode;dur=1.5, total;dur=20`` (milliseconds) to seconds."""
    stages = (part.strip().partition(";dur=") for part in header.split(",") if part.strip())
    return {name: float(milliseconds) / 1000 for name, _, milliseconds in stages}


def _silent(address: str) -> UnavailableError:
    return UnavailableError(f"no answer of the service at {address} in {_ANSWER_SECONDS:g} seconds")
