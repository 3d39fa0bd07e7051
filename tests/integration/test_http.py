"""The HTTP wire."""

import asyncio
import io
import json
import re
from collections.abc import Mapping
from typing import Any

import httpx
import numpy as np
import PIL.Image
import pytest
from prometheus_client.parser import text_string_to_metric_families

from segstream import __version__
from segstream.label_sets import CAMVID, CITYSCAPES
from segstream.media.images import ImageEncoding, encode_image, fit_height
from segstream.media.label_maps import LabelMap, resize_label_map
from segstream.media.overlay import draw_overlay
from segstream.models import LMANet
from tests.integration.conftest import StartService
from tests.support.models import (
    DRIVE,
    MEMORY_LENGTH,
    STREET,
    WINDOW_SIZE,
    make_video,
    segment_alone,
)
from tests.support.requests import frame_request
from tests.support.service import RunningService, undisturbed_bystander

MIB = 2**20
[IMAGE] = make_video(1)
PNG = encode_image(IMAGE, ImageEncoding.PNG)
PROBLEM = "application/problem+json"


def picture(response: httpx.Response) -> PIL.Image.Image:
    return PIL.Image.open(io.BytesIO(response.content))


def ids_in(response: httpx.Response) -> LabelMap:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "image/png"
    decoded = picture(response)
    assert decoded.mode == "P"
    return np.array(decoded)


def assert_problem(response: httpx.Response, status: int, *told: str, field: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == PROBLEM
    problem = response.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem.get("field", "") == field
    assert set(problem) <= {"title", "status", "detail", "reason", "field", "value", "limit"}
    for part in told:
        assert part in problem["detail"]


# Images


@pytest.mark.parametrize("encoding", [ImageEncoding.PNG, ImageEncoding.JPEG])
async def test_an_image_gets_its_label_map(
    service: RunningService, models: Mapping[str, LMANet], encoding: ImageEncoding
) -> None:
    body = encode_image(IMAGE, encoding)
    decoded = np.array(PIL.Image.open(io.BytesIO(body)))
    response = await service.http.post("/v1/images", content=body)
    np.testing.assert_array_equal(ids_in(response), segment_alone(models[STREET], [decoded])[0])


async def test_the_label_map_shows_the_colours_of_its_classes(service: RunningService) -> None:
    response = await service.http.post("/v1/images", content=PNG)
    ids = ids_in(response)
    colours = np.array([label.colour for label in CITYSCAPES.labels], np.uint8)
    np.testing.assert_array_equal(picture(response).convert("RGB"), colours[ids])


async def test_the_model_and_the_id_space_are_chosen_in_the_query(
    service: RunningService, models: Mapping[str, LMANet]
) -> None:
    [drive] = segment_alone(models[DRIVE], [IMAGE])
    [street] = segment_alone(models[STREET], [IMAGE])
    response = await service.http.post("/v1/images", params={"model": DRIVE}, content=PNG)
    np.testing.assert_array_equal(ids_in(response), drive)
    response = await service.http.post("/v1/images", params={"id_space": "label_id"}, content=PNG)
    label_ids = np.array([label.label_id for label in CITYSCAPES.labels])
    np.testing.assert_array_equal(ids_in(response), label_ids[street])


async def test_a_high_image_may_be_segmented_smaller(
    service: RunningService, models: Mapping[str, LMANet]
) -> None:
    [image] = make_video(1, 96, 128)
    [small] = segment_alone(models[STREET], [fit_height(image, 32)])
    response = await service.http.post(
        "/v1/images",
        params={"max_working_height": 32},
        content=encode_image(image, ImageEncoding.PNG),
    )
    np.testing.assert_array_equal(ids_in(response), resize_label_map(small, 128, 96))


async def test_an_overlay_is_a_jpeg_of_the_image_with_its_classes(
    service: RunningService, models: Mapping[str, LMANet]
) -> None:
    [label_map] = segment_alone(models[STREET], [IMAGE])
    for id_space in ("train_id", "label_id"):
        response = await service.http.post(
            "/v1/images", params={"output": "overlay", "id_space": id_space}, content=PNG
        )
        assert response.status_code == 200
        assert response.headers["content-type"] == "image/jpeg"
        overlay = np.array(picture(response), np.int16)
        wanted = draw_overlay(IMAGE, label_map, CITYSCAPES)
        assert np.mean(np.abs(overlay - wanted)) < np.mean(np.abs(overlay - IMAGE)) / 4


async def test_an_overlay_may_be_as_large_as_the_service_allows(
    start_service: StartService,
) -> None:
    service = await start_service(max_image_pixels=20_000_000)
    high = np.zeros((4200, 2304, 3), np.uint8)
    response = await service.http.post(
        "/v1/images",
        params={"output": "overlay", "max_working_height": 16},
        content=encode_image(high, ImageEncoding.PNG),
    )
    assert response.status_code == 200, response.text
    assert picture(response).size == (2304, 4200)


async def test_stage_times_come_in_the_server_timing_header(service: RunningService) -> None:
    response = await service.http.post("/v1/images", content=PNG)
    entries = response.headers["server-timing"].split(", ")
    times = {name: float(ms) for name, ms in (entry.split(";dur=") for entry in entries)}
    assert times["total"] >= times["encode"] > 0


async def test_images_leave_no_memory_behind(service: RunningService) -> None:
    first, second = [await service.http.post("/v1/images", content=PNG) for _ in range(2)]
    assert first.content == second.content
    assert await service.metric("segstream_streams") == 0
    assert await service.metric("segstream_pages_used") == 0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "empty"),
        (b"GIF89a...", "neither JPEG nor PNG"),
        (PNG[: len(PNG) // 2], "truncated or corrupt PNG"),
        (encode_image(IMAGE, ImageEncoding.JPEG)[:100], "truncated or corrupt JPEG"),
    ],
    ids=["empty", "gif", "png", "jpeg"],
)
async def test_a_body_that_is_no_image(service: RunningService, body: bytes, told: str) -> None:
    async with undisturbed_bystander(service):
        for output in ("label_map", "overlay"):
            response = await service.http.post(
                "/v1/images", params={"output": output}, content=body
            )
            assert_problem(response, 400, told, "body", field="body")


