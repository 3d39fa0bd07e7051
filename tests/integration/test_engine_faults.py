"""When the engine fails: the frame or the session at fault is told, and nobody else."""

import grpc
import pytest
from structlog.testing import capture_logs

from segstream.errors import EngineError
from segstream.media.images import ImageEncoding, encode_image
from tests.support.models import STREET, make_video
from tests.support.requests import config_request, frame_request
from tests.support.service import RunningService, undisturbed_bystander

VIDEO = make_video(4)
PNG = encode_image(VIDEO[0], ImageEncoding.PNG)


async def test_a_frame_that_fails_in_the_engine_changes_nothing(service: RunningService) -> None:
    call = service.call()
    await call.open()
    await call.send(frame_request(0, VIDEO[0]))
    await call.next_result()
    service.engine.faults.append(EngineError("the forward failed: on purpose"))
    await call.send(frame_request(1, VIDEO[1]), frame_request(1, VIDEO[1]))
    error = await call.next_error()
    assert error.code == grpc.StatusCode.INTERNAL.value[0]
    assert error.message == "the forward failed: on purpose"
    again = await call.next_result()
    assert (again.frame_index, again.num_memory_frames) == (1, 1)
    assert await service.metric("segstream_pages_used") == 2
    assert (await call.close()).num_label_maps == 2
    assert await service.metric("segstream_frames_total", outcome="EngineError") == 1


async def test_an_error_that_nobody_foresaw_ends_its_session_alone(service: RunningService) -> None:
    call = service.call()
    await call.open(session_id="victim")
    service.engine.faults.append(RuntimeError("a secret of the inside"))
    with capture_logs() as logged:
        await call.send(frame_request(0, VIDEO[0]))
        code, text = await call.status()
    assert "unexpected error" in [entry["event"] for entry in logged]
    assert code is grpc.StatusCode.INTERNAL
    assert "log" in text
    assert "secret" not in text
    async with undisturbed_bystander(service):
        await service.wait_for_metric("segstream_streams_ended_total", 1, reason="fault")
        again = service.call()
        await again.open(session_id="victim")
        await again.close()


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (EngineError("the forward failed: on purpose"), "on purpose"),
        (RuntimeError("a secret of the inside"), "internal error"),
    ],
    ids=["engine", "unforeseen"],
)
async def test_over_http_it_is_a_problem_of_the_service(
    service: RunningService, fault: Exception, told: str
) -> None:
    service.engine.faults.append(fault)
    with capture_logs():
        response = await service.http.post("/v1/images", content=PNG)
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert told in response.json()["detail"]
    assert "secret" not in response.text
    assert (await service.http.post("/v1/images", content=PNG)).status_code == 200
    assert await service.metric("segstream_pages_used") == 0


async def test_without_its_engine_the_service_is_live_but_not_ready(
    service: RunningService,
) -> None:
    call = service.call()
    await call.open()
    await service.engine.stop()
    await call.send(frame_request(0, VIDEO[0]))
    assert (await call.next_error()).code == grpc.StatusCode.UNAVAILABLE.value[0]
    refused = await service.call().send(config_request(model=STREET))
    assert (await refused.status())[0] is grpc.StatusCode.UNAVAILABLE
    unready = await service.http.get("/readyz")
    assert unready.status_code == 503
    assert "lost its engine" in unready.json()["detail"]
    assert (await service.http.get("/livez")).status_code == 200
