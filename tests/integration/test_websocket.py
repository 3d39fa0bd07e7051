"""Sessions over the WebSocket: the semantics of the gRPC stream."""

import asyncio
from collections.abc import Sequence
from itertools import count
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from segstream.api import websocket_protocol
from segstream.label_sets import CITYSCAPES
from segstream.media.images import ImageEncoding, encode_image
from segstream.media.label_maps import LabelMap
from tests.integration.conftest import StartService
from tests.support.models import MEMORY_LENGTH, STREET, make_video, segment_alone
from tests.support.requests import frame_request
from tests.support.service import TIMEOUT_SECONDS, RunningService, undisturbed_bystander
from tests.support.websocket import WebSocketCall, calling, frame_message, packed

MIB = 2**20
VIDEO = make_video(8)


@pytest.fixture
def expected(service: RunningService) -> list[LabelMap]:
    return segment_alone(service.models[STREET], VIDEO)


async def segment(call: WebSocketCall, start: int, stop: int) -> list[LabelMap]:
    found = []
    for index in range(start, stop):
        await call.send(frame_message(index, VIDEO[index]))
        result, label_map = await call.next_label_map()
        assert int(result["frame_index"]) == index
        found.append(label_map)
    return found


def assert_same(found: Sequence[LabelMap], expected: Sequence[LabelMap]) -> None:
    np.testing.assert_array_equal(np.stack(found), np.stack(expected))


async def test_the_label_maps_are_those_of_the_network(
    service: RunningService, expected: list[LabelMap]
) -> None:
    async with calling(service) as call:
        ready = await call.open()
        assert (ready["model"], ready["memory_length"]) == (STREET, MEMORY_LENGTH)
        assert ready["origin"] == "SESSION_ORIGIN_NEW"
        assert ready["class_names"] == [label.name for label in CITYSCAPES.labels]
        assert_same(await segment(call, 0, 8), expected)
        ended = await call.end()
        assert ended == {"reason": "SESSION_END_REASON_CLIENT_CLOSED", "num_label_maps": "8"}
    assert await service.metric("segstream_streams") == 0
    assert await service.metric("segstream_pages_used") == 0


async def test_an_answer_tells_of_its_frame(service: RunningService) -> None:
    async with calling(service) as call:
        await call.open()
        await call.send(frame_message(7, VIDEO[0], timestamp_us=-3))
        result, _ = await call.next_label_map()
        assert (result["frame_index"], result["timestamp_us"]) == ("7", "-3")
        assert result["num_memory_frames"] == 0
        assert 0 < result["timings"]["encode_seconds"] < result["timings"]["total_seconds"]
        assert result["timings"]["batch_size"] == 1
        assert result["is_duplicate"] is False
        assert result["label_map"]["digest"]


async def test_everything_may_be_sent_at_once(service: RunningService) -> None:
    async with calling(service) as call:
        frames = [frame_message(index, image) for index, image in enumerate(VIDEO[:4])]
        await call.send({"config": {}}, *frames, {"end_of_frames": {}})
        await call.next("ready")
        for index in range(4):
            result, _ = await call.next_label_map()
            assert result["frame_index"] == str(index)
        await call.read_end()


async def test_a_memoryless_session_sees_every_frame_as_its_first(service: RunningService) -> None:
    async with calling(service) as call:
        assert (await call.open(is_memoryless=True))["memory_length"] == 0
        alone = [segment_alone(service.models[STREET], [image])[0] for image in VIDEO[:4]]
        assert_same(await segment(call, 0, 4), alone)
        await call.end()


# Frames that cannot be used


@pytest.mark.parametrize(
    ("bad", "field", "told"),
    [
        (packed({"frame": {"index": 1}}), "frame.data", "empty"),
        (packed({"frame": {"index": 1}}, b"GIF89a"), "frame.data", "neither JPEG nor PNG"),
        (packed({"frame": {"index": "1", "encoding": "IMAGE_ENCODING_BMP"}}), "frame", "BMP"),
        (packed({"frame": {"index": 1, "encoding": 9}}), "frame.encoding", "9"),
        (packed({"frame": {"index": 1, "colour": "red"}}), "frame", "colour"),
        (packed({"frame": {"index": 1, "width": -1}}), "frame", "width"),
    ],
    ids=["empty", "gif", "unknown-name", "unknown-number", "unknown-field", "bad-number"],
)
async def test_a_bad_frame_is_answered_and_changes_nothing(
    service: RunningService, expected: list[LabelMap], bad: bytes, field: str, told: str
) -> None:
    async with undisturbed_bystander(service), calling(service) as call:
        await call.open()
        found = await segment(call, 0, 1)
        await call.send(bad)
        error = await call.next_error()
        assert (error["code"], error["field"], error["frame_index"]) == (3, field, "1")
        assert told in error["message"]
        assert_same(found + await segment(call, 1, 3), expected[:3])
        await call.end()