async def test_an_image_with_too_many_pixels(start_service: StartService) -> None:
    service = await start_service(max_image_pixels=64 * 47)
    response = await service.http.post("/v1/images", content=PNG)
    assert_problem(response, 413, "64x48", "3072", "3008", field="body")
    assert response.json()["limit"] == 3008


async def test_an_unknown_model(service: RunningService) -> None:
    response = await service.http.post("/v1/images", params={"model": "x"}, content=PNG)
    assert_problem(response, 404, "'x'", STREET, DRIVE, field="model")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("output", "picture", "label_map"),
        ("id_space", "3", "train_id"),
        ("max_working_height", "-1", "greater than or equal to 0"),
        ("max_working_height", "high", "integer"),
        ("max_working_height", "4294967296", "less than or equal to"),
    ],
)
async def test_a_bad_query(service: RunningService, name: str, value: str, told: str) -> None:
    response = await service.http.post("/v1/images", params={name: value}, content=PNG)
    assert_problem(response, 422, f"{name} is", value, told, field=name)


async def test_too_many_sessions_are_told_with_a_time_to_come_back(
    start_service: StartService,
) -> None:
    service = await start_service(max_sessions=1)
    async with undisturbed_bystander(service):
        response = await service.http.post("/v1/images", content=PNG)
        assert_problem(response, 429, "1 sessions")
        assert int(response.headers["retry-after"]) >= 1


async def test_a_body_larger_than_the_limit(start_service: StartService) -> None:
    service = await start_service(max_message_bytes=MIB)
    response = await service.http.post("/v1/images", content=bytes(MIB + 1))
    assert_problem(response, 413, str(MIB), field="body")
    response = await service.http.post("/v1/images", content=bytes(MIB))
    assert_problem(response, 400, "neither JPEG nor PNG", field="body")


async def test_a_body_that_states_to_be_too_large_is_not_waited_for(
    start_service: StartService,
) -> None:
    service = await start_service(max_message_bytes=MIB)
    head = f"POST /v1/images HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB + 1}\r\n\r\n"
    status, body = await answer_to(service, head.encode() + b"only the beginning")
    assert status == 413
    assert str(MIB) in json.loads(body)["detail"]


async def test_a_body_without_a_stated_size_is_given_up_when_it_grows_too_large(
    start_service: StartService,
) -> None:
    service = await start_service(max_message_bytes=MIB)
    head = b"POST /v1/images HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    status, body = await answer_to(service, head + 17 * chunk)
    assert status == 413
    assert json.loads(body)["field"] == "body"


