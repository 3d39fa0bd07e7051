"""What pages of other sites may do, and what browsers are told."""

import pytest

from segstream.media.images import ImageEncoding, encode_image
from tests.integration.conftest import StartService
from tests.integration.test_http import assert_problem
from tests.support.models import make_video
from tests.support.raw_http import exchange
from tests.support.service import RunningService

PNG = encode_image(make_video(1)[0], ImageEncoding.PNG)
EVIL = "https://evil.example"
FRIEND = "https://friend.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST"}


async def test_a_name_that_leads_here_from_elsewhere_is_refused(service: RunningService) -> None:
    """DNS rebinding: the page would be of the service's own origin."""
    for path in ("/", "/livez", "/v1/models", "/docs", "/nothing"):
        answer = await service.http.get(path, headers={"Host": "evil.example:8080"})
        assert_problem(answer, 421, "'evil.example:8080' is not allowed", field="host")
    handshake = (
        "GET /v1/stream HTTP/1.1\r\nHost: evil.example\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n"
    )
    assert (await exchange(service, handshake.encode())).startswith(b"HTTP/1.1 421")
    assert await service.metric("segstream_refused_total", reason="host") == 6


async def test_names_that_are_set_are_allowed(start_service: StartService) -> None:
    service = await start_service(allowed_hosts=["Segstream.example", "*.internal.example"])
    for host in ("segstream.example", "a.internal.example:80"):
        assert (await service.http.get("/livez", headers={"Host": host})).status_code == 200


async def test_a_page_of_another_origin_may_change_nothing(service: RunningService) -> None:
    for method, path in (("POST", "/v1/images"), ("POST", "/v1/clips"), ("DELETE", "/v1/clips/a")):
        answer = await service.http.request(method, path, content=PNG, headers={"Origin": EVIL})
        assert_problem(answer, 403, EVIL, field="origin")
    own = {"Origin": service.service.addresses["http"]}
    assert (await service.http.post("/v1/images", content=PNG, headers=own)).status_code == 200
    assert await service.metric("segstream_refused_total", reason="origin") == 3


async def test_without_a_setting_no_script_of_another_origin_reads_an_answer(
    service: RunningService,
) -> None:
    answer = await service.http.get("/v1/models", headers={"Origin": EVIL})
    assert "access-control-allow-origin" not in answer.headers
    preflight = await service.http.options("/v1/clips", headers={"Origin": EVIL} | PREFLIGHT)
    assert_problem(preflight, 403, EVIL, field="origin")


async def test_origins_that_are_set_may_use_the_api(start_service: StartService) -> None:
    service = await start_service(allowed_origins=[FRIEND])
    answer = await service.http.get("/v1/models", headers={"Origin": FRIEND})
    assert answer.headers["access-control-allow-origin"] == FRIEND
    assert "access-control-allow-credentials" not in answer.headers
    answer = await service.http.post("/v1/images", content=PNG, headers={"Origin": FRIEND})
    assert answer.status_code == 200
    wanted = PREFLIGHT | {"Access-Control-Request-Headers": "authorization, idempotency-key"}
    preflight = await service.http.options("/v1/clips", headers={"Origin": FRIEND} | wanted)
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == FRIEND
    answer = await service.http.get("/v1/models", headers={"Origin": EVIL})
    assert "access-control-allow-origin" not in answer.headers
    answer = await service.http.options("/v1/clips", headers={"Origin": EVIL} | PREFLIGHT)
    assert answer.status_code == 400
    assert "access-control-allow-origin" not in answer.headers


async def test_every_answer_is_guarded(service: RunningService) -> None:
    for path in ("/", "/docs", "/openapi.json", "/metrics", "/v1/models", "/nothing"):
        headers = (await service.http.get(path)).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "frame-ancestors 'none'" in policy, path
        script_sources = policy.partition("script-src ")[2].partition(";")[0]
        assert "unsafe" not in script_sources, path
        assert headers["x-content-type-options"] == "nosniff", path
        assert headers["referrer-policy"] == "no-referrer", path
        assert headers["cross-origin-resource-policy"] == "same-origin", path
        assert "server" not in headers, path
    assert (await service.http.get("/v1/models")).headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    "path",
    [
        "/web/../../settings.py",
        "/web/%2e%2e/%2e%2e/settings.py",
        "/web/..%2f..%2fsettings.py",
        "/web/..%5c..%5csettings.py",
        "/web//etc/passwd",
        "/web/%2fetc%2fpasswd",
        "/web/js/main.js%00.html",
        "/static-offline-docs/..%2fcore.py",
        "/v1/clips/..%2f..%2fetc%2fpasswd",
        "/v1/clips/%2e%2e",
        "/v1/clips/../../etc/passwd/overlay",
        "/v1/clips/0123456789abcdef0123456789abcde%2f/overlay",
        "/v1/sessions/..%2f..%2fetc%2fpasswd",
    ],
)
async def test_no_path_leads_out(service: RunningService, path: str) -> None:
    """As it is sent, not as clients tidy it."""
    for method in ("GET", "DELETE"):
        request = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        answer = await exchange(service, request.encode())
        status = int(answer.split()[1])
        assert 400 <= status < 500, answer
        assert b"root:" not in answer
        assert b"import" not in answer
