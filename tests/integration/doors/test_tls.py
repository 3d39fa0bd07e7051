"""TLS and client certificates on both ports, with real handshakes."""

import ssl
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from websockets.asyncio.client import connect

from segstream.client import AsyncClient, ClientTls
from segstream.errors import InvalidInputError, UnavailableError
from tests.integration.conftest import StartService
from tests.support.doors import Authority, Pem, bearing, new_key
from tests.support.models import make_video
from tests.support.service import TIMEOUT_SECONDS, RunningService
from tests.support.websocket import WebSocketCall, frame_message

VIDEO = make_video(2)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "authority")


@pytest.fixture(scope="module")
def server(authority: Authority) -> Pem:
    return authority.sign("server")


@pytest.fixture(scope="module")
def client(authority: Authority) -> Pem:
    return authority.sign("client")


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Pem:
    """A certificate that somebody else has signed."""
    return Authority(tmp_path_factory.mktemp("elsewhere"), "elsewhere").sign("stranger")


def context(authority: Authority, shown: Pem | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.certificate)
    if shown is not None:
        context.load_cert_chain(shown.certificate, shown.key)
    return context


async def get(service: RunningService, tls: ssl.SSLContext, path: str) -> httpx.Response:
    url = service.service.addresses["http"]
    async with httpx.AsyncClient(
        base_url=url, verify=tls, timeout=TIMEOUT_SECONDS, trust_env=False
    ) as http:
        return await http.get(path)


async def segment(service: RunningService, tls: ClientTls | None, api_key: str = "") -> list[bytes]:
    async with (
        AsyncClient(
            service.grpc_address, tls=tls, api_key=api_key, connect_timeout_seconds=TIMEOUT_SECONDS
        ) as client,
        client.stream() as session,
    ):
        return [result.digest async for result in session.segment(VIDEO)]


async def test_both_ports_are_encrypted(
    start_service: StartService, authority: Authority, server: Pem, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.json"
    key = new_key(keys)
    service = await start_service(tls_cert=server.certificate, tls_key=server.key, api_keys=keys)
    url = service.service.addresses["http"]
    assert url.startswith("https://")
    assert (await get(service, context(authority), "/livez")).status_code == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        await get(service, ssl.create_default_context(), "/livez")
    with pytest.raises((httpx.RemoteProtocolError, httpx.ReadError)):
        await service.http.get(url.replace("https", "http") + "/livez")
    assert len(await segment(service, ClientTls(authority.certificate), key)) == 2
    async with connect(
        url.replace("http", "ws") + "/v1/stream",
        ssl=context(authority),
        additional_headers=bearing(key),
        open_timeout=TIMEOUT_SECONDS,
        proxy=None,
    ) as connection:
        socket = WebSocketCall(connection)
        await socket.open()
        await socket.send(frame_message(0, VIDEO[0]))
        await socket.next_label_map()
        await socket.end()


async def test_old_versions_of_tls_are_refused(
    start_service: StartService, authority: Authority, server: Pem
) -> None:
    service = await start_service(tls_cert=server.certificate, tls_key=server.key)
    old = context(authority)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.ConnectError):
        await get(service, old, "/livez")


async def test_an_unencrypted_client_is_not_answered(
    start_service: StartService, server: Pem
) -> None:
    service = await start_service(tls_cert=server.certificate, tls_key=server.key)
    async with grpc.aio.insecure_channel(service.grpc_address) as channel:
        check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await check(b"", timeout=10)
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_clients_must_show_a_certificate_that_is_trusted(
    start_service: StartService, authority: Authority, server: Pem, client: Pem, stranger: Pem
) -> None:
    service = await start_service(
        tls_cert=server.certificate, tls_key=server.key, tls_client_ca=authority.certificate
    )
    assert (await get(service, context(authority, client), "/v1/models")).status_code == 200
    roots = authority.certificate
    assert len(await segment(service, ClientTls(roots, client.certificate, client.key))) == 2
    for shown in (None, stranger):
        with pytest.raises((httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError)):
            await get(service, context(authority, shown), "/livez")
        files = (None, None) if shown is None else (shown.certificate, shown.key)
        credentials = ClientTls(roots, *files).credentials()
        async with grpc.aio.secure_channel(service.grpc_address, credentials) as channel:
            check: Any = channel.unary_unary("/grpc.health.v1.Health/Check")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await check(b"", timeout=10)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_several_replicas_are_reached_over_tls(
    start_service: StartService, authority: Authority, server: Pem
) -> None:
    tls = {"tls_cert": server.certificate, "tls_key": server.key}
    services = [await start_service(**tls) for _ in range(2)]
    ports = [service.service.grpc.port for service in services]
    address = ",".join(f"localhost:{port}" for port in ports)
    async with (
        AsyncClient(address, tls=ClientTls(authority.certificate)) as client,
        client.stream() as session,
    ):
        assert len([result async for result in session.segment(VIDEO)]) == 2


async def test_a_client_that_does_not_trust_the_service_hears_so(
    start_service: StartService, server: Pem, stranger: Pem
) -> None:
    service = await start_service(tls_cert=server.certificate, tls_key=server.key)
    client = AsyncClient(
        service.grpc_address, tls=ClientTls(stranger.certificate), connect_timeout_seconds=2
    )
    async with client:
        with pytest.raises(UnavailableError):
            async with client.stream():
                pass


@pytest.mark.parametrize("field", ["tls_cert", "tls_client_ca"])
async def test_files_that_cannot_be_used_are_told_at_the_start(
    start_service: StartService, server: Pem, tmp_path: Path, field: str
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    files = {"tls_cert": server.certificate, "tls_key": server.key, field: bad}
    with pytest.raises(InvalidInputError, match=f"{field} .*bad.pem") as refused:
        await start_service(**files)
    assert refused.value.field == field


async def test_a_certificate_and_a_key_that_do_not_belong_together_are_told(
    start_service: StartService, server: Pem, stranger: Pem
) -> None:
    with pytest.raises(InvalidInputError, match="cannot be used"):
        await start_service(tls_cert=server.certificate, tls_key=stranger.key)


def test_a_clients_certificate_takes_a_key(server: Pem) -> None:
    with pytest.raises(InvalidInputError, match="needs its key"):
        ClientTls(certificate=server.certificate).credentials()
    with pytest.raises(InvalidInputError, match="cannot be read"):
        ClientTls(root_certificates=Path("nothing.pem")).credentials()
