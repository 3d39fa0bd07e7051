"""WebSockets of uvicorn, with bounds on what they keep, and refusals that are problems as well."""

from http import HTTPStatus
from typing import Any, Final

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from segstream.api.problems import problem

# For what is still on its way when a closing frame has been sent.
_LINGER_SECONDS: Final = 10.0


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """Refuses as the rest of HTTP does, and lets go of clients that do not read."""

    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self.conn = _Handshake(max_size=self.config.ws_max_size, logger=self.conn.logger)

    def handle_connect(self, event: Request) -> None:
        if event.path.isascii():
            super().handle_connect(event)
        else:
            self._refuse(f"the path {event.path!r} is not ASCII; percent-encode it")

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc is not None and not self.handshake_initiated:
            told = self.conn.handshake_exc.__cause__ or self.conn.handshake_exc
            self._refuse(f"the opening handshake cannot be read: {told}")

    def handle_cont(self, event: Frame) -> None:
        if event.data or event.fin:  # empty ones would be kept, and no limit counts them
            super().handle_cont(event)

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.transport.abort()  # it reads no pong

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.initial_response is not None and self.close_sent:
            self.handshake_complete = True  # refused in order: nothing is left to be said

    async def run_asgi(self) -> None:
        await super().run_asgi()
        self.loop.call_later(_LINGER_SECONDS, self.transport.abort)

    def _refuse(self, detail: str) -> None:
        self.handshake_complete = self.close_sent = True
        self.transport.write(self.conn.reject(HTTPStatus.BAD_REQUEST, detail).serialize())
        self.transport.close()


class _Handshake(ServerProtocol):
    """The opening handshake; what it refuses is a problem like any other."""

    def reject(self, status: int, text: str) -> Response:
        told = problem(HTTPStatus(status), text.strip() or HTTPStatus(status).phrase)
        response = super().reject(status, bytes(told.body).decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = told.headers["content-type"]
        return response