# Errors


@pytest.mark.parametrize("path", ["/nothing", "/v1/images/3", "/static-offline-docs/x"])
async def test_an_unknown_route(service: RunningService, path: str) -> None:
    assert_problem(await service.http.get(path, follow_redirects=True), 404)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/images", "POST"), ("DELETE", "/v1/models", "GET"), ("POST", "/livez", "GET")],
)
async def test_a_wrong_method(
    service: RunningService, method: str, path: str, allowed: str
) -> None:
    response = await service.http.request(method, path)
    assert_problem(response, 405)
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/", "/livez", "/v1/models", "/docs", "/web/js/main.js"])
async def test_head_is_get_without_the_body(service: RunningService, path: str) -> None:
    whole, head = await service.http.get(path), await service.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("content-type", "content-length"):
        assert head.headers[name] == whole.headers[name]


async def test_head_of_what_is_not_there(service: RunningService) -> None:
    for path, status in (("/v1/clips/x/overlay", 404), ("/v1/images", 405), ("/nothing", 404)):
        head = await service.http.head(path)
        assert (head.status_code, head.content) == (status, b"")
        assert head.headers["content-type"] == PROBLEM


async def test_head_does_not_wait_for_the_end_of_a_stream(start_service: StartService) -> None:
    service = await start_service(clip_workers=0)
    url = (await service.http.post("/v1/clips", content=PNG)).headers["location"]
    head = await service.http.head(f"{url}/events")
    assert (head.status_code, head.headers["content-type"]) == (
        200,
        "text/event-stream; charset=utf-8",
    )
    assert (await service.http.get(url)).json()["state"] == "queued"


async def test_the_stream_without_an_upgrade(service: RunningService) -> None:
    response = await service.http.get("/v1/stream")
    assert_problem(response, 426, "opening handshake")
    assert response.headers["upgrade"] == "websocket"


async def test_every_method_of_a_path_is_allowed(service: RunningService) -> None:
    response = await service.http.request("PUT", "/v1/clips/x")
    assert_problem(response, 405, "PUT", "DELETE, GET")
    assert response.headers["allow"] == "DELETE, GET"


# Models, probes, metrics


async def test_models_are_listed_with_their_classes(service: RunningService) -> None:
    listed = (await service.http.get("/v1/models")).json()["models"]
    assert [(each["name"], each["is_default"]) for each in listed] == [
        (STREET, True),
        (DRIVE, False),
    ]
    street, drive = listed
    assert (street["memory_length"], street["window_size"]) == (MEMORY_LENGTH, WINDOW_SIZE)
    assert (street["label_set"], drive["label_set"]) == (CITYSCAPES.name, CAMVID.name)
    for each, label_set in ((street, CITYSCAPES), (drive, CAMVID)):
        assert each["labels"] == [
            {
                "train_id": train_id,
                "label_id": label.label_id,
                "name": label.name,
                "colour": list(label.colour),
            }
            for train_id, label in enumerate(label_set.labels)
        ]


async def test_a_running_service_is_live_and_ready(service: RunningService) -> None:
    for path, status in (("/livez", "live"), ("/readyz", "ready")):
        response = await service.http.get(path)
        assert (response.status_code, response.json()) == (200, {"status": status})


async def test_a_draining_service_is_live_but_not_ready(service: RunningService) -> None:
    service.engine.gate.clear()
    call = service.call()
    await call.open()
    await call.send(frame_request(0, IMAGE))
    await service.engine.wait_for_steps(1)
    stopping = service.stop()
    await wait_until_not_ready(service)
    response = await service.http.get("/readyz")
    assert_problem(response, 503, "shutting down")
    assert int(response.headers["retry-after"]) >= 1
    assert_problem(await service.http.post("/v1/images", content=PNG), 503, "shutting down")
    assert (await service.http.get("/livez")).status_code == 200
    assert await service.metric("segstream_streams") == 1
    assert not stopping.done()
    service.engine.gate.set()
    assert (await call.next_result()).HasField("label_map")
    await call.read_end()
    await stopping


