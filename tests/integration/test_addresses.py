"""Where the service listens, and what it says of it."""

import socket
import threading
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from segstream.api.grpc_server import GrpcServer
from segstream.api.http_server import HttpServer
from segstream.errors import InvalidInputError
from tests.integration.conftest import StartService


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return socket.has_dualstack_ipv6()


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 on this machine")


@pytest.mark.parametrize(
    ("host", "shown"),
    [
        ("127.0.0.1", "127.0.0.1"),
        pytest.param("::1", "[::1]", marks=needs_ipv6),
        pytest.param("::", "[::]", marks=needs_ipv6),
    ],
)
async def test_both_wires_answer_at_the_addresses_that_are_told(
    start_service: StartService, host: str, shown: str
) -> None:
    service = await start_service(host=host)
    assert service.service.addresses == {
        "grpc": f"{shown}:{service.service.grpc.port}",
        "http": f"http://{shown}:{service.service.http.port}",
    }
    call = service.call()
    await call.open()
    await call.close()
    assert (await service.http.get("/readyz")).status_code == 200


@needs_ipv6
async def test_any_ipv6_address_is_any_ipv4_address_too(start_service: StartService) -> None:
    service = await start_service(host="::")
    for port in (service.service.grpc.port, service.service.http.port):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


@needs_ipv6
async def test_an_ipv6_address_in_use_is_told_in_brackets(start_service: StartService) -> None:
    taken = (await start_service(host="::1")).service.grpc.port
    with pytest.raises(InvalidInputError, match=rf"cannot listen on \[::1\]:{taken}:"):
        await start_service(host="::1", port=taken)
    engines = [thread for thread in threading.enumerate() if thread.name == "engine"]
    assert len(engines) == 1  # the second service's has been stopped


async def test_grpc_answers_before_http_says_ready(
    start_service: StartService, monkeypatch: pytest.MonkeyPatch
) -> None:
    listening: list[GrpcServer] = []
    statuses: list[int] = []
    start_grpc, start_http = GrpcServer.start, HttpServer.start

    async def start_grpc_noted(server: GrpcServer) -> None:
        await start_grpc(server)
        listening.append(server)

    async def start_http_checked(server: HttpServer) -> None:
        [beside] = listening
        async with grpc.aio.insecure_channel(f"{beside.host}:{beside.port}") as channel:
            stub: Any = HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            statuses.append(answer.status)
        await start_http(server)

    monkeypatch.setattr(GrpcServer, "start", start_grpc_noted)
    monkeypatch.setattr(HttpServer, "start", start_http_checked)
    await start_service()
    assert statuses == [health_pb2.HealthCheckResponse.SERVING]
