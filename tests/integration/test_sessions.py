"""Sessions that outlive their streams, on one replica: parked, resumed, spilled, shown, closed."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from segstream.media.images import Image
from segstream.memory.page_storage import DeviceStorage, PageStorage
from segstream.memory.shared_storage import SharedStorage
from segstream.v1 import segmentation_pb2 as pb
from segstream.v1.segmentation_pb2_grpc import SegmentationServiceStub
from tests.integration.conftest import StartService
from tests.support.models import MEMORY_LENGTH, STREET, digests, make_video, segment_alone
from tests.support.requests import frame_request
from tests.support.service import RawCall, RunningService

VIDEO = make_video(8)


@pytest.fixture
def expected(service: RunningService) -> list[bytes]:
    return digests(segment_alone(service.models[STREET], VIDEO))


async def segment(call: RawCall, start: int, stop: int) -> list[bytes]:
    found = []
    for index in range(start, stop):
        await call.send(frame_request(index, VIDEO[index]))
        found.append((await call.next_result()).label_map.digest)
    return found


def resume(next_frame_index: int) -> pb.Resume:
    return pb.Resume(next_frame_index=next_frame_index)


async def break_off(service: RunningService, call: RawCall) -> None:
    before = await service.metric("segstream_streams_ended_total", reason="client_gone")
    call.cancel()
    await service.wait_for_metric("segstream_streams_ended_total", before + 1, reason="client_gone")
    await service.wait_for_metric("segstream_streams", 0)


async def test_a_broken_stream_is_gone_on_with(
    service: RunningService, expected: list[bytes]
) -> None:
    call = service.call()
    first = await call.open(session_id="a")
    assert first.origin == pb.SESSION_ORIGIN_NEW
    found = await segment(call, 0, 5)
    await break_off(service, call)
    call = service.call()
    ready = await call.open(session_id="a", resume=resume(5))
    assert (ready.origin, ready.next_frame_index) == (pb.SESSION_ORIGIN_RESUMED, 5)
    assert ready.epoch == first.epoch
    found += await segment(call, 5, 8)
    assert found == expected
    assert (await call.close()).num_label_maps == 8


async def test_answers_lost_on_the_way_are_given_again(
    service: RunningService, expected: list[bytes]
) -> None:
    call = service.call()
    await call.open(session_id="a")
    await segment(call, 0, 5)
    await break_off(service, call)
    call = service.call()
    await call.open(session_id="a", resume=resume(3))
    for index in range(3, 8):
        await call.send(frame_request(index, VIDEO[index]))
        result = await call.next_result()
        assert result.is_duplicate is (index < 5)
        assert result.label_map.digest == expected[index]
    assert (await call.close()).num_label_maps == 8


async def test_frames_for_the_memory_only_rebuild_it_exactly(
    service: RunningService, expected: list[bytes]
) -> None:
    call = service.call()
    ready = await call.open(session_id="elsewhere", resume=resume(5))
    assert (ready.origin, ready.next_frame_index) == (pb.SESSION_ORIGIN_NEW, 0)
    for index in (2, 3, 4):
        request = frame_request(index, VIDEO[index])
        request.frame.is_memorise_only = True
        result = await (await call.send(request)).next_result()
        assert result.skipped.reason == pb.SKIP_REASON_MEMORISE_ONLY
        assert result.skipped.is_memorised
    assert await segment(call, 5, 8) == expected[5:]
    await call.close()


async def test_a_second_stream_that_resumes_takes_the_session_over(
    service: RunningService, expected: list[bytes]
) -> None:
    old = service.call()
    await old.open(session_id="a")
    found = await segment(old, 0, 4)
    new = service.call()
    await new.open(session_id="a", resume=resume(4))
    assert (await old.read_end()).reason == pb.SESSION_END_REASON_REPLACED
    assert found + await segment(new, 4, 8) == expected
    await new.close()


async def test_a_resume_under_other_conditions_is_refused(service: RunningService) -> None:
    call = service.call()
    await call.open(session_id="a")
    await segment(call, 0, 1)
    await break_off(service, call)
    call = service.call()
    config = pb.SessionConfig(session_id="a", max_working_height=16, resume=resume(1))
    await call.send(pb.StreamSegmentRequest(config=config))
    code, text = await call.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "max_working_height is 16, but session 'a' began with 0" in text


async def test_a_resume_without_an_id_is_refused(service: RunningService) -> None:
    call = service.call()
    await call.send(pb.StreamSegmentRequest(config=pb.SessionConfig(resume=resume(1))))
    assert (await call.status())[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
async def test_an_idle_memory_is_spilled_and_comes_back_bit_for_bit(
    start_service: StartService, dtype: str
) -> None:
    undisturbed = await start_service(page_dtype=dtype)
    call = undisturbed.call()
    await call.open()
    expected = await segment(call, 0, 8)
    service = await start_service(page_dtype=dtype, spill_after_seconds=0.01)
    call = service.call()
    await call.open(session_id="a")
    found = await segment(call, 0, 4)
    async with asyncio.timeout(10):
        while (await shown(service, "a"))["tier"] != "spill":
            continue  # the request has let the service go on
    session = await shown(service, "a")
    assert (session["device_bytes"], session["last_move"]) == (0, "spill")
    assert session["spill_bytes"] > 0
    assert await service.metric("segstream_pages_used") == 0
    for tier, name in (("device", "device"), ("spill", "spill"), ("frames", "frame")):
        shown_bytes = session[f"{name}_bytes"]
        assert await service.metric("segstream_session_bytes", tier=tier) == shown_bytes
    found += await segment(call, 4, 8)
    assert found == expected
    assert await service.metric("segstream_memory_moves_total", kind="restore") == 1
    await call.close()


@pytest.mark.parametrize("storage", [DeviceStorage, SharedStorage])
async def test_forty_sessions_with_room_for_four(
    start_service: StartService, storage: Callable[[], PageStorage]
) -> None:
    height, width = 96, 136
    videos = [make_video(5, height, width, seed=seed) for seed in range(40)]
    service = await start_service(max_sessions=40, max_memory_bytes=2**20, storage=storage())
    model = service.models[STREET]
    bank_bytes = model.page_geometry(height, width).num_elements * 4 * (MEMORY_LENGTH + 1)
    assert 2**20 // bank_bytes == 4
    found = await segment_in_turns(service, videos)
    assert await service.metric("segstream_memory_moves_total", kind="evict") >= 4 * 36
    assert await service.metric("segstream_memory_moves_total", kind="restore") >= 4 * 36
    roomy = await start_service(max_sessions=40)
    assert found == await segment_in_turns(roomy, videos)
    assert await roomy.metric("segstream_memory_moves_total") == 0
    assert found == [digests(segment_alone(model, video)) for video in videos]


async def segment_in_turns(service: RunningService, videos: list[list[Image]]) -> list[list[bytes]]:
    """A frame of each session, then the next of each; in no more memory than there may be."""
    calls = [service.call() for _ in videos]
    for number, call in enumerate(calls):
        await call.open(session_id=f"session-{number}")
    found: list[list[bytes]] = [[] for _ in videos]
    max_bytes = await service.metric("segstream_max_memory_bytes")
    for index in range(len(videos[0])):
        for call, video in zip(calls, videos, strict=True):
            await call.send(frame_request(index, video[index]))
        for call, digests_found in zip(calls, found, strict=True):
            digests_found.append((await call.next_result()).label_map.digest)
        assert 0 < await service.metric("segstream_memory_bytes") <= max_bytes
    for call in calls:
        await call.close()
    return found


async def test_a_session_nobody_comes_back_for_is_forgotten(start_service: StartService) -> None:
    service = await start_service(session_ttl_seconds=0.01)
    call = service.call()
    await call.open(session_id="a")
    await segment(call, 0, 2)
    await break_off(service, call)
    await service.wait_for_metric("segstream_sessions_ended_total", 1, reason="expired")
    assert (await service.http.get("/v1/sessions/a")).status_code == 404


async def test_sessions_outlive_a_restart_with_a_directory_of_their_own(
    start_service: StartService, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("spill")
    service = await start_service(spill_directory=folder)
    call = service.call()
    await call.open(session_id="a")
    found = await segment(call, 0, 5)
    stopping = service.stop()
    assert (await call.read_end()).reason == pb.SESSION_END_REASON_SHUTDOWN
    await stopping
    service = await start_service(spill_directory=folder)
    call = service.call()
    ready = await call.open(session_id="a", resume=resume(5))
    assert (ready.origin, ready.next_frame_index) == (pb.SESSION_ORIGIN_RESTORED, 5)
    found += await segment(call, 5, 8)
    assert found == digests(segment_alone(service.models[STREET], VIDEO))
    await call.close()


async def shown(service: RunningService, session_id: str) -> dict[str, Any]:
    response = await service.http.get(f"/v1/sessions/{session_id}")
    assert response.status_code == 200
    session: dict[str, Any] = response.json()
    return session


async def test_sessions_are_shown(service: RunningService) -> None:
    call = service.call()
    await call.open(session_id="a")
    await segment(call, 0, 5)
    session = await shown(service, "a")
    assert session["is_streaming"] is True
    assert session["next_frame_index"] == session["num_label_maps"] == 5
    assert session["tier"] == "device"
    assert session["device_bytes"] > 0
    assert session["frame_bytes"] > 0
    ages = session["page_age_seconds"]
    assert isinstance(ages, list)
    assert len(ages) == 3
    assert ages == sorted(ages, reverse=True)
    stub = SegmentationServiceStub(service.channel)
    listed = await stub.ListSessions(pb.ListSessionsRequest(), timeout=10)
    assert [each.session_id for each in listed.sessions] == ["a"]
    got = await stub.GetSession(pb.GetSessionRequest(session_id="a"), timeout=10)
    assert got.session.tier == pb.MEMORY_TIER_DEVICE
    assert got.session.epoch == session["epoch"]
    await call.close()
    assert (await service.http.get("/v1/sessions")).json() == {"sessions": []}


@pytest.mark.parametrize("over", ["http", "grpc"])
async def test_an_operator_may_close_a_session(service: RunningService, over: str) -> None:
    call = service.call()
    await call.open(session_id="a")
    await segment(call, 0, 1)
    if over == "http":
        assert (await service.http.delete("/v1/sessions/a")).status_code == 204
    else:
        stub = SegmentationServiceStub(service.channel)
        await stub.CloseSession(pb.CloseSessionRequest(session_id="a"), timeout=10)
    assert (await call.read_end()).reason == pb.SESSION_END_REASON_CLOSED
    assert await service.metric("segstream_pages_used") == 0


async def test_a_session_that_is_not_here_is_told_so(service: RunningService) -> None:
    response = await service.http.delete("/v1/sessions/none")
    assert response.status_code == 404
    assert "'none' is not held" in response.json()["detail"]
    stub = SegmentationServiceStub(service.channel)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetSession(pb.GetSessionRequest(session_id="none"), timeout=10)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_frame_past_its_deadline_is_skipped(service: RunningService) -> None:
    service.engine.gate.clear()
    call = service.call()
    await call.open()
    late = frame_request(1, VIDEO[1])
    late.frame.deadline_ms = 1
    await call.send(frame_request(0, VIDEO[0]), late)
    await service.engine.wait_for_steps(1)
    await asyncio.sleep(0.05)
    service.engine.gate.set()
    assert (await call.next_result()).HasField("label_map")
    skipped = (await call.next_result()).skipped
    assert skipped.reason == pb.SKIP_REASON_DEADLINE_PASSED
    assert not skipped.is_memorised
    await call.close()


@pytest.mark.parametrize(
    ("policy", "is_memorised"),
    [(pb.FRAME_POLICY_LATEST, False), (pb.FRAME_POLICY_KEEP_MEMORY_SKIP_MASK, True)],
)
async def test_frames_that_newer_ones_overtook_are_skipped(
    service: RunningService, policy: pb.FramePolicy, is_memorised: bool
) -> None:
    service.engine.gate.clear()
    call = service.call()
    await call.open(frame_policy=policy)
    await call.send(frame_request(0, VIDEO[0]))
    await service.engine.wait_for_steps(1)
    await call.send(*(frame_request(index, VIDEO[index]) for index in (1, 2, 3)))
    await asyncio.sleep(0.1)
    service.engine.gate.set()
    assert (await call.next_result()).HasField("label_map")
    for _ in (1, 2):
        skipped = (await call.next_result()).skipped
        assert skipped.reason == pb.SKIP_REASON_SUPERSEDED
        assert skipped.is_memorised is is_memorised
    newest = await call.next_result()
    assert newest.HasField("label_map")
    assert newest.num_memory_frames == (3 if is_memorised else 1)
    await call.close()


async def test_the_guard_empties_the_memory_at_a_hard_cut(service: RunningService) -> None:
    call = service.call()
    await call.open(has_scene_cut_guard=True)
    await segment(call, 0, 3)
    await call.send(frame_request(3, VIDEO[3][::-1, ::-1].copy()))
    cut = await call.next_result()
    assert cut.is_memory_reset
    assert cut.num_memory_frames == 0
    await call.close()


# Sessions without memory


async def test_a_memoryless_session_segments_each_frame_alone(service: RunningService) -> None:
    call = service.call()
    ready = await call.open(session_id="a", is_memoryless=True)
    assert ready.memory_length == 0
    network = service.models[STREET]
    alone = [digests(segment_alone(network, [image]))[0] for image in VIDEO[:3]]
    assert await segment(call, 0, 3) == alone
    status = (await service.http.get("/v1/sessions/a")).json()
    assert (status["tier"], status["device_bytes"], status["frame_bytes"]) == ("none", 0, 0)
    assert await service.metric("segstream_pages_used") == 0
    await call.close()


async def test_a_memoryless_session_is_gone_on_with(service: RunningService) -> None:
    call = service.call()
    await call.open(session_id="a", is_memoryless=True)
    found = await segment(call, 0, 2)
    await break_off(service, call)
    call = service.call()
    ready = await call.open(session_id="a", is_memoryless=True, resume=resume(2))
    assert (ready.origin, ready.next_frame_index) == (pb.SESSION_ORIGIN_RESUMED, 2)
    found += await segment(call, 2, 4)
    assert found == [
        digests(segment_alone(service.models[STREET], [image]))[0] for image in VIDEO[:4]
    ]
    await call.close()


async def test_a_frame_for_the_memory_only_is_not_memorised_without_one(
    service: RunningService,
) -> None:
    call = service.call()
    await call.open(is_memoryless=True)
    request = frame_request(0, VIDEO[0])
    request.frame.is_memorise_only = True
    result = await (await call.send(request)).next_result()
    assert result.skipped.reason == pb.SKIP_REASON_MEMORISE_ONLY
    assert not result.skipped.is_memorised
    await call.close()


async def test_a_session_keeps_its_memory_or_its_lack_of_one(service: RunningService) -> None:
    call = service.call()
    await call.open(session_id="a")
    await segment(call, 0, 1)
    await break_off(service, call)
    call = service.call()
    config = pb.SessionConfig(session_id="a", is_memoryless=True, resume=resume(1))
    await call.send(pb.StreamSegmentRequest(config=config))
    code, text = await call.status()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "is_memoryless is True, but session 'a' began with False" in text


async def test_the_client_asks_for_a_session_without_memory(service: RunningService) -> None:
    async with service.client() as client, client.stream(is_memoryless=True) as session:
        results = [result async for result in session.segment(VIDEO[:3])]
    assert [result.num_memory_frames for result in results] == [0, 0, 0]
