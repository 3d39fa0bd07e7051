"""HTTP errors as RFC 9457 problem details; the one place where errors become HTTP statuses."""

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from segstream.errors import (
    AlreadyExistsError,
    EngineError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    SegstreamError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    WrongStateError,
)

_log = structlog.get_logger(__name__)
_MEDIA_TYPE = "application/problem+json"
_SCHEMA = "#/components/schemas/ProblemSchema"
_STATUS = {
    InvalidInputError: HTTPStatus.BAD_REQUEST,
    TooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnauthenticatedError: HTTPStatus.UNAUTHORIZED,
    NotFoundError: HTTPStatus.NOT_FOUND,
    AlreadyExistsError: HTTPStatus.CONFLICT,
    WrongStateError: HTTPStatus.CONFLICT,
    ExhaustedError: HTTPStatus.TOO_MANY_REQUESTS,
    UnavailableError: HTTPStatus.SERVICE_UNAVAILABLE,
    EngineError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
# What HTTP calls the fields that gRPC's messages have.
_FIELDS = {"config.model": "model", "frame.data": "body"}


def install_problem_handlers(app: FastAPI) -> None:
    """Let every error of ``app`` be answered as ``application/problem+json``."""

    @app.exception_handler(SegstreamError)
    async def segstream_error(request: Request, error: SegstreamError) -> JSONResponse:
        return problem_of(error.renamed(_FIELDS.get(error.field, error.field)))

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        kind, *parts = map(str, first["loc"])
        name = ".".join(parts)
        if kind == "header":
            name = name.title()
        detail = f"{name} is {first['input']!r}: {first['msg']}"
        invalid = InvalidInputError(detail, field=name)
        return problem_of(invalid, HTTPStatus.UNPROCESSABLE_ENTITY)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        status, headers = HTTPStatus(error.status_code), dict(error.headers or {})
        if status is HTTPStatus.METHOD_NOT_ALLOWED:  # Starlette names those of one route alone
            headers["Allow"] = ", ".join(_allowed_methods(request))
        detail = str(error.detail)
        if detail == status.phrase:  # Starlette's own
            detail = _told(request, status, headers)
        response = problem(status, detail)
        response.headers.update(headers)
        return response

    @app.exception_handler(ClientDisconnect)
    async def client_gone(request: Request, error: ClientDisconnect) -> Response:
        _log.info("client gone in mid-upload", path=request.url.path)
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # for nobody; the log has it

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("unexpected error", path=request.url.path, exc_info=error)
        return problem_of(EngineError("internal error; see the service's log"))


def _allowed_methods(request: Request) -> list[str]:
    scope = dict(request.scope)
    methods: set[str] = set()
    for route in request.app.routes:
        if route.matches(scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)


def _told(request: Request, status: HTTPStatus, headers: Mapping[str, str]) -> str:
    path = request.url.path
    if status is HTTPStatus.NOT_FOUND:
        return f"there is nothing at {path!r}; /docs lists what there is"
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        return f"{request.method} cannot be used at {path!r}, but {headers.get('Allow')} can"
    return status.phrase


def document_problems(app: FastAPI) -> None:
    """Let the OpenAPI document tell of errors under the media type that they have."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for item in document["paths"].values():
            for operation in item.values():
                for status, response in operation["responses"].items():
                    if int(status) >= HTTPStatus.BAD_REQUEST:
                        response["content"] = {_MEDIA_TYPE: {"schema": {"$ref": _SCHEMA}}}
        for name in ("HTTPValidationError", "ValidationError"):  # FastAPI's own, for nothing now
            document["components"]["schemas"].pop(name, None)
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def problem_of(error: SegstreamError, status: HTTPStatus | None = None) -> JSONResponse:
    """An error of the tree as HTTP answers it; ``status`` where it is not that of its kind."""
    status = status or next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    facts = {"field": error.field, "value": error.value, "limit": error.limit}
    members = {name: fact for name, fact in facts.items() if fact not in ("", None)}
    response = problem(status, error.message, reason=error.reason, **members)
    if error.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    if status is HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="segstream"'
    return response


def problem(status: HTTPStatus, detail: str, **members: object) -> JSONResponse:
    """What HTTP answers where something is wrong, with members beside the standard's."""
    body = {"title": status.phrase, "status": status.value, "detail": detail, **members}
    return JSONResponse(body, status, media_type=_MEDIA_TYPE)
