"""What clients do wrong over gRPC: told clearly, and never noticed by the sessions beside them."""

import asyncio
import struct
import zlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from segstream.errors import ExhaustedError, NotFoundError, TooLargeError
from segstream.media.images import ImageEncoding, encode_image
from segstream.v1 import segmentation_pb2 as pb
from segstream.v1.segmentation_pb2_grpc import SegmentationServiceStub
from tests.integration.conftest import StartService
from tests.support.models import DRIVE, MEMORY_LENGTH, STREET, make_video
from tests.support.requests import WIRE_ENCODINGS, config_request, data_request, frame_request
from tests.support.service import RawCall, RunningService, undisturbed_bystander

MIB = 2**20
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT.value[0]
RESOURCE_EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
VIDEO = make_video(4)
JPEG, PNG = (encode_image(VIDEO[0], each) for each in (ImageEncoding.JPEG, ImageEncoding.PNG))


@pytest_asyncio.fixture
async def service(start_service: StartService) -> AsyncIterator[RunningService]:
    """A service with a session that must not notice what the test does."""
    running = await start_service(max_message_bytes=MIB)
    async with undisturbed_bystander(running):
        yield running
    assert await running.metric("segstream_streams_ended_total", reason="client_closed") >= 1
    assert await running.metric("segstream_streams") == 0


async def assert_refused(call: RawCall, status: grpc.StatusCode, *told: str) -> None:
    code, text = await call.status()
    assert code is status, text
    for part in told:
        assert part in text


async def assert_frame_refused(
    service: RunningService, bad: pb.StreamSegmentRequest, code: int, field: str, *told: str
) -> None:
    """The bad frame gets its error between two good ones, which it changes in nothing."""
    call = service.call()
    await call.open(model=STREET)
    good = frame_request(0, VIDEO[0]), frame_request(1, VIDEO[1])
    await call.send(bad, good[0], bad, good[1])
    for num_memory_frames, accepted in enumerate(good):
        error = await call.next_error()
        assert (error.code, error.field) == (code, field)
        for part in told:
            assert part in error.message
        result = await call.next_result()
        assert result.frame_index == accepted.frame.index
        assert result.HasField("label_map")
        assert result.num_memory_frames == num_memory_frames
    assert (await call.close()).num_label_maps == 2


# The session


async def test_a_call_that_never_says_a_word(start_service: StartService) -> None:
    service = await start_service(idle_seconds=0.2)
    told = ("config was not there", "0.2 seconds")
    await assert_refused(service.call(), grpc.StatusCode.INVALID_ARGUMENT, *told)


