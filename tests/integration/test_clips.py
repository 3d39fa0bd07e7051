"""Clips over HTTP: upload, progress, results, cancellation."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from segstream.errors import EngineError
from segstream.media.video import VideoReader
from segstream.models import LMANet
from tests.integration.conftest import StartService
from tests.support.clips import expected_label_maps, label_maps, write_clip
from tests.support.models import STREET
from tests.support.service import TIMEOUT_SECONDS, RunningService

NUM_FRAMES = 40


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "ride.mp4", NUM_FRAMES)


@pytest.fixture(scope="module")
def body(clip: Path) -> bytes:
    return clip.read_bytes()


async def submit(service: RunningService, body: bytes, **options: Any) -> str:
    answer = await service.http.post("/v1/clips", content=body, **options)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/clips/{answer.json()['id']}"
    return answer.headers["location"]


async def get(service: RunningService, url: str) -> dict[str, Any]:
    answer = await service.http.get(url)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def ended(service: RunningService, url: str) -> dict[str, Any]:
    """The clip once its job is over; the request lets the service go on."""
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (clip := await get(service, url))["ended_at"] is None:
            continue
    return clip


async def done(service: RunningService, url: str) -> dict[str, Any]:
    clip = await ended(service, url)
    assert clip["state"] == "done", clip
    return clip


def stored_files(service: RunningService) -> set[str]:
    root = service.service._jobs.library.storage.directory
    assert root is not None
    return {path.name for path in (root / "clips").rglob("*") if path.is_file()}


def problem_of(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return str(answer.json()["detail"])


async def test_a_clip_becomes_label_maps_an_overlay_and_a_report(
    service: RunningService, clip: Path, body: bytes, tmp_path: Path
) -> None:
    url = await submit(service, body, params={"name": "a ride"})
    told = await done(service, url)
    assert (told["name"], told["model"], told["num_bytes"]) == ("a ride", STREET, len(body))
    assert (told["progress"], told["num_frames_done"]) == (1.0, NUM_FRAMES)

    packed = await service.http.get(f"{url}/label_maps", params={"format": "npy_zst"})
    expected = expected_label_maps(service.models[STREET], clip)
    assert np.array_equal(label_maps(packed.content), expected)
    zipped = await service.http.get(f"{url}/label_maps", params={"ids": "colour"})
    assert zipped.headers["content-type"] == "application/zip"
    assert len(zipfile.ZipFile(io.BytesIO(zipped.content)).namelist()) == NUM_FRAMES
    lines = await service.http.get(f"{url}/label_maps", params={"format": "coco_rle"})
    assert lines.text.count("\n") == NUM_FRAMES

    overlay = await service.http.get(told["links"]["overlay"])
    path = tmp_path / "overlay.mp4"
    path.write_bytes(overlay.content)
    with VideoReader(path) as video:
        assert (video.width, video.height, len(list(video))) == (64, 48, NUM_FRAMES)
    part = await service.http.get(f"{url}/overlay", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, overlay.content[10:20])
    assert part.headers["content-range"] == f"bytes 10-19/{len(overlay.content)}"
    beyond = await service.http.get(f"{url}/overlay", headers={"Range": "bytes=99999999-"})
    assert "bytes" in problem_of(beyond, 416)

    report = await get(service, told["links"]["report"])
    assert report["num_frames"] == len(report["timeline_seconds"]) == NUM_FRAMES
    assert sum(each["share"] for each in report["classes"]) == pytest.approx(1)
    page = await service.http.get(told["links"]["report_page"])
    assert "a ride" in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert "clip" not in stored_files(service)


async def test_a_form_with_a_file_is_the_same(service: RunningService, body: bytes) -> None:
    answer = await service.http.post("/v1/clips", files={"clip": ("../r\u00ed.mp4", body)})
    assert answer.status_code == 202, answer.text
    assert answer.json()["num_bytes"] == len(body)
    assert answer.json()["name"]
    await done(service, answer.headers["location"])


@pytest.mark.parametrize(
    ("content", "content_type", "told"),
    [
        (b"", "video/mp4", "it is empty"),
        (b"x", "multipart/form-data", "without a boundary"),
        (b"x", "multipart/form-data; boundary=b", "is not multipart/form-data"),
        (
            b'--b\r\nContent-Disposition: form-data; name="film"\r\n\r\nx\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            "a part named 'film'",
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="clip"; filename="a"\r\n\r\nx',
            "multipart/form-data; boundary=b",
            "breaks off before its last boundary",
        ),
        (
            b'--b\r\nContent-Disposition: form-data; name="clip"\r\n\r\nx\r\n'
            b'--b\r\nContent-Disposition: form-data; name="clip"\r\n\r\ny\r\n--b--\r\n',
            "multipart/form-data; boundary=b",
            "more than one part",
        ),
    ],
    ids=["empty", "no boundary", "no form", "other part", "cut", "two parts"],
)
async def test_a_body_that_holds_no_clip(
    service: RunningService, content: bytes, content_type: str, told: str
) -> None:
    answer = await service.http.post(
        "/v1/clips", content=content, headers={"Content-Type": content_type}
    )
    assert told in problem_of(answer, 400)
    assert stored_files(service) == set()


@pytest.mark.parametrize("is_stated", [True, False], ids=["stated", "unstated"])
async def test_a_clip_that_is_too_large_leaves_nothing(
    start_service: StartService, is_stated: bool
) -> None:
    service = await start_service(max_clip_bytes=200_000)

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(40):
            yield bytes(10_000)

    content = bytes(400_000) if is_stated else pieces()
    answer = await service.http.post("/v1/clips", content=content)
    assert "at most 200000 bytes (max_clip_bytes)" in problem_of(answer, 413)
    assert stored_files(service) == set()


async def test_options_are_checked_before_the_body_is_read(service: RunningService) -> None:
    answer = await service.http.post("/v1/clips", params={"model": "other"}, content=b"x")
    assert "'other' is not served" in problem_of(answer, 404)
    answer = await service.http.post("/v1/clips", params={"opacity": 2}, content=b"x")
    assert "opacity" in problem_of(answer, 422)


async def test_the_same_key_gives_the_same_job(service: RunningService, body: bytes) -> None:
    key = {"Idempotency-Key": "one"}
    urls = await asyncio.gather(*(submit(service, body, headers=key) for _ in range(3)))
    urls.append(await submit(service, body, headers=key))
    assert len(set(urls)) == 1
    assert len((await get(service, "/v1/clips"))["clips"]) == 1
    answer = await service.http.post("/v1/clips", content=body + b"x", headers=key)
    assert "with other bytes" in problem_of(answer, 409)
    await done(service, urls[0])
    assert await service.metric("segstream_frames_total", outcome="ok") == NUM_FRAMES


async def test_events_tell_all_there_is_and_go_on_where_they_broke_off(
    service: RunningService, body: bytes
) -> None:
    service.engine.gate.clear()
    url = await submit(service, body)
    async with service.http.stream("GET", f"{url}/events") as events:
        assert events.headers["content-type"].startswith("text/event-stream")
        first = await next_event(events.aiter_lines())
    await service.engine.wait_for_steps(1)
    service.engine.gate.set()
    ids = [first]
    async with service.http.stream(
        "GET", f"{url}/events", headers={"Last-Event-ID": first}
    ) as events:
        lines = [line async for line in events.aiter_lines()]
    ids += [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
    assert len(ids) == len(set(ids)) > 1
    assert '"state":"done"' in [line for line in lines if line.startswith("data: ")][-1]
    over = await service.http.get(f"{url}/events", headers={"Last-Event-ID": ids[-1]})
    assert over.status_code == 204
    again = await service.http.get(f"{url}/events", headers={"Last-Event-ID": "nonsense"})
    assert again.text.count("data: ") == 1


async def next_event(lines: AsyncIterator[str]) -> str:
    async for line in lines:
        if line.startswith("id: "):
            return line.removeprefix("id: ")
    raise AssertionError("no event came")


async def test_a_clip_that_runs_is_cancelled_and_then_removed(
    service: RunningService, body: bytes
) -> None:
    service.engine.gate.clear()
    url = await submit(service, body)
    await service.engine.wait_for_steps(1)
    assert (await get(service, url))["state"] == "running"
    assert "is running" in problem_of(await service.http.get(f"{url}/report"), 409)
    assert (await service.http.delete(url)).status_code == 204
    assert (await get(service, url))["state"] == "cancelled"
    service.engine.gate.set()
    await service.wait_for_metric("segstream_clips_running", 0)
    assert "is cancelled" in problem_of(await service.http.get(f"{url}/overlay"), 409)
    assert (await service.http.delete(url)).status_code == 204
    problem_of(await service.http.get(url), 404)
    problem_of(await service.http.delete(url), 404)
    await done(service, await submit(service, body))


@pytest.mark.parametrize("path", ["x", "..%2f..%2fetc%2fpasswd", "0" * 32, "%00", "\u00e9"])
async def test_there_is_no_such_clip(service: RunningService, path: str) -> None:
    for end in ("", "/events", "/overlay", "/label_maps", "/report", "/report.html"):
        problem_of(await service.http.get(f"/v1/clips/{path}{end}"), 404)


async def test_poisoned_clips_fail_alone_with_their_reason(
    start_service: StartService, body: bytes, tmp_path: Path
) -> None:
    service = await start_service(max_image_pixels=64 * 48, max_clip_seconds=2)
    large = write_clip(tmp_path / "large.mp4", 2, 64, 96)
    long = write_clip(tmp_path / "long.mp4", 60)
    poisons = {
        b"not a video": "is not a video or is corrupt",
        large.read_bytes(): "at most 3072 are allowed",
        long.read_bytes(): "longer than the 2 seconds allowed",
        body[: len(body) * 2 // 3]: "clip",
    }
    urls = {await submit(service, poison): told for poison, told in poisons.items()}
    healthy = await submit(service, body)
    for url, told in urls.items():
        failed = await ended(service, url)
        assert failed["state"] == "failed"
        assert told in failed["error"]["detail"]
        assert failed["error"]["field"] == "clip"
        assert told in problem_of(await service.http.get(f"{url}/report"), 409)
    await done(service, healthy)
    assert await service.metric("segstream_clips_ended_total", outcome="failed") == 4


async def test_a_fault_of_the_engine_costs_an_attempt_and_no_label_map(
    service: RunningService, clip: Path, body: bytes
) -> None:
    service.engine.faults.append(EngineError("out of order"))
    url = await submit(service, body)
    assert (await done(service, url))["num_attempts"] == 2
    packed = await service.http.get(f"{url}/label_maps", params={"format": "npy_zst"})
    expected = expected_label_maps(service.models[STREET], clip)
    assert np.array_equal(label_maps(packed.content), expected)


async def test_a_clip_that_never_gets_on_is_given_up(service: RunningService, body: bytes) -> None:
    service.engine.faults.extend(EngineError("out of order") for _ in range(100))
    failed = await ended(service, await submit(service, body))
    assert failed["state"] == "failed"
    assert "3 times after frame 0; the last time: out of order" in failed["error"]["detail"]


async def test_a_service_that_stops_leaves_the_clip_to_the_next_one(
    start_service: StartService, models: Mapping[str, LMANet], tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "long.mp4", 200)
    storage = str(tmp_path / "clips")
    first = await start_service(clip_storage=storage)
    url = await submit(first, clip.read_bytes())
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (await get(first, url))["num_frames_done"] < 32:
            continue
    await first.stop()

    second = await start_service(clip_storage=storage)
    told = await done(second, url)
    assert told["num_attempts"] == 2
    assert await second.metric("segstream_frames_total", outcome="ok") <= 200 - 32
    packed = await second.http.get(f"{url}/label_maps", params={"format": "npy_zst"})
    assert np.array_equal(label_maps(packed.content), expected_label_maps(models[STREET], clip))


async def test_a_clip_that_is_stuck_does_not_outlast_the_deadline(
    start_service: StartService, body: bytes
) -> None:
    service = await start_service(drain_seconds=0.2)
    service.engine.gate.clear()
    await submit(service, body)
    await service.engine.wait_for_steps(1)
    async with asyncio.timeout(10):
        await service.stop()


async def test_a_service_without_workers_leaves_clips_to_others(
    start_service: StartService, body: bytes, tmp_path: Path
) -> None:
    storage = str(tmp_path / "clips")
    front = await start_service(clip_storage=storage, clip_workers=0)
    url = await submit(front, body)
    assert (await get(front, url))["state"] == "queued"
    back = await start_service(clip_storage=storage, replica_name="back")
    assert (await done(front, url))["replica"] == "back"
    page = await get(back, "/v1/clips?limit=1")
    assert (len(page["clips"]), page["next_before"]) == (1, None)
