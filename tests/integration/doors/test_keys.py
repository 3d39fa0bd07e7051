"""With keys on nothing is open by oversight, and what a key made is its own."""

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from fastapi.routing import APIRoute, APIWebSocketRoute
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from starlette.routing import BaseRoute, Mount, Route
from structlog.testing import capture_logs
from websockets.exceptions import InvalidStatus

from segstream.client import AsyncClient
from segstream.doors.keys import replace_key, revoke_key
from segstream.errors import UnauthenticatedError
from segstream.media.images import ImageEncoding, encode_image
from segstream.v1 import segmentation_pb2 as pb
from segstream.v1.segmentation_pb2_grpc import SegmentationServiceStub
from tests.integration.conftest import StartService
from tests.support.clips import write_clip
from tests.support.doors import bearing, id_of, new_key
from tests.support.models import make_video
from tests.support.requests import frame_request
from tests.support.service import TIMEOUT_SECONDS, RawCall, RunningService
from tests.support.websocket import calling, frame_message

METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND")
PUBLIC_PATHS = {"/", "/livez", "/readyz", "/docs", "/openapi.json"}
PUBLIC_FILES = {"/web/js/main.js", "/static-offline-docs/swagger-ui.css"}
PUBLIC_RPCS = {"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"}
VIDEO = make_video(6)
PNG = encode_image(VIDEO[0], ImageEncoding.PNG)
CLIP_ID = "0" * 32


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


@pytest.fixture
def key(keys: Path) -> str:
    return new_key(keys, "first")


@pytest.fixture
def other(keys: Path, key: str) -> str:
    return new_key(keys, "second")


@pytest.fixture
async def service(start_service: StartService, keys: Path, key: str) -> RunningService:
    return await start_service(api_keys=keys)


def call(service: RunningService, key: str) -> RawCall:
    stub: Any = SegmentationServiceStub(service.channel)
    metadata = (("authorization", f"Bearer {key}"),)
    return RawCall(stub.StreamSegment(timeout=60, metadata=metadata))


# Every route


def paths(routes: list[BaseRoute]) -> Iterator[str]:
    """An address for each route: whatever is not known here is a test to be written."""
    for route in routes:
        if isinstance(route, Mount):
            yield f"{route.path}/anything"
            continue
        assert isinstance(route, Route | APIRoute | APIWebSocketRoute), route
        path = route.path.replace("{clip_id}", CLIP_ID).replace("{session_id}", "a")
        assert "{" not in path, path
        yield path


async def test_every_route_refuses_the_keyless(service: RunningService) -> None:
    app = service.service.http.app
    found = set(paths(app.routes))
    assert len(found) > 15
    assert found >= PUBLIC_PATHS | {"/v1/stream", "/metrics", "/v1/images", "/v1/clips"}
    open_to_all = set()
    for path in sorted(found | PUBLIC_FILES | {"/nothing", "/web", "/docs/"}):
        for method in METHODS:
            answer = await service.http.request(method, path)
            if answer.status_code == 401:
                assert method == "HEAD" or answer.json()["status"] == 401
                assert answer.headers["content-type"] == "application/problem+json"
                assert answer.headers["www-authenticate"].startswith("Bearer")
            else:
                open_to_all.add((method, path))
    folders = {"/web/anything", "/static-offline-docs/anything"}
    assert {path for _, path in open_to_all} == PUBLIC_PATHS | PUBLIC_FILES | folders
    assert {method for method, _ in open_to_all} == {"GET", "HEAD"}


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer segstream_000000000000_" + "A" * 43},
        {"Authorization": "Basic dXNlcjpwYXNz"},
        {"X-Api-Key": "nonsense"},
        {"X-Api-Key": "\xff\xfe"},
        {"Cookie": "key=segstream"},
    ],
    ids=["empty", "unknown", "basic", "nonsense", "no-ascii", "cookie"],
)
async def test_what_is_no_key_is_refused(service: RunningService, headers: dict[str, str]) -> None:
    encoded = {name.encode(): value.encode("latin-1") for name, value in headers.items()}
    assert (await service.http.get("/v1/models", headers=encoded)).status_code == 401


async def test_a_key_is_never_taken_from_the_address(service: RunningService, key: str) -> None:
    for name in ("key", "api_key", "access_token", "authorization", "ticket"):
        assert (await service.http.get("/v1/models", params={name: key})).status_code == 401


async def test_a_key_of_the_right_id_and_another_secret_is_refused(
    service: RunningService, key: str
) -> None:
    wrong = key[:-1] + ("A" if key[-1] != "A" else "B")
    assert (await service.http.get("/v1/models", headers=bearing(wrong))).status_code == 401
    assert (await service.http.get("/v1/models", headers=bearing(key))).status_code == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