async def test_a_patient_service_waits_for_frames_longer_than_for_the_first_word(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segstream.api.grpc_server._MAX_HANDSHAKE_SECONDS", 0.2)
    service = await start_service(idle_seconds=300)
    call = service.call()
    await call.open()
    told = ("config was not there", "0.2 seconds")
    await assert_refused(service.call(), grpc.StatusCode.INVALID_ARGUMENT, *told)
    await call.send(frame_request(0, VIDEO[0]))
    assert (await call.next_result()).HasField("label_map")
    await call.close()


async def test_calls_that_say_nothing_are_bounded_in_number(start_service: StartService) -> None:
    service = await start_service(max_sessions=2)
    async with undisturbed_bystander(service):
        calls = [service.call() for _ in range(2 * 2 + 16)]  # one too many: there is the bystander
        statuses = {asyncio.create_task(call.status()): call for call in calls}
        [refused], silent = await asyncio.wait(statuses, return_when=asyncio.FIRST_COMPLETED)
        assert refused.result()[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
        for status in silent:
            await statuses[status].half_close()
            assert (await status)[0] is grpc.StatusCode.INVALID_ARGUMENT
        again = service.call()
        await again.open()
        await again.close()


async def test_a_frame_before_the_configuration(service: RunningService) -> None:
    call = await service.call().send(frame_request(0, VIDEO[0]))
    await assert_refused(
        call, grpc.StatusCode.INVALID_ARGUMENT, "first message", "SessionConfig", "frame"
    )


async def test_an_empty_message(service: RunningService) -> None:
    call = await service.call().send(pb.StreamSegmentRequest())
    await assert_refused(call, grpc.StatusCode.INVALID_ARGUMENT, "first message", "SessionConfig")


async def test_a_stream_without_any_message(service: RunningService) -> None:
    call = await service.call().half_close()
    await assert_refused(call, grpc.StatusCode.INVALID_ARGUMENT, "first message", "SessionConfig")


@pytest.mark.parametrize("message", [config_request(), pb.StreamSegmentRequest()])
async def test_anything_but_a_frame_in_mid_stream(
    service: RunningService, message: pb.StreamSegmentRequest
) -> None:
    call = service.call()
    await call.open()
    await call.send(frame_request(0, VIDEO[0]), message)
    assert (await call.next_result()).HasField("label_map")
    kind = str(message.WhichOneof("message"))
    await assert_refused(call, grpc.StatusCode.INVALID_ARGUMENT, "must be a Frame", kind)
    await service.wait_for_metric("segstream_streams_ended_total", 1, reason="fault")


async def test_an_unknown_model(service: RunningService) -> None:
    call = await service.call().send(config_request(model="segformer"))
    told = ("config.model", "segformer", STREET, DRIVE)
    await assert_refused(call, grpc.StatusCode.NOT_FOUND, *told)


@pytest.mark.parametrize(
    ("session_id", "told"),
    [
        ("a" * 129, "129 characters, at most 128"),
        ("two words", "'two words'"),
        ("../../etc", "'../../etc'"),
        ("line\nbreak", "line"),
        ("Straße", "Straße"),
    ],
)
async def test_a_bad_session_id(service: RunningService, session_id: str, told: str) -> None:
    call = await service.call().send(config_request(session_id=session_id))
    await assert_refused(call, grpc.StatusCode.INVALID_ARGUMENT, "config.session_id", told)


async def test_a_session_id_in_use(service: RunningService) -> None:
    call = await service.call().send(config_request(session_id="bystander"))
    await assert_refused(call, grpc.StatusCode.ALREADY_EXISTS, "session_id", "'bystander'")


@pytest.mark.parametrize("field", ["label_map_encoding", "id_space"])
async def test_an_unknown_number_in_the_configuration(service: RunningService, field: str) -> None:
    unknown: dict[str, Any] = {field: 99}
    call = await service.call().send(config_request(**unknown))
    await assert_refused(
        call, grpc.StatusCode.INVALID_ARGUMENT, f"config.{field}", "99", "[0, 1, 2"
    )


async def test_too_many_sessions(start_service: StartService) -> None:
    service = await start_service(max_sessions=2)
    async with undisturbed_bystander(service):
        first, second = service.call(), service.call()
        await first.open()
        await second.send(config_request())
        await assert_refused(second, grpc.StatusCode.RESOURCE_EXHAUSTED, "2 sessions")
        assert ("grpc-retry-pushback-ms", "1000") in (await second.trailing_metadata())
        await first.close()
        third = service.call()
        await third.open()
        await third.close()


# The frames


@pytest.mark.parametrize("encoding", [0, *WIRE_ENCODINGS.values()])
async def test_an_empty_image(service: RunningService, encoding: int) -> None:
    bad = data_request(0, b"", encoding, width=64, height=48)
    await assert_frame_refused(service, bad, INVALID_ARGUMENT, "frame.data", "empty")


@pytest.mark.parametrize("encoding", [4, 99])
async def test_an_unknown_image_encoding(service: RunningService, encoding: int) -> None:
    bad = data_request(0, JPEG, encoding)
    await assert_frame_refused(
        service, bad, INVALID_ARGUMENT, "frame.encoding", "frame.encoding", str(encoding)
    )


@pytest.mark.parametrize("data", [JPEG, PNG], ids=["jpeg", "png"])
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
async def test_a_truncated_image(service: RunningService, data: bytes, kept: float) -> None:
    bad = data_request(0, data[: max(9, int(kept * len(data)))])
    await assert_frame_refused(
        service, bad, INVALID_ARGUMENT, "frame.data", "frame.data", "truncated or corrupt"
    )


async def test_bytes_that_are_no_image(service: RunningService) -> None:
    bad = data_request(0, b"GIF89a and so on")
    told = ("frame.data", "neither JPEG nor PNG", b"GIF89a a".hex())
    await assert_frame_refused(service, bad, INVALID_ARGUMENT, "frame.data", *told)


async def test_an_image_of_another_encoding_than_named(service: RunningService) -> None:
    bad = data_request(0, PNG, pb.IMAGE_ENCODING_JPEG)
    await assert_frame_refused(service, bad, INVALID_ARGUMENT, "frame.data", "is not JPEG")


def huge_png() -> bytes:
    """A PNG header of 100000 x 100000 pixels with hardly any behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + pixels + chunk(b"IEND", b"")


def huge_jpeg() -> bytes:
    """A JPEG whose header claims 65000 x 65000 pixels, about the most its 16 bits can."""
    data = bytearray(JPEG)
    size = data.index(b"\xff\xc0") + 5
    data[size : size + 4] = struct.pack(">HH", 65_000, 65_000)
    return bytes(data)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (data_request(0, huge_png()), "100000x100000"),
        (data_request(0, huge_jpeg()), "65000x65000"),
        (
            data_request(0, b"abc", pb.IMAGE_ENCODING_RAW_RGB, width=100_000, height=100_000),
            "100000x100000",
        ),
    ],
    ids=["png", "jpeg", "raw"],
)
async def test_an_enormous_image_in_the_header(
    service: RunningService, bad: pb.StreamSegmentRequest, told: str
) -> None:
    await assert_frame_refused(
        service, bad, INVALID_ARGUMENT, "frame.data", "frame.data", told, "at most 16384"
    )


async def test_more_pixels_than_allowed(start_service: StartService) -> None:
    service = await start_service(max_image_pixels=48 * 64)
    async with undisturbed_bystander(service):
        bad = frame_request(0, make_video(1, 48, 65)[0], ImageEncoding.PNG)
        told = ("48", "65", "3120 pixels", "at most 3072")
        await assert_frame_refused(service, bad, INVALID_ARGUMENT, "frame.data", *told)


@pytest.mark.parametrize("num_bytes", [1, 3 * 64 * 48 - 1, 3 * 64 * 48 + 1])
async def test_a_raw_frame_of_the_wrong_size(service: RunningService, num_bytes: int) -> None:
    bad = data_request(0, bytes(num_bytes), pb.IMAGE_ENCODING_RAW_RGB, width=64, height=48)
    told = ("frame.data", f"{num_bytes} bytes", "64x48", "9216")
    await assert_frame_refused(service, bad, INVALID_ARGUMENT, "frame.data", *told)


@pytest.mark.parametrize(
    ("size", "field"),
    [((0, 0), "frame.width"), ((0, 48), "frame.width"), ((64, 0), "frame.height")],
)
async def test_a_raw_frame_without_its_size(
    service: RunningService, size: tuple[int, int], field: str
) -> None:
    bad = data_request(
        0, VIDEO[0].tobytes(), pb.IMAGE_ENCODING_RAW_RGB, width=size[0], height=size[1]
    )
    await assert_frame_refused(service, bad, INVALID_ARGUMENT, field, field, "is 0")


@pytest.mark.parametrize(("stated", "field"), [((63, 48), "width"), ((64, 47), "height")])
async def test_an_image_of_another_size_than_stated(
    service: RunningService, stated: tuple[int, int], field: str
) -> None:
    bad = data_request(0, PNG, width=stated[0], height=stated[1])
    told = (f"frame.{field}", str(stated[0] if field == "width" else stated[1]))
    await assert_frame_refused(service, bad, INVALID_ARGUMENT, "frame.data", *told)


@pytest.mark.parametrize("index", [0, 4, 5])
async def test_an_index_that_does_not_rise(service: RunningService, index: int) -> None:
    call = service.call()
    await call.open()
    await call.send(*(frame_request(n, VIDEO[0]) for n in (3, 5, index, 6)))
    for good in (3, 5):
        assert (await call.next_result()).frame_index == good
    result = await call.next_result()
    assert (result.frame_index, result.error.code) == (index, INVALID_ARGUMENT)
    assert result.error.field == "frame.index"
    assert result.error.message.startswith(f"frame.index is {index}, must be at least 6")
    last = await call.next_result()
    assert (last.frame_index, last.num_memory_frames) == (6, 2)
    assert (await call.close()).num_label_maps == 3


async def test_an_index_after_which_there_is_none(service: RunningService) -> None:
    bad = data_request(2**64 - 1, JPEG)
    told = ("frame.index", str(2**64 - 1), f"at most {2**64 - 2}")
    await assert_frame_refused(service, bad, INVALID_ARGUMENT, "frame.index", *told)


async def test_the_last_index_is_taken_and_its_session_can_be_shown(
    service: RunningService,
) -> None:
    call = service.call()
    await call.open(session_id="last")
    await call.send(frame_request(2**64 - 2, VIDEO[0]))
    assert (await call.next_result()).frame_index == 2**64 - 2
    stub = SegmentationServiceStub(service.channel)
    shown = await stub.GetSession(pb.GetSessionRequest(session_id="last"), timeout=10)
    assert shown.session.next_frame_index == 2**64 - 1
    await call.close()


async def test_the_frame_size_changes_in_mid_stream(service: RunningService) -> None:
    call = service.call()
    await call.open()
    turned = make_video(1, 64, 48)[0]
    await call.send(
        frame_request(0, VIDEO[0]), frame_request(1, turned), frame_request(2, VIDEO[1])
    )
    await call.next_result()
    error = await call.next_error()
    assert (error.code, error.field) == (INVALID_ARGUMENT, "frame.data")
    assert "48x64" in error.message
    assert "64x48" in error.message
    assert (await call.next_result()).num_memory_frames == 1
    await call.close()


async def test_the_first_frames_are_bad_and_the_size_is_that_of_the_first_good_one(
    service: RunningService,
) -> None:
    call = service.call()
    await call.open()
    await call.send(data_request(0, PNG[:50]), frame_request(0, make_video(1, 32, 32)[0]))
    await call.next_error()
    assert (await call.next_result()).label_map.height == 32
    await call.close()


async def test_no_memory_is_left_for_frames_of_this_size(start_service: StartService) -> None:
    service = await start_service(max_memory_bytes=MIB)
    async with undisturbed_bystander(service):
        call = service.call()
        await call.open()
        await call.send(frame_request(0, make_video(1, 512, 512)[0]), frame_request(0, VIDEO[0]))
        told = ("bytes of memory", str(MIB))
        await assert_refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED, *told)


async def test_the_memory_of_all_sessions_is_bounded_and_they_take_turns(
    start_service: StartService,
) -> None:
    service = await start_service(max_memory_bytes=MIB)
    async with undisturbed_bystander(service):
        calls = [service.call() for _ in range(20)]
        for call in calls:
            await call.open()
        for index, image in enumerate(VIDEO):
            for call in calls:
                await call.send(frame_request(index, image))
            results = [await call.next_result() for call in calls]
            assert len({result.label_map.digest for result in results}) == 1
            assert {result.num_memory_frames for result in results} == {min(index, MEMORY_LENGTH)}
        assert await service.metric("segstream_memory_bytes") <= MIB
        assert await service.metric("segstream_memory_moves_total", kind="restore") > 0
        for call in calls:
            await call.close()


async def test_a_session_that_can_never_fit_is_refused(start_service: StartService) -> None:
    service = await start_service(max_memory_bytes=MIB)
    call = service.call()
    await call.open()
    await call.send(frame_request(0, np.zeros((720, 1280, 3), np.uint8)))
    await assert_refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED, "bytes of memory", str(MIB))


# What the Python client makes of it


async def test_the_client_raises_what_the_service_raised(start_service: StartService) -> None:
    service = await start_service(max_sessions=1)
    async with service.client() as client, client.stream(session_id="a"):
        with pytest.raises(ExhaustedError) as full:
            await client.stream(session_id="b").__aenter__()
        assert (full.value.limit, full.value.retry_after_seconds) == (1, 1.0)
    async with service.client() as client:
        with pytest.raises(NotFoundError) as unknown:
            await client.stream(model="x").__aenter__()
        assert (unknown.value.field, unknown.value.value) == ("config.model", "x")
        assert unknown.value.retry_after_seconds is None


async def test_the_client_tells_the_limit_that_a_frame_passed(start_service: StartService) -> None:
    service = await start_service(max_image_pixels=48 * 64)
    async with service.client() as client, client.stream() as session:
        [result] = [each async for each in session.segment(make_video(1, 48, 65))]
    assert isinstance(result.error, TooLargeError)
    assert (result.error.field, result.error.limit) == ("frame.data", 48 * 64)


# The wire


async def test_a_message_larger_than_the_limit(service: RunningService) -> None:
    call = service.call()
    await call.open()
    await call.send(data_request(0, bytes(2 * MIB)))
    told = ("larger than max", str(MIB))
    await assert_refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED, *told)
    await service.wait_for_metric("segstream_streams", 1)


async def test_a_first_message_larger_than_the_limit(service: RunningService) -> None:
    call = await service.call().send(data_request(0, bytes(2 * MIB)))
    await assert_refused(call, grpc.StatusCode.RESOURCE_EXHAUSTED, str(MIB))


async def test_the_client_leaves_while_its_frame_is_in_the_engine(service: RunningService) -> None:
    call = service.call()
    await call.open(session_id="leaver")
    await call.send(*(frame_request(index, image) for index, image in enumerate(VIDEO)))
    await call.next_result()
    call.cancel()
    await service.wait_for_metric("segstream_streams_ended_total", 1, reason="client_gone")
    await service.wait_for_metric("segstream_streams", 1)
    again = service.call()
    await again.open(session_id="leaver")
    await again.send(frame_request(0, VIDEO[0]))
    assert (await again.next_result()).num_memory_frames == 0
    await again.close()


async def test_the_pages_of_a_client_that_left_are_kept_while_the_engine_is_on_them(
    start_service: StartService,
) -> None:
    service = await start_service()
    service.engine.gate.clear()
    call = service.call()
    await call.open()
    await call.send(frame_request(0, VIDEO[0]))
    await service.engine.wait_for_steps(1)
    call.cancel()
    await service.wait_for_metric("segstream_streams_ended_total", 1, reason="client_gone")
    assert await service.metric("segstream_pages_used") == 1
    service.engine.gate.set()
    await service.wait_for_metric("segstream_streams", 0)
    assert await service.metric("segstream_pages_used") == 1, "the session may be resumed"
    [session] = (await service.http.get("/v1/sessions")).json()["sessions"]
    assert (await service.http.delete(f"/v1/sessions/{session['session_id']}")).status_code == 204
    assert await service.metric("segstream_pages_used") == 0


async def test_the_client_leaves_before_it_says_anything(service: RunningService) -> None:
    call = service.call()
    call.cancel()
    assert (await call.status())[0] is grpc.StatusCode.CANCELLED


async def test_the_client_is_done_at_once(service: RunningService) -> None:
    call = await service.call().send(config_request(), frame_request(0, VIDEO[0]))
    await call.half_close()
    assert (await call.next()).HasField("ready")
    assert (await call.next_result()).HasField("label_map")
    assert (await call.read_end()).num_label_maps == 1


async def test_a_connection_that_breaks(service: RunningService) -> None:
    channel = grpc.aio.insecure_channel(
        service.grpc_address, (("grpc.use_local_subchannel_pool", 1),)
    )
    call = RawCall(
        channel.stream_stream(
            "/segstream.v1.SegmentationService/StreamSegment",
            request_serializer=pb.StreamSegmentRequest.SerializeToString,
            response_deserializer=pb.StreamSegmentResponse.FromString,
        )()
    )
    await call.open()
    await call.send(frame_request(0, VIDEO[0]))
    await channel.close()
    await service.wait_for_metric("segstream_streams_ended_total", 1, reason="client_gone")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00" * 5000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 5000,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=["zeroes", "http1", "broken_http2", "tls"],
)
async def test_garbage_on_the_port(service: RunningService, garbage: bytes) -> None:
    host, port = service.grpc_address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(garbage)
    writer.write_eof()
    async with asyncio.timeout(10):
        assert await is_closed_by_peer(reader)
    writer.close()


async def test_bytes_that_are_no_message(service: RunningService) -> None:
    call: Any = service.channel.stream_stream("/segstream.v1.SegmentationService/StreamSegment")()
    await call.write(b"\xff\xff\xff not protobuf")
    async with asyncio.timeout(10):
        code = await call.code()
    assert code is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method(service: RunningService) -> None:
    call: Any = service.channel.unary_unary("/segstream.v1.SegmentationService/Segment")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_client_that_never_reads(service: RunningService) -> None:
    call = service.call()
    await call.send(config_request(), *(frame_request(n, VIDEO[n % 4]) for n in range(50)))
    call.cancel()
    await service.wait_for_metric("segstream_streams", 1)


async def is_closed_by_peer(reader: asyncio.StreamReader) -> bool:
    """Read until the other side closes the connection, in order or not."""
    try:
        await reader.read()
    except ConnectionError:
        return True
    return reader.at_eof()
