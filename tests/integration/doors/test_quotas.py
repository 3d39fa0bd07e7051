"""What one key may use, and that others do not notice when it has used it up."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from segstream.client import AsyncClient
from segstream.doors.keys import Limits, read_records
from segstream.errors import ExhaustedError
from segstream.media.images import ImageEncoding, encode_image
from segstream.v1 import segmentation_pb2 as pb
from segstream.wire import RETRY_HINT
from tests.integration.conftest import StartService
from tests.integration.doors.test_keys import call
from tests.support.clips import FRAMES_PER_SECOND, write_clip
from tests.support.doors import bearing, id_of, new_key
from tests.support.models import make_video
from tests.support.requests import frame_request
from tests.support.service import TIMEOUT_SECONDS, RunningService
from tests.support.websocket import calling

VIDEO = make_video(8)
PNG = encode_image(VIDEO[0], ImageEncoding.PNG)
REACHED = "segstream_quotas_reached_total"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


async def test_sessions_beyond_the_quota_are_refused(
    start_service: StartService, keys: Path
) -> None:
    key, other = new_key(keys, max_sessions=1), new_key(keys)
    service = await start_service(api_keys=keys)
    first, second = call(service, key), call(service, key)
    await first.open(session_id="a")
    await second.send(pb.StreamSegmentRequest(config=pb.SessionConfig()))
    code, text = await second.status()
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "1 sessions of this API key are streaming" in text
    assert RETRY_HINT in dict(await second.trailing_metadata())
    async with calling(service, additional_headers=bearing(key)) as socket:
        await socket.send({"config": {}})
        error = await socket.read_error()
        assert (error["code"], error["retry_after_seconds"]) == (8, 1)
    await call(service, other).open()
    await first.close()
    third = call(service, key)
    await third.open()
    await third.close()
    service.http.headers.update(bearing(other))
    assert await service.metric(REACHED, quota="sessions") == 2


async def test_a_broken_stream_does_not_keep_its_client_out(
    start_service: StartService, keys: Path
) -> None:
    """The service may take it for alive still when the client comes back."""
    key = new_key(keys, max_sessions=1)
    service = await start_service(api_keys=keys)
    first, second = call(service, key), call(service, key)
    await first.open(session_id="a")
    await second.open(session_id="a", resume=pb.Resume(next_frame_index=0))
    assert (await first.read_end()).reason == pb.SESSION_END_REASON_REPLACED
    await second.close()


async def test_no_key_pushes_out_the_parked_sessions_of_others(
    start_service: StartService, keys: Path
) -> None:
    greedy, other = new_key(keys, max_sessions=1), new_key(keys)
    service = await start_service(api_keys=keys, max_sessions=3)
    await park(service, other, "kept")
    for index in range(20):
        await park(service, greedy, f"s{index}")
    sessions = (await service.http.get("/v1/sessions", headers=bearing(greedy))).json()["sessions"]
    assert len(sessions) <= 5
    assert (await service.http.get("/v1/sessions/kept", headers=bearing(other))).status_code == 200


async def park(service: RunningService, key: str, session_id: str) -> None:
    rpc = call(service, key)
    await rpc.open(session_id=session_id)
    rpc.cancel()
    path = f"/v1/sessions/{session_id}"
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            shown = await service.http.get(path, headers=bearing(key))
            if shown.status_code == 404 or not shown.json()["is_streaming"]:
                return


async def test_images_beyond_the_quota_are_refused(start_service: StartService, keys: Path) -> None:
    key, other = new_key(keys, max_frames_per_second=0.001), new_key(keys)
    service = await start_service(api_keys=keys)
    answers = [
        await service.http.post("/v1/images", content=PNG, headers=bearing(each))
        for each in (key, key, other)
    ]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    refused = answers[1]
    assert refused.headers["content-type"] == "application/problem+json"
    assert 900 <= int(refused.headers["retry-after"]) <= 1000
    assert "0.001 frames per second" in refused.json()["detail"]
    service.http.headers.update(bearing(other))
    assert await service.metric(REACHED, quota="frames_per_second") == 1


async def test_frames_of_a_stream_wait_for_their_turn(
    start_service: StartService, keys: Path
) -> None:
    """None is lost and none refused: the client is held back, as it is by a busy service."""
    key = new_key(keys, max_frames_per_second=4)
    service = await start_service(api_keys=keys)
    loop = asyncio.get_running_loop()
    async with (
        AsyncClient(service.grpc_address, api_key=key) as client,
        client.stream() as session,
    ):
        began = loop.time()
        results = [result async for result in session.segment(VIDEO)]
        seconds = loop.time() - began
    assert [result.error for result in results] == [None] * len(VIDEO)
    assert seconds >= (len(VIDEO) - 4) / 4 - 0.1  # four come at once; clocks are coarse
    service.http.headers.update(bearing(key))
    assert await service.metric(REACHED, quota="frames_per_second") >= 1


async def test_of_frames_that_wait_the_newest_is_preferred_where_it_may_be(
    start_service: StartService, keys: Path
) -> None:
    key = new_key(keys, max_frames_per_second=1)
    service = await start_service(api_keys=keys)
    rpc = call(service, key)
    await rpc.open(frame_policy=pb.FRAME_POLICY_LATEST)
    await rpc.send(frame_request(0, VIDEO[0]))
    assert (await rpc.next_result()).HasField("label_map")
    await rpc.send(*(frame_request(index, VIDEO[index]) for index in range(1, 6)))
    outcomes = [(await rpc.next_result()).WhichOneof("outcome") for _ in range(5)]
    assert outcomes[-1] == "label_map"
    assert "skipped" in outcomes
    await rpc.close()


# Clips


async def submit(http: httpx.AsyncClient, key: str, clip: bytes) -> httpx.Response:
    return await http.post("/v1/clips", content=clip, headers=bearing(key))


async def ended(http: httpx.AsyncClient, key: str, url: str) -> dict[str, Any]:
    async with asyncio.timeout(3 * TIMEOUT_SECONDS):
        while True:
            clip: dict[str, Any] = (await http.get(url, headers=bearing(key))).json()
            if clip["ended_at"] is not None:
                return clip


async def test_clips_beyond_the_days_minutes_are_refused(
    start_service: StartService, keys: Path, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 6).read_bytes()
    minutes = float(6 / FRAMES_PER_SECOND) / 60
    key, other = new_key(keys, max_clip_minutes_per_day=1.5 * minutes), new_key(keys)
    service = await start_service(api_keys=keys)
    http = service.http
    first = await submit(http, key, clip)
    assert first.status_code == 202
    assert (await ended(http, key, first.headers["location"]))["state"] == "done"
    # Half of it is left: it is taken, and fails alone with the reason.
    second = await submit(http, key, clip)
    told = await ended(http, key, second.headers["location"])
    assert told["state"] == "failed"
    assert "max_clip_minutes_per_day" in told["error"]["detail"]
    third = await submit(http, key, write_clip(tmp_path / "short.mp4", 3).read_bytes())
    assert (await ended(http, key, third.headers["location"]))["state"] == "done"
    # Removing a clip gives no minute back.
    for answer in (first, second, third):
        assert (await http.delete(answer.headers["location"], headers=bearing(key))).is_success
    refused = await submit(http, key, clip)
    assert refused.status_code == 429
    assert 1 <= int(refused.headers["retry-after"]) <= 24 * 3600
    assert (await submit(http, other, clip)).status_code == 202
    service.http.headers.update(bearing(other))
    assert await service.metric(REACHED, quota="clip_minutes") == 1


async def test_quotas_change_while_the_service_runs(
    start_service: StartService, keys: Path
) -> None:
    key = new_key(keys, max_sessions=1)
    service = await start_service(api_keys=keys)
    first = call(service, key)
    await first.open()
    [record] = read_records(keys).values()
    assert record.id == id_of(key)
    assert record.limits == Limits(max_sessions=1)
    text = await asyncio.to_thread(keys.read_text)
    text = text.replace('"max_sessions": 1', '"max_sessions": 2')
    await asyncio.to_thread(keys.write_text, text)
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while True:
            second = call(service, key)
            await second.send(pb.StreamSegmentRequest(config=pb.SessionConfig()))
            try:
                response = await second.next()
            except (AssertionError, grpc.aio.AioRpcError):
                await asyncio.sleep(0.1)
            else:
                assert response.HasField("ready")
                return


async def test_the_python_client_hears_of_the_quota(
    start_service: StartService, keys: Path
) -> None:
    key = new_key(keys, max_sessions=1)
    service = await start_service(api_keys=keys)
    async with AsyncClient(service.grpc_address, api_key=key) as client, client.stream():
        with pytest.raises(ExhaustedError, match="max_sessions"):
            async with client.stream():
                pass
