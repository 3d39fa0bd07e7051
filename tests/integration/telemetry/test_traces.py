"""Traces from client to engine, as a collector gets them."""

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from websockets.asyncio.client import connect

from segstream.bench.local_redis import free_port
from segstream.client import ImageEncoding
from segstream.telemetry.tracing import Tracing, start_tracing
from segstream.trace_context import current_headers
from tests.integration.conftest import StartService
from tests.support.clips import write_clip
from tests.support.models import STREET, digests, make_video, segment_alone
from tests.support.otlp import OtlpReceiver, ReceivedSpan, otlp_receiver
from tests.support.service import TIMEOUT_SECONDS, RunningService
from tests.support.websocket import WebSocketCall, frame_message

VIDEO = make_video(6)
CALL = "segstream.v1.SegmentationService/StreamSegment"
STAGES = {"image_decode", "wait", "memory_hold", "engine_step", "label_map_encode"}
ENGINE_STAGES = {"queue", "encode", "memory_read", "fuse_decode"}
ALL_FRAMES = {"trace_ratio": 1.0, "max_traced_frames_per_second": 1e6}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    with otlp_receiver() as receiver:
        yield receiver


@pytest.fixture
def caller(collector: OtlpReceiver) -> Iterator[Tracing]:
    """The traces of a program that calls the service."""
    tracing = start_tracing(
        f"{collector.url}/v1/traces",
        ratio=1.0,
        max_frames_per_second=1.0,
        service_name="caller",
        version="1",
        instance="a",
    )
    yield tracing
    tracing.close()


async def received(
    collector: OtlpReceiver, is_there: Callable[[list[ReceivedSpan]], object]
) -> list[ReceivedSpan]:
    return await asyncio.to_thread(collector.wait_for, is_there)


def has(*names: str) -> Callable[[list[ReceivedSpan]], bool]:
    return lambda spans: set(names) <= {span.name for span in spans}


def count(spans: list[ReceivedSpan], name: str) -> int:
    return sum(span.name == name for span in spans)


def children(spans: list[ReceivedSpan], parent: ReceivedSpan) -> list[ReceivedSpan]:
    return [span for span in spans if span.parent_id == parent.span_id]


def the(spans: list[ReceivedSpan], name: str) -> ReceivedSpan:
    [span] = (span for span in spans if span.name == name)
    return span


def assert_hangs_together(spans: list[ReceivedSpan]) -> None:
    """One trace: one root, and every parent is there."""
    assert len({span.trace_id for span in spans}) == 1
    ids = {span.span_id for span in spans}
    assert [span.name for span in spans if span.parent_id not in ids] == ["caller"]
    assert all(span.start_ns <= span.end_ns for span in spans)


def assert_is_whole(spans: list[ReceivedSpan], frame: ReceivedSpan) -> None:
    """Every stage of the frame is under it, those of the engine under its step."""
    stages = children(spans, frame)
    assert {span.name for span in stages} == STAGES
    assert {span.name for span in children(spans, the(stages, "engine_step"))} == ENGINE_STAGES
    assert frame.resource["service.name"] == "segstream"


async def stream(service: RunningService, caller: Tracing, **options: Any) -> list[bytes]:
    """The digests of a video, streamed under a span of the caller's."""
    with caller.tracer.start_as_current_span("caller"):
        async with (
            service.client() as client,
            client.stream(frame_encoding=ImageEncoding.RAW_RGB, **options) as session,
        ):
            return [result.digest async for result in session.segment(VIDEO)]


async def test_grpc_from_client_to_engine(
    start_service: StartService, collector: OtlpReceiver, caller: Tracing
) -> None:
    service = await start_service(otlp_endpoint=collector.url, **ALL_FRAMES)
    await stream(service, caller, session_id="a")
    spans = await received(
        collector, lambda spans: has("caller", CALL)(spans) and count(spans, "frame") == 6
    )
    assert_hangs_together(spans)
    call = the(spans, CALL)
    assert call.parent_id == the(spans, "caller").span_id
    assert call.attributes["segstream.session_id"] == "a"
    assert call.attributes["rpc.response.status_code"] == "OK"
    frames = children(spans, call)
    assert [frame.name for frame in frames] == ["frame"] * 6
    for frame in frames:
        assert_is_whole(spans, frame)
    assert {frame.attributes["segstream.frame_index"] for frame in frames} == set("012345")


async def test_a_frame_may_belong_to_a_trace_of_its_own(
    start_service: StartService, collector: OtlpReceiver, caller: Tracing
) -> None:
    service = await start_service(otlp_endpoint=collector.url, **ALL_FRAMES)
    async with (
        service.client() as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB) as session,
    ):
        for image in VIDEO[:2]:
            with caller.tracer.start_as_current_span("capture"):
                async for result in session.segment([image]):
                    assert result.error is None
    spans = await received(
        collector, lambda spans: count(spans, "frame") == count(spans, "capture") == 2
    )
    captures = {span.span_id: span for span in spans if span.name == "capture"}
    for frame in collector.named("frame"):
        assert frame.trace_id == captures.pop(frame.parent_id).trace_id


