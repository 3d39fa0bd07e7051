"""HTTP as no library would send it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.service import TIMEOUT_SECONDS, RunningService


@asynccontextmanager
async def connected(
    service: RunningService,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    http = service.service.http
    reader, writer = await asyncio.open_connection(http.host, http.port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """Until the service hangs up."""
    answer = b""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        try:
            while data := await reader.read(2**16):
                answer += data
        except ConnectionError:
            pass
    return answer


async def exchange(service: RunningService, request: bytes) -> bytes:
    async with connected(service) as (reader, writer):
        writer.write(request)
        return await rest(reader)
