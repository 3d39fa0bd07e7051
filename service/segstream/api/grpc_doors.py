"""The door of gRPC: every call needs a key but those that are listed here."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any, Final

import grpc
import grpc.aio

from segstream.doors.accounts import Account
from segstream.doors.key_ring import KeyRing, bearer
from segstream.doors.tls import ServerTls
from segstream.errors import UnauthenticatedError
from segstream.telemetry.metrics import Metrics
from segstream.wire import status_of

PUBLIC_METHODS: Final = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})
"""What load balancers ask."""

_ACCOUNT: ContextVar[Account] = ContextVar("account")

_Details = grpc.HandlerCallDetails


class KeyInterceptor(grpc.aio.ServerInterceptor):
    """Answers UNAUTHENTICATED unless the call's metadata have a key that is known."""

    def __init__(self, key_ring: KeyRing, metrics: Metrics) -> None:
        self._key_ring = key_ring
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: "Callable[[_Details], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]]",
        handler_call_details: _Details,
    ) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Let the call in, or answer why not."""
        if handler_call_details.method not in PUBLIC_METHODS:
            try:
                account = self._key_ring.admit(_key(handler_call_details))
            except UnauthenticatedError as error:
                self._metrics.refused("grpc", "unauthenticated")
                return _refusal(error)
            _ACCOUNT.set(account)  # the call is a task of its own
        return await continuation(handler_call_details)


def account_of_call() -> Account:
    """Whom this call is for; there is none, and this fails, without the door."""
    return _ACCOUNT.get()


def server_credentials(tls: ServerTls) -> grpc.ServerCredentials:
    """What the port is opened with. Raises InvalidInputError for files that cannot be used."""
    tls.context()  # gRPC would take files that do not fit, and refuse every client
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.certificate.read_bytes())],
        root_certificates=tls.client_ca.read_bytes() if tls.client_ca else None,
        require_client_auth=tls.client_ca is not None,
    )


def _key(details: _Details) -> str | None:
    metadata = dict(details.invocation_metadata or ())
    key = bearer(str(metadata.get("authorization", ""))) or metadata.get("x-api-key")
    return None if key is None else str(key)


def _refusal(error: UnauthenticatedError) -> "grpc.RpcMethodHandler[Any, Any]":
    async def refuse(_: AsyncIterator[Any], context: grpc.aio.ServicerContext[Any, Any]) -> None:
        await context.abort(status_of(error), error.message)

    # Whatever kind of call it is, it is refused without waiting for its messages.
    return grpc.stream_stream_rpc_method_handler(refuse)
