"""Connections that are held open, and requests that never end."""

import asyncio

import pytest

from segstream.api import clip_uploads, http_protocol
from tests.integration.conftest import StartService
from tests.support.doors import new_key
from tests.support.raw_http import connected, exchange, rest
from tests.support.service import TIMEOUT_SECONDS, RunningService

HEAD = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize("sent", [b"", b"GET /livez HT", HEAD, b"\x16\x03\x01"])
async def test_a_request_whose_head_does_not_come_is_given_up(
    service: RunningService, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(http_protocol, "_HEAD_SECONDS", 0.2)
    answer = await exchange(service, sent)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400")
    assert (await service.http.get("/livez")).status_code == 200


async def test_a_head_that_trickles_is_given_up(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "_HEAD_SECONDS", 0.3)

    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(HEAD)
        while True:
            writer.write(b"X-Slow: 1\r\n")
            await asyncio.sleep(0.02)

    async with connected(service) as (reader, writer):
        trickling = asyncio.create_task(trickle(writer))
        assert await rest(reader) == b""
        trickling.cancel()


async def test_the_second_request_of_a_connection_is_watched_as_well(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "_HEAD_SECONDS", 0.3)
    async with connected(service) as (reader, writer):
        writer.write(HEAD + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.write(HEAD)
        assert b"HTTP/1.1" not in await rest(reader)


async def test_a_head_without_end_is_refused(service: RunningService) -> None:
    async with connected(service) as (reader, writer):
        head = HEAD + 16 * (b"X-Long: " + b"a" * 4000 + b"\r\n") + b"X: "
        writer.write(head.ljust(64 * 1024 + 1, b"a"))
        assert (await rest(reader)).startswith(b"HTTP/1.1 431")


async def test_a_refused_body_that_does_not_end_is_given_up(
    start_service: StartService,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client hears why, and may not hold the connection."""
    monkeypatch.setattr(http_protocol, "_LINGER_SECONDS", 0.3)
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    new_key(keys)
    service = await start_service(api_keys=keys)
    head = b"POST /v1/clips HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\n"
    answer = await exchange(service, head + b"a" * 100)
    assert answer.startswith(b"HTTP/1.1 401")


async def test_a_connection_is_used_again_after_a_refused_body(
    start_service: StartService, tmp_path_factory: pytest.TempPathFactory
) -> None:
    keys = tmp_path_factory.mktemp("keys") / "keys.json"
    new_key(keys)
    service = await start_service(api_keys=keys)
    head = b"POST /v1/clips HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000\r\n\r\n"
    async with connected(service) as (reader, writer):
        writer.write(head + b"a" * 200_000 + HEAD + b"\r\n")
        statuses = []
        async with asyncio.timeout(TIMEOUT_SECONDS):
            for _ in range(2):
                answer = await reader.readuntil(b"\r\n\r\n")
                statuses.append(answer.split()[1])
                length = int(answer.lower().partition(b"content-length: ")[2].split()[0])
                await reader.readexactly(length)
        assert statuses == [b"401", b"200"]


async def test_a_clip_that_trickles_is_given_up(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would keep its place from others for an hour."""
    monkeypatch.setattr(clip_uploads, "_WINDOW_SECONDS", 0.3)

    async def trickle(writer: asyncio.StreamWriter) -> None:
        writer.write(b"POST /v1/clips HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n")
        while True:
            writer.write(b"a")
            await asyncio.sleep(0.02)

    async with connected(service) as (reader, writer):
        trickling = asyncio.create_task(trickle(writer))
        answer = await rest(reader)
        trickling.cancel()
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"too slowly" in answer


async def test_a_client_that_does_not_read_its_answer_is_given_up(
    service: RunningService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "_STALLED_SECONDS", 0.3)
    request = b"GET /static-offline-docs/swagger-ui-bundle.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with connected(service) as (_, writer):
        for _ in range(100):
            writer.write(request)
        # It is noticed where writing fails: nothing is read here.
        async with asyncio.timeout(TIMEOUT_SECONDS):
            with pytest.raises(ConnectionError):
                await write_for_ever(writer)


async def write_for_ever(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(b"\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)
