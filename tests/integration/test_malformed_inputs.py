"""A thousand and more malformed inputs over the real wires: each is told, none leaves a trace."""

import asyncio
import logging
import os
import random
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import pytest
import pytest_asyncio
from structlog.testing import capture_logs

from segstream.api import http_protocol, uploads
from segstream.media.images import ImageEncoding, encode_image
from segstream.models import LMANet
from tests.integration.conftest import StartService
from tests.support import malformed
from tests.support.clips import write_clip
from tests.support.models import STREET, digests, make_video, segment_alone
from tests.support.requests import frame_request
from tests.support.service import RunningService, undisturbed_bystander
from tests.support.websocket import calling, frame_message, packed, unpacked

PROBLEM = "application/problem+json"
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]
NOT_FOUND = grpc.StatusCode.NOT_FOUND.value[0]
WAIT_SECONDS = 240.0
VIDEO = make_video(6)
PNG = encode_image(VIDEO[0], ImageEncoding.PNG)
# The pools of threads fill up to their bounds, whatever comes.
MAX_POOL_THREADS = 24
MAX_GROWTH_BYTES = 256 * 2**20


def rng() -> random.Random:
    return random.Random(20210101)


# What clips and paths are tried with, beside what tests.support.malformed makes.
TEXTS = ("..", "../../etc/passwd", "%00", "\0", "ä\N{PILE OF POO}", "0" * 32, "g" * 32, "a" * 3_000)
RANGES = ("bytes=-", "bytes=9-1", "bytes=-0", "bytes=99999999999999999999-", "x", "bytes=0-1,3-4")


def paths() -> list[tuple[str, str, dict[str, str]]]:
    """Method, path and headers."""
    tried: list[tuple[str, str, dict[str, str]]] = []
    for text in TEXTS:
        name = quote(text, safe="")
        for path in ("", "/events", "/overlay", "/label_maps", "/report", "/report.html"):
            tried.append(("GET", f"/v1/clips/{name}{path}", {}))
        tried.append(("DELETE", f"/v1/clips/{name}", {}))
        tried += [(method, f"/v1/sessions/{name}", {}) for method in ("GET", "DELETE", "PUT")]
        tried.append(("GET", f"/v1/clips?before={name}", {}))
        tried.append(("GET", f"/v1/clips?limit={name}", {}))
        tried.append(("GET", f"/web/{name}", {}))
        for parameter in ("model", "output", "id_space", "max_working_height"):
            tried.append(("POST", f"/v1/images?{parameter}={name}", {}))
        for parameter in ("model", "opacity", "max_working_height"):
            tried.append(("POST", f"/v1/clips?{parameter}={name}", {}))
    for kind in ("multipart/form-data", "multipart/form-data; boundary=", "\xe4/\xf6", "/", ""):
        tried.append(("POST", "/v1/clips", {"Content-Type": kind}))
    tried += [("GET", f"/v1/clips/{'0' * 32}/overlay", {"Range": each}) for each in RANGES]
    for key in ("", "\xe4", "k" * 256):
        tried.append(("POST", "/v1/clips", {"Idempotency-Key": key}))
    return tried


def forms() -> list[bytes]:
    """Bodies of multipart/form-data with the boundary ``b``."""
    part = b'--b\r\nContent-Disposition: form-data; name="clip"; filename="a"\r\n\r\nx'
    return [
        b"",
        b"--b",
        b"--b--\r\n",
        b"--c\r\n\r\n",
        part,
        part + b"\r\n" + part + b"\r\n--b--\r\n",
        part.replace(b"clip", b"\xff\0"),
        part.replace(b"filename", b"x" * 20_000),
        b"--b\r\n" + b"A: b\r\n" * 20_000,
        bytes(1_000),
    ]


@dataclass(frozen=True)
class Held:
    """What the service holds, as operators and the system see it."""

    sessions: int
    pages: float
    files: int
    descriptors: int
    threads: int
    children: int

    def is_within(self, before: "Held") -> bool:
        mine, limit = vars(self), vars(before)
        return all(mine[name] <= limit[name] for name in mine if name != "threads") and (
            self.threads <= before.threads + MAX_POOL_THREADS
        )