async def test_a_key_opens(service: RunningService, key: str, scheme: str) -> None:
    for headers in ({"Authorization": f"{scheme} {key}"}, {"X-Api-Key": key}):
        for path in ("/v1/models", "/v1/sessions", "/v1/clips", "/metrics"):
            assert (await service.http.get(path, headers=headers)).status_code == 200
        answer = await service.http.post("/v1/images", content=PNG, headers=headers)
        assert answer.status_code == 200


async def test_who_is_refused_is_counted(service: RunningService, key: str) -> None:
    await service.http.get("/v1/models")
    service.http.headers.update(bearing(key))
    name = "segstream_refused_total"
    assert await service.metric(name, wire="http", reason="unauthenticated") == 1
    assert id_of(key) not in (await service.http.get("/metrics")).text


async def test_the_description_of_the_api_tells_what_takes_a_key(service: RunningService) -> None:
    document = (await service.http.get("/openapi.json")).json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert document["paths"]["/v1/models"]["get"]["security"] == [{"key": []}]
    assert document["paths"]["/livez"]["get"]["security"] == []
    assert "401" in document["paths"]["/v1/models"]["get"]["responses"]
    assert "401" not in document["paths"]["/livez"]["get"]["responses"]


# Every RPC


def rpcs() -> Iterator[MethodDescriptor]:
    for module, name in (
        (pb, "SegmentationService"),
        (health_pb2, "Health"),
        (reflection_pb2, "ServerReflection"),
    ):
        yield from module.DESCRIPTOR.services_by_name[name].methods


def method_path(method: MethodDescriptor) -> str:
    return f"/{method.containing_service.full_name}/{method.name}"


async def status_of_rpc(
    channel: Any, path: str, metadata: tuple[tuple[str, str], ...] = ()
) -> grpc.StatusCode:
    """Of a call that says nothing: it is refused before it does."""
    rpc = channel.stream_stream(path)(metadata=metadata, timeout=10)
    status: grpc.StatusCode = await rpc.code()
    return status


async def test_every_rpc_refuses_the_keyless(service: RunningService) -> None:
    closed = {method_path(method) for method in rpcs()} - PUBLIC_RPCS
    assert len(closed) >= 5
    for path in (*closed, "/segstream.v1.SegmentationService/Nothing", "/x/y"):
        assert await status_of_rpc(service.channel, path) is grpc.StatusCode.UNAUTHENTICATED, path
    for metadata in (
        (("authorization", "Bearer segstream_000000000000_" + "A" * 43),),
        (("x-api-key", "nonsense"),),
    ):
        status = await status_of_rpc(service.channel, sorted(closed)[0], metadata)
        assert status is grpc.StatusCode.UNAUTHENTICATED


async def test_load_balancers_need_no_key(service: RunningService) -> None:
    check = service.channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    answer = await check(health_pb2.HealthCheckRequest(), timeout=10)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
async def test_a_key_opens_grpc(service: RunningService, key: str, header: str) -> None:
    stub: Any = SegmentationServiceStub(service.channel)
    metadata = ((header, f"Bearer {key}" if header == "authorization" else key),)
    rpc = RawCall(stub.StreamSegment(timeout=60, metadata=metadata))
    await rpc.open()
    await rpc.send(frame_request(0, VIDEO[0]))
    assert (await rpc.next_result()).HasField("label_map")
    await rpc.close()


async def test_the_python_client_shows_its_key(service: RunningService, key: str) -> None:
    async with AsyncClient(service.grpc_address, api_key=key) as client, client.stream() as session:
        results = [result async for result in session.segment(VIDEO[:2])]
    assert [result.error for result in results] == [None, None]
    async with AsyncClient(service.grpc_address) as client:
        with pytest.raises(UnauthenticatedError, match="an API key is needed"):
            async with client.stream():
                pass


# The WebSocket


async def test_a_socket_is_opened_with_a_key(service: RunningService, key: str) -> None:
    for options in (
        {"additional_headers": bearing(key)},
        {"subprotocols": ["segstream.v1", f"bearer.{key}"]},
    ):
        async with calling(service, **options) as socket:
            assert socket.connection.subprotocol in (None, "segstream.v1")
            await socket.open()
            await socket.send(frame_message(0, VIDEO[0]))
            await socket.next_label_map()
            await socket.end()


async def test_a_socket_without_a_key_is_refused(service: RunningService, key: str) -> None:
    refused_options: list[dict[str, Any]] = [
        {},
        {"subprotocols": ["segstream.v1"]},
        {"subprotocols": ["segstream.v1", "bearer.nonsense"]},
    ]
    for options in refused_options:
        with pytest.raises(InvalidStatus) as refused:
            async with calling(service, **options):
                pass
        response = refused.value.response
        assert response.status_code == 401
        assert response.headers["content-type"] == "application/problem+json"
    service.http.headers.update(bearing(key))
    name = "segstream_refused_total"
    assert await service.metric(name, wire="websocket", reason="unauthenticated") == 3