# What ends a session


@pytest.mark.parametrize(
    ("first", "code", "field", "told"),
    [
        ({"config": {"model": "x"}}, 5, "config.model", "'x' is not served"),
        ({"config": {"session_id": "a b"}}, 3, "config.session_id", "'a b'"),
        ({"config": {"colour": 1}}, 3, "head", "colour"),
        ({"config": {"frame_policy": "NO"}}, 3, "head", "frame_policy"),
        ({"end_of_frames": {}}, 3, "config", "got end_of_frames"),
        ({"frame": {"index": 1}}, 3, "config", "got frame"),
        ("config", 3, "head", "Expecting value"),
        ("[" * 60_000, 3, "head", "recursion"),
        ('{"config": {"session_id": "\\ud800"}}', 3, "head", ""),
        (b"", 3, "head", "0 bytes"),
        (packed({"config": {}}), 3, "frame", "got config"),
        (packed(b"")[:4] + b"x", 3, "head", "Expecting value"),
        (b"\xff\xff\xff\xff{}", 3, "head", "4294967295 bytes"),
        (b"\x00\x00\x00\x09{}", 3, "head", "but 2 follow"),
        (" " * 2**17, 3, "head", "at most 65536"),
    ],
)
async def test_a_bad_first_message(
    service: RunningService, first: Any, code: int, field: str, told: str
) -> None:
    async with calling(service) as call:
        await call.send(first)
        error = await call.read_error()
    assert (error["code"], error["field"]) == (code, field)
    assert told in error["message"]


async def test_a_message_that_is_no_frame_ends_the_session(service: RunningService) -> None:
    async with calling(service) as call:
        await call.open()
        found = await segment(call, 0, 1)
        await call.send({"config": {}})
        error = await call.read_error()
    assert len(found) == 1
    assert "must be a Frame, got config" in error["message"]
    assert await service.metric("segstream_streams_ended_total", reason="fault") == 1


async def test_a_client_that_says_nothing_is_not_kept(start_service: StartService) -> None:
    service = await start_service(idle_seconds=0.2)
    async with calling(service) as call:
        assert "not there within 0.2 seconds" in (await call.read_error())["message"]


async def test_too_many_sessions_are_told_with_a_time_to_come_back(
    start_service: StartService,
) -> None:
    service = await start_service(max_sessions=1)
    async with calling(service) as first, calling(service) as second:
        await first.open()
        await second.send({"config": {}})
        error = await second.read_error()
        assert (error["code"], error["retry_after_seconds"]) == (8, 1)
        async with calling(service):
            with pytest.raises(InvalidStatus) as refused:
                async with calling(service):
                    pass
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["retry-after"] == "1"


async def test_a_message_larger_than_the_limit_closes_the_socket(
    start_service: StartService,
) -> None:
    service = await start_service(max_message_bytes=MIB)
    async with calling(service) as call:
        await call.open(session_id="a")
        await call.send(bytes(MIB + 1))
        assert (await call.closed())[0] == 1009
    await service.wait_for_metric("segstream_sessions_parked", 1)


async def test_an_unexpected_error_is_not_told_in_detail(service: RunningService) -> None:
    service.engine.faults.append(RuntimeError("secret"))
    async with calling(service) as call:
        await call.open()
        await call.send(frame_message(0, VIDEO[0]))
        error = await call.read_error()
    assert error["code"] == 13
    assert "secret" not in error["message"]


async def test_a_session_that_is_closed_from_outside(service: RunningService) -> None:
    async with calling(service) as call:
        await call.open(session_id="a")
        await segment(call, 0, 1)
        closing = asyncio.create_task(service.http.delete("/v1/sessions/a"))
        assert (await call.read_end())["reason"] == "SESSION_END_REASON_CLOSED"
        assert (await closing).status_code == 204