@dataclass
class Guarded:
    """A service among the malformed, with connections of their own that are closed in the end."""

    service: RunningService
    folder: Path

    async def held(self) -> Held:
        listed = (await self.service.http.get("/v1/sessions")).json()["sessions"]
        return Held(
            sessions=len(listed),
            pages=await self.service.metric("segstream_pages_used"),
            files=sum(path.is_file() for path in self.folder.rglob("*")),
            descriptors=len(os.listdir("/proc/self/fd")),
            threads=len(os.listdir("/proc/self/task")),
            children=num_children(),
        )

    async def close_sessions(self) -> None:
        for each in (await self.service.http.get("/v1/sessions")).json()["sessions"]:
            answer = await self.service.http.delete(f"/v1/sessions/{each['session_id']}")
            assert answer.status_code in (204, 404)

    def http(self) -> httpx.AsyncClient:
        url = self.service.service.addresses["http"]
        return httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS, trust_env=False)


def num_children() -> int:
    tasks = Path("/proc/self/task").iterdir()
    return sum(len((task / "children").read_text().split()) for task in tasks)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest_asyncio.fixture
async def guarded(
    start_service: StartService,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> AsyncIterator[Guarded]:
    """A service that must be afterwards as it was before, with a stream that notices nothing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with capture_logs() as logged, caplog.at_level(logging.ERROR):
        guard = Guarded(await start_service(), tmp_path)
        await use_every_wire(guard)
        before, bytes_before = await guard.held(), resident_bytes()
        async with undisturbed_bystander(guard.service, WAIT_SECONDS):
            yield guard
        await guard.close_sessions()
        async with asyncio.timeout(WAIT_SECONDS):
            while not (after := await guard.held()).is_within(before):
                continue  # the requests have let the service go on
        assert after.sessions == 0
        assert resident_bytes() - bytes_before < MAX_GROWTH_BYTES
    assert not [entry for entry in logged if entry["log_level"] == "error" or "exc_info" in entry]
    assert not caplog.records


async def use_every_wire(guard: Guarded) -> None:
    """So that what is made at first use is there before it is counted."""
    assert (await guard.service.http.post("/v1/images", content=PNG)).status_code == 200
    call = guard.service.call()
    await call.open()
    await call.send(frame_request(0, VIDEO[0]))
    await call.next_result()
    await call.close()
    async with calling(guard.service) as socket:
        await socket.open()
        await socket.send(frame_message(0, VIDEO[0]))
        await socket.next("result")
        await socket.end()
    await guard.close_sessions()


async def each_of(
    items: Iterable[Any], work: Callable[[Any], Coroutine[Any, Any, None]], *, at_once: int
) -> None:
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    async with asyncio.timeout(WAIT_SECONDS), asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(worker())


def test_there_are_a_thousand_of_them() -> None:
    random_numbers = rng()
    distinct = {frame.SerializeToString() for frame in malformed.broken_frames(random_numbers)}
    distinct |= {b"first" + each for each in malformed.broken_first_messages(rng())}
    distinct |= {repr(each).encode() for each in malformed.broken_heads()}
    distinct |= {repr(each).encode() for each in malformed.broken_messages(rng())}
    distinct |= set(malformed.broken_requests(rng())) | set(forms())
    distinct |= {repr(each).encode() for each in paths()}
    assert len(distinct) >= 1000


# gRPC


async def test_frames_over_grpc(guarded: Guarded, expected: list[bytes]) -> None:
    frames = list(malformed.broken_frames(rng()))
    step = len(frames) // (len(VIDEO) - 1)
    call = guarded.service.call()
    await call.open(session_id="among_the_malformed")

    async def send() -> None:
        for index, image in enumerate(VIDEO):
            await call.send(frame_request(index, image))
            await call.send(*frames[step * index : step * (index + 1)])
        await call.half_close()

    sending = asyncio.create_task(send())
    found, num_refused = [], 0
    while (response := await call.next()).HasField("result"):
        result = response.result
        if result.HasField("label_map"):
            found.append(result.label_map.digest)
        else:
            assert result.error.code == INVALID_ARGUMENT, result
            assert result.error.field.startswith("frame."), result
            assert result.error.reason in ("INVALID_INPUT", "TOO_LARGE"), result
            num_refused += 1
    await sending
    assert response.ended.num_label_maps == len(VIDEO)
    assert num_refused == len(frames)
    assert found == expected, "a malformed frame has changed something"


async def test_first_messages_over_grpc(guarded: Guarded) -> None:
    method = "/segstream.v1.SegmentationService/StreamSegment"

    async def begin(message: bytes) -> None:
        call: Any = guarded.service.channel.stream_stream(method)(timeout=WAIT_SECONDS)
        await call.write(message)
        assert await call.code() in (
            grpc.StatusCode.INVALID_ARGUMENT,
            grpc.StatusCode.NOT_FOUND,
        ), (message[:80], await call.details())
        assert dict(await call.trailing_metadata())["grpc-status-details-bin"]

    await each_of(malformed.broken_first_messages(rng()), begin, at_once=4)


async def test_requests_about_sessions_over_grpc(guarded: Guarded) -> None:
    async def ask(message: bytes) -> None:
        for name in ("GetSession", "CloseSession"):
            method: Any = guarded.service.channel.unary_unary(
                f"/segstream.v1.SegmentationService/{name}"
            )
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await method(message, timeout=WAIT_SECONDS)
            assert caught.value.code() in (
                grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.NOT_FOUND,
            )

    await each_of(islice(malformed.broken_first_messages(rng()), 30), ask, at_once=4)


# WebSocket


async def test_frames_over_the_websocket(guarded: Guarded, expected: list[bytes]) -> None:
    heads = list(malformed.broken_heads())
    images = malformed.broken_images(rng())[::6]
    messages = [packed(head) for head in heads]
    messages += [packed({"frame": {"index": 1}}, image) for image in images]
    async with calling(guarded.service, max_queue=None) as call:
        await call.open()
        await call.send(frame_message(0, VIDEO[0]))
        first, _ = await call.next("result")
        sending = asyncio.create_task(call.send(*messages, frame_message(1, VIDEO[1])))
        for message in messages:
            error = await call.next_error()
            assert (error["code"], error["frame_index"]) == (INVALID_ARGUMENT, "1"), message[:200]
        second, _ = await call.next("result")
        await sending
        assert (first["num_memory_frames"], second["num_memory_frames"]) == (0, 1)
        assert (await call.end())["num_label_maps"] == "2"


async def test_first_messages_over_the_websocket(guarded: Guarded) -> None:
    async def begin(message: str | bytes) -> None:
        async with calling(guarded.service) as call:
            await call.send(message)
            head, _ = unpacked(await call.connection.recv())
            if "ready" in head:  # protobuf's JSON takes more for numbers than one might think
                return
            assert head["error"]["code"] in (INVALID_ARGUMENT, NOT_FOUND), head
            code, _ = await call.closed()
            assert code == 4000 + head["error"]["code"]

    await each_of(malformed.broken_messages(rng()), begin, at_once=4)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02hi", 1002),  # not masked
        (b"\xf1\x80\0\0\0\0", 1002),  # reserved bits
        (b"\x83\x80\0\0\0\0", 1002),  # an opcode that there is not
        (b"\x80\x80\0\0\0\0", 1002),  # goes on with nothing
        (b"\x09\x80\0\0\0\0", 1002),  # a ping in pieces
        (b"\x89\xfe\x00\x7e\0\0\0\0" + bytes(126), 1002),  # a ping too long
        (b"\x81\x82\0\0\0\0\xff\xfe", 1007),  # no UTF-8
        (b"\x88\x81\0\0\0\0\x03", 1002),  # a closing code cut short
        (b"\x82\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1009),
        (b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1009),
    ],
)
async def test_bytes_that_are_no_websocket(guarded: Guarded, data: bytes, code: int) -> None:
    async with calling(guarded.service) as call:
        await call.open()
        call.connection.transport.write(data)
        closed_with, _ = await call.closed()
        assert closed_with in (code, 1002), closed_with


# HTTP


async def test_images_over_http(guarded: Guarded) -> None:
    async with guarded.http() as http:

        async def post(body: bytes) -> None:
            assert_told(await http.post("/v1/images", content=body))

        await each_of(malformed.broken_images(rng())[::2], post, at_once=4)


async def test_paths_parameters_and_headers(guarded: Guarded) -> None:
    async with guarded.http() as http:

        async def ask(request: tuple[str, str, dict[str, str]]) -> None:
            method, path, headers = request
            raw = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
            assert_told(await http.request(method, path, headers=raw))

        await each_of(paths(), ask, at_once=4)


async def test_forms(guarded: Guarded) -> None:
    async with guarded.http() as http:
        for body in forms():
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            answer = await http.post("/v1/clips", content=body, headers=headers)
            assert answer.status_code in (400, 413), (body[:80], answer.text)
            assert_told(answer)


async def test_requests_that_are_no_http(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "_HEAD_SECONDS", 2.0)

    async def send(request: bytes) -> None:
        async with connection(guarded.service) as (reader, writer):
            writer.write(request)
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except (asyncio.IncompleteReadError, ConnectionError):
                return  # closed without a word
            status = int(head.split()[1])
            assert status < 500, (request[:200], head)
            if status >= 400:
                assert PROBLEM.encode() in head, (request[:200], head)

    await each_of(malformed.broken_requests(rng()), send, at_once=100)


async def test_clips_that_are_none(guarded: Guarded, tmp_path: Path) -> None:
    folder = tmp_path / "seed"
    folder.mkdir()
    clip = write_clip(folder / "clip.mp4", 3).read_bytes()
    (folder / "clip.mp4").unlink()
    header = clip.index(b"moov")
    numbers = rng()
    bodies = [
        malformed.damaged(numbers, clip[:header], 40) + clip[header:],
        clip[:header] + malformed.damaged(numbers, clip[header:]),
        clip[: len(clip) // 2],
        clip.replace(b"avc1", b"\xff\xff\xff\xff"),
    ]
    async with guarded.http() as http:
        for body in bodies:
            answer = await http.post("/v1/clips", content=body)
            assert answer.status_code == 202
            url = answer.headers["location"]
            async with asyncio.timeout(WAIT_SECONDS):
                while (told := (await http.get(url)).json())["ended_at"] is None:
                    continue
            assert told["state"] in ("failed", "done")
            if told["state"] == "failed":
                assert told["error"]["detail"]
            assert (await http.delete(url)).status_code == 204


# Slow ones


async def test_clients_that_take_their_time(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "_HEAD_SECONDS", 1.0)
    monkeypatch.setattr(http_protocol, "_LINGER_SECONDS", 1.0)
    monkeypatch.setattr(uploads, "_READ_SECONDS", 1.0)
    post = b"POST /v1/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n\r\n"
    too_large = post.replace(b"1000", b"9" * 15)
    beginnings = [b"", b"G", b"GET / HTTP/1.1\r\nX: ", post, too_large] * 4

    async def trickle(beginning: bytes) -> None:
        async with connection(guarded.service) as (reader, writer):
            writer.write(beginning)
            closed = asyncio.create_task(reader.read())
            while not (await asyncio.wait([closed], timeout=0.1))[0]:
                if beginning:
                    writer.write(b"x")
            answer = b"" if closed.exception() else closed.result()
            assert re.match(rb"HTTP/1.1 4(00|08|13) |$", answer), answer

    await each_of(beginnings, trickle, at_once=len(beginnings))


async def test_a_client_that_only_pings(guarded: Guarded) -> None:
    async with calling(guarded.service) as call:
        await call.open()
        call.connection.transport.pause_reading()
        ping = b"\x89\xfd\0\0\0\0" + bytes(125)
        async with asyncio.timeout(WAIT_SECONDS):
            while not call.connection.transport.is_closing():
                call.connection.transport.write(500 * ping)
                await asyncio.sleep(0)


@pytest.fixture(scope="module")
def expected(models: dict[str, LMANet]) -> list[bytes]:
    """The digests of VIDEO's label maps."""
    return digests(segment_alone(models[STREET], VIDEO))


@asynccontextmanager
async def connection(
    service: RunningService,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    http = service.service.http
    reader, writer = await asyncio.open_connection(http.host, http.port)
    try:
        yield reader, writer
    finally:
        writer.close()


def assert_told(answer: httpx.Response) -> None:
    assert answer.status_code < 500, (answer.request.url, answer.text)
    if answer.status_code >= 400:
        assert answer.headers["content-type"] == PROBLEM, answer.request.url
        assert answer.json()["detail"]