async def test_an_open_service_takes_no_offence_at_a_key(start_service: StartService) -> None:
    service = await start_service()
    async with calling(service, subprotocols=["segstream.v1", "bearer.whatever"]) as socket:
        assert socket.connection.subprotocol == "segstream.v1"
        await socket.open()
        await socket.end()


# What belongs to a key


async def test_sessions_belong_to_the_key_that_made_them(
    service_of_two: RunningService, key: str, other: str
) -> None:
    service = service_of_two
    own, foreign = call(service, key), call(service, other)
    await own.open(session_id="a")
    await own.send(frame_request(0, VIDEO[0]))
    await own.next_result()
    http = service.http
    assert (await http.get("/v1/sessions", headers=bearing(other))).json() == {"sessions": []}
    assert (await http.get("/v1/sessions/a", headers=bearing(other))).status_code == 404
    assert (await http.delete("/v1/sessions/a", headers=bearing(other))).status_code == 404
    name = f"{id_of(key)}@a"
    assert (await http.get(f"/v1/sessions/{name}", headers=bearing(other))).status_code == 404
    stub: Any = SegmentationServiceStub(service.channel)
    metadata = (("authorization", f"Bearer {other}"),)
    listed = await stub.ListSessions(pb.ListSessionsRequest(), metadata=metadata, timeout=10)
    assert list(listed.sessions) == []
    for method, request in (
        (stub.GetSession, pb.GetSessionRequest(session_id="a")),
        (stub.CloseSession, pb.CloseSessionRequest(session_id="a")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await method(request, metadata=metadata, timeout=10)
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    # Another key's session of the same id is another session, whether it is gone on with or begun.
    ready = await foreign.open(session_id="a", resume=pb.Resume(next_frame_index=0))
    assert (ready.session_id, ready.next_frame_index) == ("a", 0)
    [shown] = (await http.get("/v1/sessions", headers=bearing(key))).json()["sessions"]
    assert (shown["session_id"], shown["next_frame_index"]) == ("a", 1)
    await foreign.close()
    await own.close()


@pytest.fixture
async def service_of_two(start_service: StartService, keys: Path, other: str) -> RunningService:
    return await start_service(api_keys=keys)


async def test_a_session_is_gone_on_with_under_its_key_only(
    start_service: StartService, keys: Path, key: str, other: str, tmp_path: Path
) -> None:
    """On the next replica as well."""
    options = {"api_keys": keys, "spill_directory": tmp_path / "spill"}
    service = await start_service(**options)
    first = call(service, key)
    await first.open(session_id="a")
    for index in range(3):
        await first.send(frame_request(index, VIDEO[index]))
        await first.next_result()
    stopping = service.stop()
    await first.read_end()
    await stopping
    service = await start_service(**options)
    resume = pb.Resume(next_frame_index=3)
    foreign = await call(service, other).open(session_id="a", resume=resume)
    assert (foreign.origin, foreign.next_frame_index) == (pb.SESSION_ORIGIN_NEW, 0)
    own = await call(service, key).open(session_id="a", resume=resume)
    assert (own.origin, own.next_frame_index) == (pb.SESSION_ORIGIN_RESTORED, 3)


async def test_clips_belong_to_the_key_that_made_them(
    service_of_two: RunningService, key: str, other: str, tmp_path: Path
) -> None:
    http = service_of_two.http
    clip = write_clip(tmp_path / "clip.mp4", 3).read_bytes()
    headers = bearing(key) | {"Idempotency-Key": "once"}
    submitted = await http.post("/v1/clips", content=clip, headers=headers)
    assert submitted.status_code == 202, submitted.text
    url = submitted.headers["location"]
    done = await wait_until_done(http, url, key)
    for name in ("", "/events", "/overlay", "/label_maps", "/report", "/report.html"):
        answer = await http.get(url + name, headers=bearing(other))
        assert answer.status_code == 404, name
    assert (await http.delete(url, headers=bearing(other))).status_code == 404
    assert (await http.get("/v1/clips", headers=bearing(other))).json()["clips"] == []
    assert len((await http.get("/v1/clips", headers=bearing(key))).json()["clips"]) == 1
    # The other's idempotency keys are its own as well.
    headers = bearing(other) | {"Idempotency-Key": "once"}
    again = await http.post("/v1/clips", content=clip, headers=headers)
    assert again.status_code == 202
    assert again.headers["location"] != url
    await links_work_for_a_while_without_a_key(http, done["links"], url)


async def links_work_for_a_while_without_a_key(
    http: httpx.AsyncClient, links: dict[str, str], url: str
) -> None:
    for name in ("overlay", "label_maps", "report", "report_page"):
        assert (await http.get(links[name])).status_code == 200, name
        path, _, ticket = links[name].partition("?ticket=")
        assert (await http.get(path)).status_code == 401
        assert (await http.get(f"{path}?ticket={ticket[:-1]}0{ticket[-1]}")).status_code == 401
    ranged = await http.get(links["overlay"], headers={"Range": "bytes=0-9"})
    assert (ranged.status_code, len(ranged.content)) == (206, 10)
    page = (await http.get(links["report_page"])).text
    [source] = re.findall(r'<video [^>]*src="([^"]+)"', page)
    assert (await http.get(f"{url}/{source.replace('&amp;', '&')}")).status_code == 200
    ticket = links["overlay"].partition("?")[2]
    for method, path in (
        ("GET", url),
        ("DELETE", url),
        ("GET", "/v1/clips"),
        ("POST", "/v1/clips"),
    ):
        assert (await http.request(method, f"{path}?{ticket}")).status_code == 401, path
    elsewhere = f"/v1/clips/{CLIP_ID}/overlay?{ticket}"
    assert (await http.get(elsewhere)).status_code == 401


async def wait_until_done(http: httpx.AsyncClient, url: str, key: str) -> dict[str, Any]:
    async with asyncio.timeout(3 * TIMEOUT_SECONDS):
        while True:
            clip: dict[str, Any] = (await http.get(url, headers=bearing(key))).json()
            assert clip["error"] is None
            if clip["state"] == "done":
                return clip


# Keys that come and go


async def status_becomes(service: RunningService, key: str, status: int) -> None:
    async with asyncio.timeout(TIMEOUT_SECONDS):
        while (await service.http.get("/v1/models", headers=bearing(key))).status_code != status:
            continue  # the request has let the service go on


async def test_a_key_that_is_made_later_opens(service: RunningService, keys: Path) -> None:
    await status_becomes(service, new_key(keys), 200)


async def test_a_key_that_is_revoked_is_shown_out(
    service_of_two: RunningService, keys: Path, key: str, other: str
) -> None:
    service = service_of_two
    rpc, bystander = call(service, key), call(service, other)
    await rpc.open(session_id="a")
    await bystander.open(session_id="a")
    revoke_key(keys, id_of(key))
    assert (await rpc.read_end()).reason == pb.SESSION_END_REASON_CLOSED
    await status_becomes(service, key, 401)
    await bystander.send(frame_request(0, VIDEO[0]))
    assert (await bystander.next_result()).HasField("label_map")
    await bystander.close()


async def test_a_key_that_is_renewed_keeps_its_sessions(
    service: RunningService, keys: Path, key: str
) -> None:
    rpc = call(service, key)
    await rpc.open(session_id="a")
    new, _ = replace_key(keys, id_of(key))
    await status_becomes(service, key, 401)
    shown = await service.http.get("/v1/sessions/a", headers=bearing(new))
    assert shown.status_code == 200
    await rpc.send(frame_request(0, VIDEO[0]))
    assert (await rpc.next_result()).HasField("label_map")
    await rpc.close()


@pytest.mark.parametrize("text", ["{", '{"keys": [{"id": "x"}]}', None])
async def test_a_file_that_breaks_changes_nothing(
    service: RunningService, keys: Path, key: str, text: str | None
) -> None:
    await asyncio.to_thread(keys.unlink)
    if text is not None:
        await asyncio.to_thread(keys.write_text, text)
    await service.service._key_ring.refresh()
    assert (await service.http.get("/v1/models", headers=bearing(key))).status_code == 200
    assert (await service.http.get("/v1/models")).status_code == 401


# What operators are warned of


@pytest.mark.parametrize(
    ("host", "has_keys", "warned"),
    [
        ("127.0.0.1", False, []),
        ("0.0.0.0", False, ["everybody who reaches this address may use the service"]),
        ("0.0.0.0", True, ["API keys and frames travel unencrypted"]),
        ("127.0.0.1", True, []),
    ],
)
async def test_a_service_that_is_open_wide_says_so(
    start_service: StartService, keys: Path, key: str, host: str, has_keys: bool, warned: list[str]
) -> None:
    with capture_logs() as logged:
        await start_service(host=host, **({"api_keys": keys} if has_keys else {}))
    events = [entry["event"] for entry in logged if entry["log_level"] == "warning"]
    assert len(events) == len(warned)
    for event, told in zip(events, warned, strict=True):
        assert event.startswith(told)


async def test_a_file_without_keys_lets_nobody_in_and_says_so(
    start_service: StartService, keys: Path
) -> None:
    await asyncio.to_thread(keys.write_text, '{"keys": []}')
    with capture_logs() as logged:
        service = await start_service(api_keys=keys)
    assert any("nobody can come in" in entry["event"] for entry in logged)
    assert (await service.http.get("/v1/models")).status_code == 401
