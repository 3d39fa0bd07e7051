"""The page that describes the API: what browsers may do on it."""

import base64
import hashlib
import re
from typing import Final

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_PAGE: Final = "/docs"
_SCRIPT: Final = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def secure_docs(app: FastAPI) -> None:
    """Let the page run the scripts that it comes with, and no others."""
    for route in app.routes:
        if isinstance(route, Route) and route.path == _PAGE:
            route.app = _OwnScripts(route.app)


class _OwnScripts:
    """Tells browsers the digests of the scripts in the page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {}

        async def send_with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
                return
            if start:  # the page comes in one piece
                headers = MutableHeaders(scope=start)
                headers["Content-Security-Policy"] = _policy(message.get("body", b""))
                await send(dict(start))
                start.clear()
            await send(message)

        await self._app(scope, receive, send_with_policy)


def _policy(page: bytes) -> str:
    digests = (
        base64.b64encode(hashlib.sha256(script).digest()).decode()
        for script in _SCRIPT.findall(page)
    )
    scripts = " ".join(("'self'", *(f"'sha256-{digest}'" for digest in digests)))
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {scripts}",
            "style-src 'self' 'unsafe-inline'",
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
