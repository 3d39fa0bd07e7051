"""uvicorn inside the service's own event loop; signals and shutdown are the service's business."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

from segstream.api.addresses import is_ipv6
from segstream.api.http_protocol import BoundedHttpProtocol
from segstream.api.websocket_protocol import WebSocketProtocol
from segstream.doors.tls import ServerTls

_POLL_SECONDS = 0.01


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """The listening server; ``port`` is the one it was given or, for 0, the one it found.

    A WebSocket's message of more than ``max_message_bytes`` closes the socket (1009).
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        host: str,
        port: int,
        max_message_bytes: int,
        tls: ServerTls | None = None,
    ) -> None:
        context = tls.context() if tls else None
        self._socket = _listening_socket(host, port)
        self.app = app
        self.host = host
        self.port: int = self._socket.getsockname()[1]
        self._server = _Uvicorn(
            uvicorn.Config(
                app,
                log_config=None,
                timeout_graceful_shutdown=5,
                lifespan="off",
                server_header=False,
                http=BoundedHttpProtocol,
                ssl_context_factory=None if context is None else lambda *_: context,
                ws=WebSocketProtocol,
                ws_max_size=max_message_bytes,
                # JPEG and PNG are compressed as they are.
                ws_per_message_deflate=False,
                # The pong of a client that is held back waits behind its frames.
                ws_ping_timeout=None,
            )
        )
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen."""
        self._serving = asyncio.create_task(self._server.serve([self._socket]))
        # uvicorn has no event to wait for.
        while not self._server.started and not self._serving.done():  # noqa: ASYNC110
            await asyncio.sleep(_POLL_SECONDS)

    async def stop(self) -> None:
        """Finish the requests under way and close."""
        self._server.should_exit = True
        if self._serving is not None:
            await self._serving
        self._socket.close()


def _listening_socket(host: str, port: int) -> socket.socket:
    if not is_ipv6(host):
        return socket.create_server((host, port), backlog=1024)
    # ``::`` is for IPv4 as well, as it is to gRPC.
    return socket.create_server(
        (host, port),
        family=socket.AF_INET6,
        backlog=1024,
        dualstack_ipv6=socket.has_dualstack_ipv6(),
    )
