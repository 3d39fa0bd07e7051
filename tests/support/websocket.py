"""A client of the WebSocket that may misbehave; every wait is bounded."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from segstream.media.images import Image, ImageEncoding, encode_image
from segstream.media.label_maps import LabelMap, LabelMapEncoding, decode_label_map
from tests.support.service import TIMEOUT_SECONDS, RunningService

Json = dict[str, Any]


def packed(head: Json | bytes, data: bytes = b"") -> bytes:
    """A binary message of the client."""
    encoded = head if isinstance(head, bytes) else json.dumps(head).encode()
    return struct.pack(">I", len(encoded)) + encoded + data


def unpacked(message: str | bytes) -> tuple[Json, bytes]:
    """The head and the bytes of a message of the service."""
    if isinstance(message, str):
        return json.loads(message), b""
    (size,) = struct.unpack_from(">I", message)
    return json.loads(message[4 : 4 + size]), message[4 + size :]


def frame_message(index: int, image: Image, **fields: Any) -> bytes:
    data = encode_image(image, ImageEncoding.PNG)
    return packed({"frame": {"index": index, **fields}}, data)


class WebSocketCall:
    """One session over one socket."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, *messages: str | bytes | Json) -> Self:
        for message in messages:
            text = json.dumps(message) if isinstance(message, dict) else message
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self.connection.send(text)
        return self

    async def next(self, kind: str) -> tuple[Json, bytes]:
        """The next message, which must be of this kind."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            head, data = unpacked(await self.connection.recv())
        assert list(head) == [kind], head
        return head[kind], data

    async def open(self, **config: Any) -> Json:
        await self.send({"config": config})
        return (await self.next("ready"))[0]

    async def next_label_map(self) -> tuple[Json, LabelMap]:
        result, data = await self.next("result")
        packed_map = result["label_map"]
        assert packed_map["encoding"] == "LABEL_MAP_ENCODING_PNG"
        size = packed_map["width"], packed_map["height"]
        return result, decode_label_map(data, LabelMapEncoding.PNG, *size)

    async def next_error(self) -> Json:
        """The error of the next frame."""
        result, _ = await self.next("result")
        error: Json = result["error"]
        return error | {"frame_index": result["frame_index"]}

    async def end(self) -> Json:
        await self.send({"end_of_frames": {}})
        return await self.read_end()

    async def read_end(self) -> Json:
        ended, _ = await self.next("ended")
        assert (await self.closed())[0] == 1000
        return ended

    async def read_error(self) -> Json:
        """The error of the session, with which the socket closes."""
        error, _ = await self.next("error")
        code, reason = await self.closed()
        assert code == 4000 + error["code"]
        assert error["message"].startswith(reason)
        return error

    async def closed(self) -> tuple[int, str]:
        """The code and reason with which the service closed the socket."""
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await self.connection.recv()
        frame = closed.value.rcvd
        assert frame is not None
        return frame.code, frame.reason

    def abort(self) -> None:
        """The client vanishes."""
        self.connection.transport.abort()


@asynccontextmanager
async def calling(service: RunningService, **options: Any) -> AsyncIterator[WebSocketCall]:
    url = service.service.addresses["http"].replace("http", "ws", 1) + "/v1/stream"
    async with connect(
        url, open_timeout=TIMEOUT_SECONDS, proxy=None, max_size=None, **options
    ) as connection:
        yield WebSocketCall(connection)