async def test_a_shutdown_answers_what_was_taken(service: RunningService) -> None:
    service.engine.gate.clear()
    async with calling(service) as call:
        await call.open()
        await call.send(frame_message(0, VIDEO[0]))
        await service.engine.wait_for_steps(1)
        stopping = service.stop()
        await asyncio.sleep(0)
        service.engine.gate.set()
        await call.next_label_map()
        assert (await call.read_end())["reason"] == "SESSION_END_REASON_SHUTDOWN"
    await stopping


# Sessions outlive their sockets


@pytest.mark.parametrize("is_abrupt", [True, False])
async def test_a_broken_session_is_gone_on_with(
    service: RunningService, expected: list[LabelMap], is_abrupt: bool
) -> None:
    async with calling(service) as call:
        first = await call.open(session_id="a")
        found = await segment(call, 0, 5)
        if is_abrupt:
            call.abort()
    await service.wait_for_metric("segstream_sessions_parked", 1)
    assert await service.metric("segstream_streams_ended_total", reason="client_gone") == 1
    async with calling(service) as call:
        ready = await call.open(session_id="a", resume={"next_frame_index": 3})
        assert (ready["origin"], ready["next_frame_index"]) == ("SESSION_ORIGIN_RESUMED", "5")
        assert ready["epoch"] == first["epoch"]
        again = await segment(call, 3, 8)
        assert_same(found[:3] + again, expected)
        assert (await call.end())["num_label_maps"] == "8"


async def test_grpc_goes_on_with_a_session_of_the_websocket(
    service: RunningService, expected: list[LabelMap]
) -> None:
    async with calling(service) as call:
        await call.open(session_id="a")
        found = await segment(call, 0, 4)
        grpc = service.call()
        await grpc.open(session_id="a", resume={"next_frame_index": 4})
        assert (await call.read_end())["reason"] == "SESSION_END_REASON_REPLACED"
    for index in range(4, 8):
        await grpc.send(frame_request(index, VIDEO[index]))
        data = (await grpc.next_result()).label_map.data
        found.append(np.frombuffer(data, np.uint8).reshape(found[0].shape))
    await grpc.close()
    assert_same(found, expected)


# Flow control


async def test_a_client_that_does_not_wait_is_held_back(service: RunningService) -> None:
    service.engine.gate.clear()
    [image] = make_video(1, 960, 1280)
    noise = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    async with calling(service) as call:
        await call.open()
        messages = [frame_message(index, noise) for index in range(20)]
        sending = asyncio.create_task(call.send(*messages))
        await service.engine.wait_for_steps(1)
        done, _ = await asyncio.wait([sending], timeout=0.5)
        assert not done
        sending.cancel()
        await asyncio.wait([sending])
        call.abort()
        service.engine.gate.set()
    await service.wait_for_metric("segstream_streams", 0)


async def test_a_client_that_stops_reading_is_given_up(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(websocket_protocol, "_LINGER_SECONDS", 0.1)
    service = await start_service(idle_seconds=0.5)
    large = encode_image(np.zeros((1536, 2048, 3), np.uint8), ImageEncoding.PNG)
    async with calling(service, max_queue=1) as call:
        # A few label maps of 3 MB each fill the socket's buffers.
        await call.open(label_map_encoding="LABEL_MAP_ENCODING_RAW", max_working_height=16)
        sending = asyncio.create_task(send_for_ever(call, large))
        await service.wait_for_metric("segstream_streams_ended_total", 1, reason="idle")
        await service.wait_for_metric("segstream_sessions_parked", 1)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(sending, TIMEOUT_SECONDS)


async def send_for_ever(call: WebSocketCall, png: bytes) -> None:
    for index in count():
        await call.connection.send(packed({"frame": {"index": index}}, png))


# Origins


async def test_a_page_of_another_origin_is_refused(service: RunningService) -> None:
    for origin in ("http://evil.example", "null", "http://[", service.service.addresses["grpc"]):
        with pytest.raises(InvalidStatus) as refused:
            async with calling(service, origin=origin):
                pass
        response = refused.value.response
        assert response.status_code == 403
        assert response.headers["content-type"] == "application/problem+json"
        assert origin.encode() in (response.body or b"")


async def test_the_services_own_page_and_allowed_origins_are_let_in(
    start_service: StartService,
) -> None:
    service = await start_service(allowed_origins=["https://Pages.example"])
    for origin in (service.service.addresses["http"], "https://pages.example"):
        async with calling(service, origin=origin) as call:
            await call.open()
            await call.end()
