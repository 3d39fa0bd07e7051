"""uvicorn's protocols, with bounds on what they read before the application is asked."""

import asyncio
from http import HTTPStatus
from typing import Any, Final

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from segstream.api.problems import problem

_MAX_HEAD_BYTES: Final = 64 * 1024
_HEAD_SECONDS: Final = 30.0
# For what is still on its way when an answer or a closing frame has been sent.
_LINGER_SECONDS: Final = 10.0


class HttpProtocol(HttpToolsProtocol):
    """Gives up heads that are too long or do not end, and bodies that nobody waits for."""

    _timer: asyncio.TimerHandle | None = None
    _is_in_head = True
    _is_head_over = False
    _num_head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._give_up_after(_HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_in_head and self._timer is None:
            self._give_up_after(_HEAD_SECONDS)
        was_in_head, self._is_head_over = self._is_in_head, False
        super().data_received(data)
        if was_in_head and not self._is_head_over:
            self._num_head_bytes += len(data)
        if self._num_head_bytes > _MAX_HEAD_BYTES:
            detail = f"the request's head has more than {_MAX_HEAD_BYTES} bytes; send a smaller one"
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def on_headers_complete(self) -> None:
        self._go_on()
        self._is_in_head, self._is_head_over = False, True
        self._num_head_bytes = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._go_on()
        self._is_in_head = True
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if not self._is_in_head:
            self._give_up_after(_LINGER_SECONDS)
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1; mend its syntax")

    def _give_up_after(self, seconds: float) -> None:
        self._go_on()
        self._timer = self.loop.call_later(seconds, self._give_up)

    def _go_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        if self._is_in_head and self._num_head_bytes:
            detail = f"the request's head was not there within {_HEAD_SECONDS:g} seconds"
            self._refuse(HTTPStatus.REQUEST_TIMEOUT, detail)
        self.transport.close()

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer what never became a request."""
        if self.transport.is_closing():
            return
        response = problem(status, detail)
        response.headers["Connection"] = "close"
        head = [f"HTTP/1.1 {status.value} {status.phrase}".encode()]
        head += [name + b": " + value for name, value in response.raw_headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        self.transport.close()


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