async def test_metrics_are_in_the_prometheus_format(service: RunningService) -> None:
    await service.http.post("/v1/images", content=PNG)
    response = await service.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = {each.name: each for each in text_string_to_metric_families(response.text)}
    assert {
        "segstream_stage_seconds": "histogram",
        "segstream_batch_size": "histogram",
        "segstream_frames": "counter",
        "segstream_streams_ended": "counter",
        "segstream_streams": "gauge",
        "segstream_pages": "gauge",
        "segstream_pages_used": "gauge",
        "segstream_memory_bytes": "gauge",
    }.items() <= {name: family.type for name, family in families.items()}.items()
    assert all(family.documentation for family in families.values())
    del families["segstream_build_info"]
    names = {name for each in families.values() for s in each.samples for name in s.labels}
    assert names <= {"model", "stage", "outcome", "reason", "le", "kind", "tier"}


async def test_errors_of_frames_are_counted_by_kind(service: RunningService) -> None:
    await service.http.post("/v1/images", content=b"no image")
    name = "segstream_frames_total"
    assert await service.metric(name, outcome="InvalidInputError") == 1
    assert await service.metric(name, outcome="ok") == 0


# Documentation


async def test_the_documentation_page_works_without_another_host(service: RunningService) -> None:
    page = await service.http.get("/docs")
    assert page.status_code == 200
    assets = re.findall(r"""(?:src|href)\s*=\s*["']([^"']+)["']""", page.text)
    assert len(assets) >= 2
    for asset in assets:
        assert asset.startswith("/")
        assert not asset.startswith("//")
        answer = await service.http.get(asset)
        assert answer.status_code == 200, asset
        assert answer.content
    assert not re.search(r"https?://|fonts\.googleapis", page.text)


async def test_every_route_is_in_the_openapi_document(service: RunningService) -> None:
    document = (await service.http.get("/openapi.json")).json()
    assert document["openapi"].startswith("3.")
    assert (document["info"]["title"], document["info"]["version"]) == ("segstream", __version__)
    operations = {
        (method, path): operation
        for path, item in document["paths"].items()
        for method, operation in item.items()
    }
    assert operations.keys() >= {
        ("post", "/v1/images"),
        ("post", "/v1/clips"),
        ("get", "/v1/clips"),
        ("get", "/v1/clips/{clip_id}"),
        ("get", "/v1/clips/{clip_id}/events"),
        ("get", "/v1/clips/{clip_id}/overlay"),
        ("get", "/v1/clips/{clip_id}/label_maps"),
        ("get", "/v1/clips/{clip_id}/report"),
        ("get", "/v1/clips/{clip_id}/report.html"),
        ("delete", "/v1/clips/{clip_id}"),
        ("get", "/v1/models"),
        ("get", "/v1/sessions"),
        ("get", "/v1/sessions/{session_id}"),
        ("delete", "/v1/sessions/{session_id}"),
        ("get", "/livez"),
        ("get", "/readyz"),
        ("get", "/metrics"),
    }
    for operation in operations.values():
        assert operation["description"]
        assert {"200", "202", "204"} & set(operation["responses"])
    assert_all_references_resolve(document)


async def test_problems_are_documented_in_the_form_they_have(service: RunningService) -> None:
    document = (await service.http.get("/openapi.json")).json()
    responses = document["paths"]["/v1/images"]["post"]["responses"]
    assert set(responses) >= {"200", "400", "404", "408", "413", "422", "429", "503"}
    for status, response in responses.items():
        if status != "200":
            assert set(response["content"]) == {PROBLEM}, status
            schema = response["content"][PROBLEM]["schema"]
            assert schema == {"$ref": "#/components/schemas/ProblemSchema"}
    schemas = document["components"]["schemas"]
    assert set(schemas["ProblemSchema"]["required"]) == {"title", "status", "detail"}


def assert_all_references_resolve(document: dict[str, Any]) -> None:
    for reference in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(document)):
        place: Any = document
        for part in reference.split("/"):
            place = place[part]
        assert place


async def wait_until_not_ready(service: RunningService) -> None:
    async with asyncio.timeout(10):
        while (await service.http.get("/readyz")).status_code != 503:
            continue  # the request has let the service go on


async def answer_to(service: RunningService, request: bytes) -> tuple[int, bytes]:
    """Send bytes without the end of a request, and read the whole answer."""
    host, port = service.service.addresses["http"].removeprefix("http://").split(":")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head.lower())
        assert length
        body = await reader.readexactly(int(length[1]))
        writer.close()
        await writer.wait_closed()
    return int(head.split()[1]), body
