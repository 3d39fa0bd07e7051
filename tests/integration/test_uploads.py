"""Uploads that take their time: bounded in number and in time, and never noticed by the others."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import httpx
import pytest
from structlog.testing import capture_logs

from segstream.media.images import ImageEncoding, encode_image
from tests.integration.conftest import StartService
from tests.support.models import make_video
from tests.support.service import TIMEOUT_SECONDS, RunningService, undisturbed_bystander

PNG = encode_image(make_video(1)[0], ImageEncoding.PNG)
HEAD = (
    "POST /v1/images HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
    f"Content-Length: {len(PNG)}\r\n\r\n"
)


@dataclass
class Upload:
    """An upload of the test image, piece by piece."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def begin(self) -> None:
        """Until the service reads the body: only then it sends 100 Continue."""
        self.writer.write(HEAD.encode())
        assert await self._head() == ["HTTP/1.1 100 Continue"]
        self.writer.write(PNG[:50])

    def finish(self) -> None:
        self.writer.write(PNG[50:])

    async def answer(self) -> httpx.Response:
        status, *lines = await self._head()
        headers = httpx.Headers(dict(line.split(": ", 1) for line in lines))
        body = await self.reader.readexactly(int(headers["content-length"]))
        return httpx.Response(int(status.split()[1]), headers=headers, content=body)

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    async def _head(self) -> list[str]:
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]


@asynccontextmanager
async def uploading(service: RunningService) -> AsyncIterator[Upload]:
    """An upload whose body the service has begun to read."""
    http = service.service.http
    upload = Upload(*await asyncio.open_connection(http.host, http.port))
    try:
        await upload.begin()
        yield upload
    finally:
        await upload.close()


async def wait_for_a_free_place(service: RunningService) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (await service.http.post("/v1/images", content=PNG)).status_code == 429:
            continue  # the request has let the service go on


async def test_uploads_beyond_the_limit_are_refused_at_once(start_service: StartService) -> None:
    service = await start_service(max_sessions=2)
    async with undisturbed_bystander(service):
        async with uploading(service) as first, uploading(service) as second:
            refused = await service.http.post("/v1/images", content=PNG)
            assert refused.status_code == 429
            assert refused.headers["content-type"] == "application/problem+json"
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["field"] == "body"
            assert refused.json()["detail"].startswith("2 uploads are being read")
            for upload in (first, second):
                upload.finish()
                assert (await upload.answer()).status_code == 200
        assert (await service.http.post("/v1/images", content=PNG)).status_code == 200


async def test_a_service_for_many_sessions_reads_few_uploads_at_once(
    service: RunningService,
) -> None:
    async with AsyncExitStack() as uploads:
        for _ in range(16):
            await uploads.enter_async_context(uploading(service))
        assert (await service.http.post("/v1/images", content=PNG)).status_code == 429


async def test_an_upload_that_takes_too_long(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segstream.api.uploads._READ_SECONDS", 0.2)
    service = await start_service(max_sessions=2)
    async with undisturbed_bystander(service), uploading(service) as upload:
        answer = await upload.answer()
        assert answer.status_code == 408
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["connection"] == "close"
        assert "0.2 seconds" in json.loads(answer.content)["detail"]
        assert await upload.reader.read() == b""
        assert (await service.http.post("/v1/images", content=PNG)).status_code == 200


async def test_a_client_that_leaves_in_mid_upload(
    start_service: StartService, caplog: pytest.LogCaptureFixture
) -> None:
    service = await start_service(max_sessions=1)
    with capture_logs() as logged, caplog.at_level(logging.WARNING):
        async with uploading(service):
            assert (await service.http.post("/v1/images", content=PNG)).status_code == 429
        await wait_for_a_free_place(service)
        await service.stop()
    assert "client gone in mid-upload" in [entry["event"] for entry in logged]
    assert not [entry for entry in logged if "exc_info" in entry or entry["log_level"] == "error"]
    assert not caplog.records


async def test_a_session_does_not_notice_who_leaves_in_mid_upload(service: RunningService) -> None:
    async with undisturbed_bystander(service):
        async with uploading(service):
            pass
        await service.wait_for_metric("segstream_streams", 1)
