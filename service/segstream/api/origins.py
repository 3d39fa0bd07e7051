"""Which web pages may use the service."""

from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

_METHODS: Final = ("GET", "HEAD", "POST", "DELETE")
_REQUEST_HEADERS: Final = (
    *("Authorization", "X-Api-Key", "Content-Type", "Idempotency-Key"),
    *("If-None-Match", "If-Range", "Last-Event-ID", "Range", "Traceparent"),
)
_ANSWER_HEADERS: Final = (
    *("Accept-Ranges", "Content-Disposition", "Content-Range", "ETag"),
    *("Location", "Retry-After", "Server-Timing"),
)


def is_allowed_origin(origin: str, host: str, allowed_origins: Sequence[str]) -> bool:
    """Whether the origin is the service's own, as the Host header has it, or one that may."""
    if origin.lower() in allowed_origins:
        return True
    try:
        authority = urlsplit(origin).netloc
    except ValueError:
        return False
    return bool(authority) and authority.lower() == host.lower()


def allow_origins(app: FastAPI, allowed_origins: Sequence[str]) -> None:
    """Let scripts of these origins read the answers; without any, browsers let none of others."""
    if allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(allowed_origins),
            allow_methods=_METHODS,
            allow_headers=_REQUEST_HEADERS,
            expose_headers=_ANSWER_HEADERS,
        )
