"""Bodies of HTTP requests, read within bounds of size, number and time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus

from fastapi import HTTPException, Request

from segstream.errors import ExhaustedError, TooLargeError

_READ_SECONDS = 30.0


class UploadSlots:
    """Bounds how many bodies are read at once."""

    def __init__(self, max_uploads: int) -> None:
        self._max_uploads = max_uploads
        self._free = asyncio.Semaphore(max_uploads)

    @asynccontextmanager
    async def take(self) -> AsyncIterator[None]:
        """Hold a slot for the block. Raises ExhaustedError at once when there is none."""
        if self._free.locked():
            raise ExhaustedError(
                f"{self._max_uploads} uploads are being read, which is the limit; try again later",
                field="body",
                limit=self._max_uploads,
            )
        async with self._free:
            yield


class UploadReader:
    """Reads bodies of at most ``max_bytes`` each, ``max_uploads`` at once."""

    def __init__(self, *, max_bytes: int, max_uploads: int) -> None:
        self._max_bytes = max_bytes
        self._slots = UploadSlots(max_uploads)

    async def read(self, request: Request) -> bytes:
        """The whole body of ``request``.

        Raises ExhaustedError at once when too many are being read, TooLargeError as soon as the
        body is known to be larger than allowed, 408 when it is not there in time.
        """
        async with self._slots.take(), too_slow_after(_READ_SECONDS):
            return await self._read(request)

    async def _read(self, request: Request) -> bytes:
        stated = int(request.headers.get("content-length", 0))
        body = bytearray()
        if stated <= self._max_bytes:
            async for chunk in request.stream():
                body += chunk
                if len(body) > self._max_bytes:
                    break
        if max(stated, len(body)) > self._max_bytes:
            raise TooLargeError(
                f"body has more than {self._max_bytes} bytes; send a smaller one",
                field="body",
                limit=self._max_bytes,
            )
        return bytes(body)


@asynccontextmanager
async def too_slow_after(seconds: float, detail: str = "") -> AsyncIterator[None]:
    """Ends with 408 and ``detail`` if the block takes longer."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise HTTPException(
            HTTPStatus.REQUEST_TIMEOUT,
            detail or f"body was not there within {seconds:g} seconds",
            {"Connection": "close"},
        ) from error
