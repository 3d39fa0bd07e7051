"""Shutdown: what was taken is answered, what is open is told, what listens is closed."""

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path

import grpc
import pytest

from segstream.v1 import segmentation_pb2 as pb
from segstream.v1.segmentation_pb2_grpc import SegmentationServiceStub
from tests.integration.conftest import StartService
from tests.support.models import make_video
from tests.support.process import serving
from tests.support.requests import config_request, frame_request
from tests.support.service import RawCall, RunningService

VIDEO = make_video(8)


async def test_open_streams_get_what_was_taken_and_the_reason(service: RunningService) -> None:
    service.engine.gate.clear()
    calls = [service.call() for _ in range(3)]
    for call in calls:
        await call.open()
        await call.send(frame_request(0, VIDEO[0]))
    await service.engine.wait_for_steps(3)
    stopping = service.stop()
    service.engine.gate.set()
    for call in calls:
        assert (await call.next_result()).HasField("label_map")
        ended = await call.read_end()
        assert (ended.reason, ended.num_label_maps) == (pb.SESSION_END_REASON_SHUTDOWN, 1)
    async with asyncio.timeout(10):
        await stopping


async def test_streams_without_frames_in_work_end_at_once(service: RunningService) -> None:
    call = service.call()
    await call.open()
    stopping = service.stop()
    ended = await call.read_end()
    assert (ended.reason, ended.num_label_maps) == (pb.SESSION_END_REASON_SHUTDOWN, 0)
    await stopping


async def test_new_sessions_are_refused_while_draining(service: RunningService) -> None:
    service.engine.gate.clear()
    first, second = service.call(), service.call()
    await first.open()
    await first.send(frame_request(0, VIDEO[0]))
    await service.engine.wait_for_steps(1)
    stopping = service.stop()
    await second.send(config_request())
    status, text = await second.status()
    assert status is grpc.StatusCode.UNAVAILABLE
    assert "shutting down" in text
    service.engine.gate.set()
    await first.next_result()
    await first.read_end()
    await stopping


async def test_a_stuck_stream_does_not_outlast_the_deadline(start_service: StartService) -> None:
    service = await start_service(drain_seconds=0.2)
    service.engine.gate.clear()
    call = service.call()
    await call.open()
    await call.send(frame_request(0, VIDEO[0]))
    await service.engine.wait_for_steps(1)
    async with asyncio.timeout(10):
        await service.stop()
    assert (await call.status())[0] is not grpc.StatusCode.OK


async def test_a_stream_that_never_began_does_not_hold_the_shutdown_up(
    service: RunningService,
) -> None:
    call = service.call()
    other = service.call()
    await other.open()  # and so the first call has arrived as well
    async with asyncio.timeout(10):
        await service.stop()
    assert (await call.status())[0] is not grpc.StatusCode.OK


async def test_a_client_that_reads_nothing_does_not_outlast_the_deadline(
    start_service: StartService,
) -> None:
    service = await start_service(drain_seconds=0.5)
    call = service.call()
    await call.send(config_request(), *(frame_request(n, VIDEO[n % 8]) for n in range(200)))
    async with asyncio.timeout(15):
        await service.stop()
    call.cancel()


async def test_the_ports_are_closed_and_may_be_used_again(start_service: StartService) -> None:
    service = await start_service()
    ports = [int(each.rsplit(":", 1)[1]) for each in service.service.addresses.values()]
    await service.http.get("/livez")
    await service.stop()
    assert_closed(ports)
    again = await start_service(port=ports[0], http_port=ports[1])
    call = again.call()
    await call.open()
    await call.close()


async def test_the_ready_file_lasts_as_long_as_the_service(
    start_service: StartService, tmp_path: Path
) -> None:
    ready_file = tmp_path / "ready.json"
    service = await start_service(ready_file=ready_file)
    assert json.loads(ready_file.read_text()) == service.service.addresses
    assert os.listdir(tmp_path) == ["ready.json"]
    await service.stop()
    assert not ready_file.exists()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_in_order(
    street_checkpoint: Path, tmp_path: Path, signal_number: signal.Signals
) -> None:
    with serving(tmp_path, "--model", street_checkpoint, "--log-format", "json") as served:
        async with grpc.aio.insecure_channel(served.grpc_address) as channel:
            call = RawCall(SegmentationServiceStub(channel).StreamSegment(timeout=60))
            await call.open()
            await call.send(*(frame_request(index, image) for index, image in enumerate(VIDEO)))
            await call.next_result()
            signalled_at = time.monotonic()
            served.process.send_signal(signal_number)
            num_label_maps = 1
            while (response := await call.next()).HasField("result"):
                assert response.result.frame_index == num_label_maps
                assert response.result.HasField("label_map")
                num_label_maps += 1
            assert response.ended.reason == pb.SESSION_END_REASON_SHUTDOWN
            assert response.ended.num_label_maps == num_label_maps
            assert await call.status() == (grpc.StatusCode.OK, "")
        assert await asyncio.to_thread(served.end, 20) == 0
        assert time.monotonic() - signalled_at < 15
        assert not served.ready_file.exists()
        assert_closed(
            [int(url.rsplit(":", 1)[1]) for url in (served.grpc_address, served.http_url)]
        )
        events = [json.loads(line)["event"] for line in served.log.read_text().splitlines()]
        assert [
            e for e in events if e in ("serving", "shutting down", "session ended", "stopped")
        ] == [
            "serving",
            "shutting down",
            "session ended",
            "stopped",
        ]


def assert_closed(ports: list[int]) -> None:
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
