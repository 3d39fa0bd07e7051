"""Clips on their way from the wire to the storage; no more than a buffer of them is ever here."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import IO, Final

from fastapi import Request
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from segstream.api.uploads import UploadSlots, too_slow_after
from segstream.errors import InvalidInputError, TooLargeError

_PART: Final = "clip"
_BUFFER_BYTES = 1024 * 1024
# Less than this in so long, or all for so long, and the upload is given up: clients that trickle
# would keep others out.
_WINDOW_SECONDS = 30.0
_MIN_WINDOW_BYTES = 128 * 1024
_TOO_SLOW = (
    f"body comes too slowly: less than {_MIN_WINDOW_BYTES} bytes in {_WINDOW_SECONDS:g} seconds"
)
_UPLOAD_SECONDS = 3600.0
# Boundaries and headers of a multipart body, beside the clip itself.
_MAX_WRAPPING_BYTES = 64 * 1024
_MAX_HEADER_BYTES = 8 * 1024


@dataclass(frozen=True, slots=True)
class Received:
    """What came: ``digest`` is BLAKE2b-128 of its bytes, ``name`` the file's, if it has one."""

    num_bytes: int
    digest: str
    name: str


class ClipReceiver:
    """Receives bodies of at most ``max_bytes`` each, ``max_uploads`` at once.

    A body is the clip itself, or multipart/form-data with one part, a file named ``clip``.
    """

    def __init__(self, *, max_bytes: int, max_uploads: int) -> None:
        self._max_bytes = max_bytes
        self._slots = UploadSlots(max_uploads)

    async def receive(self, request: Request, target: IO[bytes] | None) -> Received:
        """Write the clip to ``target`` as it comes; None: only see what it is.

        Raises InvalidInputError for a body without a clip, TooLargeError as soon as there is too
        much of it, ExhaustedError when too many are received, 408 when the client falls silent.
        """
        stated = int(request.headers.get("content-length", 0))
        if stated > self._max_bytes + _MAX_WRAPPING_BYTES:
            raise self._too_large(f"body is stated to have {stated} bytes")
        body = _body(request)
        async with self._slots.take(), too_slow_after(_UPLOAD_SECONDS):
            return await self._receive(body, target)

    async def _receive(self, body: "_Body", target: IO[bytes] | None) -> Received:
        digest = hashlib.blake2b(digest_size=16)
        num_bytes = 0

        def store(data: bytes) -> None:
            digest.update(data)
            if target is not None:
                target.write(data)

        buffer = bytearray()
        async for data in body.clip():
            num_bytes += len(data)
            if num_bytes > self._max_bytes:
                raise self._too_large("body has more")
            buffer += data
            if len(buffer) >= _BUFFER_BYTES:
                await asyncio.to_thread(store, bytes(buffer))
                buffer.clear()
        await asyncio.to_thread(store, bytes(buffer))
        if not num_bytes:
            raise InvalidInputError("body holds no clip: it is empty", field="body")
        return Received(num_bytes, digest.hexdigest(), body.name)

    def _too_large(self, what: str) -> TooLargeError:
        return TooLargeError(
            f"{what}; a clip may have at most {self._max_bytes} bytes (max_clip_bytes)",
            field="body",
            limit=self._max_bytes,
        )


class _Body:
    """A body that is the clip itself."""

    name = ""

    def __init__(self, request: Request) -> None:
        self._request = request

    async def clip(self) -> AsyncIterator[bytes]:
        """The clip's bytes, piece by piece."""
        stream = self._request.stream()
        seconds_left, num_bytes = _WINDOW_SECONDS, 0
        while True:
            began = time.monotonic()
            async with too_slow_after(seconds_left, _TOO_SLOW):
                data = await anext(stream, None)
            if data is None:
                return
            seconds_left -= time.monotonic() - began  # only what the client takes counts
            num_bytes += len(data)
            if num_bytes >= _MIN_WINDOW_BYTES:
                seconds_left, num_bytes = _WINDOW_SECONDS, 0
            yield data


class _MultipartBody(_Body):
    """A body with the clip as its only part."""

    def __init__(self, request: Request, boundary: bytes) -> None:
        super().__init__(request)
        self._pieces: list[bytes] = []
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._num_parts = 0
        self._num_wrapping_bytes = 0
        self._is_ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_part_data": self._on_part_data,
                "on_header_begin": self._on_header_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_end": self._on_end,
            },
        )

    async def clip(self) -> AsyncIterator[bytes]:
        async for data in super().clip():
            try:
                self._parser.write(data)
            except MultipartParseError as error:
                raise InvalidInputError(
                    f"body is not multipart/form-data: {error}", field="body"
                ) from error
            pieces, self._pieces = self._pieces, []
            self._count_wrapping(len(data) - sum(map(len, pieces)))
            for piece in pieces:
                yield piece
        if not self._is_ended:
            raise InvalidInputError("body breaks off before its last boundary", field="body")

    def _count_wrapping(self, num_bytes: int) -> None:
        self._num_wrapping_bytes += num_bytes
        if self._num_wrapping_bytes > _MAX_WRAPPING_BYTES:
            raise TooLargeError(
                f"body has more than {_MAX_WRAPPING_BYTES} bytes beside the clip", field="body"
            )

    def _on_part_begin(self) -> None:
        self._num_parts += 1
        self._part_name = ""
        if self._num_parts > 1:
            raise InvalidInputError(
                f"body has more than one part; the only one is a file named {_PART!r}",
                field="body",
            )

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._pieces.append(data[start:end])

    def _on_header_begin(self) -> None:
        self._header_name.clear()
        self._header_value.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]
        self._check_header()

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]
        self._check_header()

    def _check_header(self) -> None:
        if len(self._header_name) + len(self._header_value) > _MAX_HEADER_BYTES:
            raise TooLargeError(
                f"a header of the body's part has more than {_MAX_HEADER_BYTES} bytes",
                field="body",
            )

    def _on_header_end(self) -> None:
        if bytes(self._header_name).lower() == b"content-disposition":
            _, options = parse_options_header(bytes(self._header_value))
            self._part_name = options.get(b"name", b"").decode(errors="replace")
            self.name = options.get(b"filename", b"").decode(errors="replace")

    def _on_headers_finished(self) -> None:
        if self._part_name != _PART:
            raise InvalidInputError(
                f"body has a part named {self._part_name!r}; the only one is a file named "
                f"{_PART!r}",
                field="body",
            )

    def _on_end(self) -> None:
        self._is_ended = True


def _body(request: Request) -> _Body:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    if kind != b"multipart/form-data":
        return _Body(request)
    boundary = options.get(b"boundary")
    if not boundary:
        raise InvalidInputError(
            "Content-Type is multipart/form-data without a boundary", field="Content-Type"
        )
    return _MultipartBody(request, boundary)
