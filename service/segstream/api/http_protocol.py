"""HTTP connections that are held open: bounds of time and size that uvicorn leaves out."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from segstream.api.problems import problem

_HEAD_SECONDS: Final = 10.0
_MAX_HEAD_BYTES: Final = 64 * 1024
# For the rest of a body that was refused: clients that are not listening yet still hear why.
_LINGER_SECONDS: Final = 30.0
# A paused video asks for the rest again.
_STALLED_SECONDS: Final = 120.0


class _Timer:
    """Does something unless it is called off in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, do: Callable[[], None]) -> None:
        self._loop = loop
        self._do = do
        self._handle: asyncio.TimerHandle | None = None

    def start(self, seconds: float) -> None:
        self.cancel()
        self._handle = self._loop.call_later(seconds, self._do)

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class BoundedHttpProtocol(HttpToolsProtocol):
    """Drops clients that dawdle over a request's head or a refused body, or that do not read."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._is_in_head = True
        self._num_head_bytes = 0
        self._incoming = _Timer(self.loop, transport.abort)
        self._outgoing = _Timer(self.loop, transport.abort)
        self._incoming.start(_HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        self._incoming.cancel()
        self._outgoing.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        was_in_head = self._is_in_head
        super().data_received(data)
        if was_in_head and self._is_in_head:
            self._num_head_bytes += len(data)
            if self._num_head_bytes > _MAX_HEAD_BYTES:
                detail = f"the head has more than {_MAX_HEAD_BYTES} bytes; send fewer or less"
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, detail)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True
        self._num_head_bytes = 0
        self._incoming.start(_HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._incoming.cancel()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._incoming.cancel()
        if self.cycle is not None and self.cycle.response_complete:
            self._wait_for_next()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body:
            self._incoming.start(_LINGER_SECONDS)

    def send_400_response(self, msg: str) -> None:
        self._refuse(HTTPStatus.BAD_REQUEST, "the request is not HTTP/1.1; mend its syntax")

    def pause_writing(self) -> None:
        super().pause_writing()
        self._outgoing.start(_STALLED_SECONDS)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._outgoing.cancel()

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer what never became a request."""
        if self.transport.is_closing():
            return
        response = problem(status, detail)
        response.headers["Connection"] = "close"
        head = [name + b": " + value + b"\r\n" for name, value in response.raw_headers]
        body = bytes(response.body)
        self.transport.write(b"".join((STATUS_LINE[status], *head, b"\r\n", body)))
        self.transport.close()

    def _wait_for_next(self) -> None:
        """The rest of the body has taken uvicorn's own timer off."""
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
