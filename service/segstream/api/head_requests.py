"""HEAD: what GET would answer, but for the body, which is not even begun."""

import asyncio
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """Middleware; the routes see a GET whose client goes away once it has the head."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        requests: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]
        is_answered = asyncio.Event()

        async def request_then_gone() -> Message:
            if requests:
                return requests.pop()
            await is_answered.wait()
            return {"type": "http.disconnect"}

        async def head_only(message: Any) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b"", "more_body": False})
                is_answered.set()

        await self._app({**scope, "method": "GET"}, request_then_gone, head_only)