async def test_websocket_from_client_to_engine(
    start_service: StartService, collector: OtlpReceiver, caller: Tracing
) -> None:
    service = await start_service(otlp_endpoint=collector.url, **ALL_FRAMES)
    url = service.service.addresses["http"].replace("http", "ws") + "/v1/stream"
    with caller.tracer.start_as_current_span("caller"):
        headers = current_headers()
        async with connect(url, additional_headers=headers, max_size=None, proxy=None) as socket:
            call = WebSocketCall(socket)
            await call.open(session_id="a")
            await call.send(frame_message(0, VIDEO[0]))
            await call.next_label_map()
            with caller.tracer.start_as_current_span("capture"):
                own = current_headers()["traceparent"]
            await call.send(frame_message(1, VIDEO[1], traceparent=own))
            await call.next_label_map()
            await call.end()
    spans = await received(
        collector,
        lambda spans: (
            has("caller", "capture", "WS /v1/stream")(spans) and count(spans, "frame") == 2
        ),
    )
    assert_hangs_together(spans)
    connection = the(spans, "WS /v1/stream")
    assert connection.parent_id == the(spans, "caller").span_id
    assert connection.attributes["segstream.session_id"] == "a"
    parents = [connection.span_id, the(spans, "capture").span_id]
    for index, frame in enumerate(sorted(collector.named("frame"), key=lambda s: s.start_ns)):
        assert frame.parent_id == parents[index]
        assert_is_whole(spans, frame)


async def test_a_clip_keeps_its_trace_through_the_queue(
    start_service: StartService, collector: OtlpReceiver, caller: Tracing, tmp_path: Path
) -> None:
    service = await start_service(otlp_endpoint=collector.url, **ALL_FRAMES)
    body = write_clip(tmp_path / "ride.mp4", 5).read_bytes()
    with caller.tracer.start_as_current_span("caller"):
        answer = await service.http.post("/v1/clips", content=body, headers=current_headers())
    async with asyncio.timeout(3 * TIMEOUT_SECONDS):
        while (await service.http.get(answer.headers["location"])).json()["state"] != "done":
            continue  # the request has let the service go on
    spans = await received(
        collector, lambda spans: has("caller", "clip_job", "assemble_results")(spans)
    )
    spans = [span for span in spans if not span.name.startswith("GET ")]
    assert_hangs_together(spans)
    job = the(spans, "clip_job")
    assert job.parent_id == the(spans, "POST /v1/clips").span_id
    assert job.attributes["segstream.clip_id"] == answer.json()["id"]
    frames = [span for span in children(spans, job) if span.name == "frame"]
    assert len(frames) == 5
    for frame in frames:
        assert_is_whole(spans, frame)


async def test_a_single_image_and_its_fault(
    start_service: StartService, collector: OtlpReceiver
) -> None:
    service = await start_service(otlp_endpoint=collector.url, **ALL_FRAMES)
    assert (await service.http.post("/v1/images", content=b"no image")).status_code == 400
    spans = await received(collector, has("POST /v1/images"))
    frame = the(spans, "frame")
    assert frame.parent_id == the(spans, "POST /v1/images").span_id
    assert frame.is_error
    assert frame.attributes["error.type"] == "InvalidInputError"


async def test_of_a_fast_stream_few_frames_are_traced(
    start_service: StartService, collector: OtlpReceiver, caller: Tracing
) -> None:
    service = await start_service(
        otlp_endpoint=collector.url, trace_ratio=1.0, max_traced_frames_per_second=1e-4
    )
    await stream(service, caller)
    spans = await received(collector, has(CALL, "caller"))
    assert count(spans, "frame") == count(spans, "engine_step") == 1
    assert the(spans, "frame").attributes["segstream.frame_index"] == "0"


async def test_the_caller_decides_and_else_the_ratio(
    start_service: StartService, collector: OtlpReceiver, caller: Tracing
) -> None:
    service = await start_service(otlp_endpoint=collector.url, **{**ALL_FRAMES, "trace_ratio": 0})
    for headers in ({}, {"traceparent": f"00-{'1' * 32}-{'2' * 16}-00"}, {"traceparent": "bad"}):
        assert (await service.http.get("/v1/models", headers=headers)).status_code == 200
    await stream(service, no_caller())
    await stream(service, caller)
    spans = await received(
        collector, lambda spans: has("caller", CALL)(spans) and count(spans, "frame") == 6
    )
    assert_hangs_together(spans)


async def test_probes_and_scrapes_are_not_traced_nor_what_is_secret(
    start_service: StartService, collector: OtlpReceiver
) -> None:
    service = await start_service(otlp_endpoint=collector.url, **ALL_FRAMES)
    for path in ("/livez", "/readyz", "/metrics", "/", "/v1/models?key=secret"):
        assert (await service.http.get(path)).status_code == 200
    spans = await received(collector, has("GET /v1/models"))
    assert [span.name for span in spans] == ["GET /v1/models"]
    assert "secret" not in str(spans)


async def test_a_collector_that_hangs_holds_nobody_up(
    start_service: StartService, collector: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "8")
    service = await start_service(otlp_endpoint=collector.url, **ALL_FRAMES)
    collector.gate.clear()
    assert (await service.http.get("/v1/models")).status_code == 200
    await asyncio.to_thread(wait_for_request, collector)
    expected = digests(segment_alone(service.models[STREET], VIDEO))
    for _ in range(3):  # far more spans than the queue holds
        assert await stream(service, no_caller()) == expected
    assert not collector.spans
    await service.stop()


async def test_without_a_collector_frames_are_answered(start_service: StartService) -> None:
    service = await start_service(otlp_endpoint=f"http://127.0.0.1:{free_port()}", **ALL_FRAMES)
    expected = digests(segment_alone(service.models[STREET], VIDEO))
    assert await stream(service, no_caller()) == expected
    await service.stop()


def no_caller() -> Tracing:
    return Tracing(trace.NoOpTracerProvider(), trace.NoOpTracer())


def wait_for_request(collector: OtlpReceiver) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not collector.num_requests:
        assert time.monotonic() < deadline
        time.sleep(0.02)
