"""The door of HTTP and WebSocket: who may come in is decided here, before anything else."""

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, QueryParams
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocket

from segstream.api.hosts import AllowedHosts
from segstream.api.origins import is_allowed_origin
from segstream.api.problems import problem, problem_of
from segstream.doors.accounts import Account
from segstream.doors.key_ring import KeyRing, bearer
from segstream.errors import UnauthenticatedError
from segstream.telemetry.metrics import Metrics

PUBLIC_PATHS: Final = frozenset({"/", "/livez", "/readyz", "/docs", "/openapi.json"})
"""What may be read without a key: the page, the probes, the description of the API."""

PUBLIC_FOLDERS: Final = ("/web/", "/static-offline-docs/")
"""Static files of the page and of the API's description."""

TICKET: Final = "ticket"
"""The parameter of links that work for a while without a key."""

_BEARER_PROTOCOL: Final = "bearer."
_SAFE_METHODS: Final = ("GET", "HEAD")
_SECRET_HEADERS: Final = (b"authorization", b"x-api-key")
_PROTOCOLS: Final = b"sec-websocket-protocol"
_UNAUTHENTICATED: Final = {
    "description": "There is no valid API key.",
    "content": {
        "application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemSchema"}}
    },
}
_RESULT: Final = re.compile(
    r"/v1/clips/(?P<clip>[0-9a-f]{32})/(overlay|label_maps|report|report\.html)"
)


class Doors:
    """ASGI middleware: checks Host, Origin and key, in this order.

    Everything needs a key but what is listed above, so that a route that is added is closed. What
    comes in has its account in the connection's state, and no key in its headers any more.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        key_ring: KeyRing,
        allowed_hosts: AllowedHosts,
        allowed_origins: Sequence[str],
        metrics: Metrics,
    ) -> None:
        self._app = app
        self._key_ring = key_ring
        self._allowed_hosts = allowed_hosts
        self._allowed_origins = allowed_origins
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it in, or answer why not."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        refusal = self._refusal_of_sender(scope)
        if refusal is None:
            try:
                account = self._admit(scope)
            except UnauthenticatedError as error:
                self._count(scope, "unauthenticated")
                refusal = problem_of(error)
            else:
                await self._app(_let_in(scope, account), receive, send)
                return
        if scope["type"] == "http":
            await refusal(scope, receive, send)
        else:
            await WebSocket(scope, receive, send).send_denial_response(refusal)

    def _refusal_of_sender(self, scope: Scope) -> JSONResponse | None:
        """What is wrong with the site that a browser says it is on."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if host not in self._allowed_hosts:
            self._count(scope, "host")
            return problem(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"host {host!r} is not allowed; see allowed_hosts",
                field="host",
            )
        if origin is None or not _needs_origin(scope, headers):
            return None
        if is_allowed_origin(origin, host, self._allowed_origins):
            return None
        self._count(scope, "origin")
        return problem(
            HTTPStatus.FORBIDDEN,
            f"origin {origin!r} is not allowed; see allowed_origins",
            field="origin",
        )

    def _admit(self, scope: Scope) -> Account | None:
        """The account it is for; None for what anybody may read. Raises UnauthenticatedError."""
        key = _key(scope)
        is_read = scope["type"] == "http" and scope["method"] in _SAFE_METHODS
        if is_read and _is_public(scope["path"]):
            return None
        if is_read and key is None and (found := _RESULT.fullmatch(scope["path"])):
            ticket = QueryParams(scope["query_string"]).get(TICKET)
            if ticket and not self._key_ring.is_open:
                return self._key_ring.admit_ticket(ticket, found["clip"])
        return self._key_ring.admit(key)

    def _count(self, scope: Scope, reason: str) -> None:
        self._metrics.refused(scope["type"], reason)


def account_of(connection: HTTPConnection) -> Account:
    """Whom a request or a socket is for; there is none, and this fails, without the door."""
    account: Account = connection.state.account
    return account


CallerAccount = Annotated[Account, Depends(account_of)]


def document_keys(app: FastAPI, key_ring: KeyRing) -> None:
    """Let the OpenAPI document tell which operations take a key, if any do."""
    if key_ring.is_open:
        return
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, item in document["paths"].items():
            for operation in item.values():
                operation["security"] = [] if _is_public(path) else [{"key": []}]
                if not _is_public(path):
                    operation["responses"]["401"] = _UNAUTHENTICATED
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def _is_public(path: str) -> bool:
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDERS)


def _needs_origin(scope: Scope, headers: Headers) -> bool:
    """Whether it could do something; what only reads is kept from other sites by the browser."""
    if scope["type"] == "websocket":
        return True
    is_preflight = scope["method"] == "OPTIONS" and "access-control-request-method" in headers
    return is_preflight or scope["method"] not in (*_SAFE_METHODS, "OPTIONS")


def _key(scope: Scope) -> str | None:
    headers = Headers(scope=scope)
    key = bearer(headers.get("authorization", "")) or headers.get("x-api-key")
    if key is None and scope["type"] == "websocket":
        # Browsers can give a socket no header but this one.
        for protocol in scope["subprotocols"]:
            if protocol.startswith(_BEARER_PROTOCOL):
                return str(protocol.removeprefix(_BEARER_PROTOCOL))
    return key


def _let_in(scope: Scope, account: Account | None) -> Scope:
    """The scope with the account, and without the key: nothing further in can tell it on."""
    state = dict(scope.get("state", {}))
    if account is not None:
        state["account"] = account
    headers = [
        (name, _without_key(value) if name == _PROTOCOLS else value)
        for name, value in scope["headers"]
        if name not in _SECRET_HEADERS
    ]
    inner = {**scope, "state": state, "headers": headers}
    if scope["type"] == "websocket":
        inner["subprotocols"] = [
            each for each in scope["subprotocols"] if not each.startswith(_BEARER_PROTOCOL)
        ]
    return inner


def _without_key(protocols: bytes) -> bytes:
    kept = (each.strip() for each in protocols.split(b","))
    return b", ".join(each for each in kept if not each.startswith(_BEARER_PROTOCOL.encode()))
