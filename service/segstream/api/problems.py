"""HTTP errors as RFC 9457 problem details; the one place where errors become HTTP statuses."""

import math
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

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


def install_problem_handlers(app: FastAPI) -> None:
    """Let every error of ``app`` be answered as ``application/problem+json``."""

    @app.exception_handler(SegstreamError)
    async def segstream_error(request: Request, error: SegstreamError) -> JSONResponse:
        return problem_of(error)

    @app.exception_handler(RequestValidationError)
    async def invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        detail = f"{name} is {first['input']!r}: {first['msg']}"
        return problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, field=name)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        response = problem(HTTPStatus(error.status_code), str(error.detail))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(ClientDisconnect)
    async def client_gone(request: Request, error: ClientDisconnect) -> Response:
        _log.info("client gone in mid-upload", path=request.url.path)
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # for nobody; the log has it

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        _log.error("unexpected error", path=request.url.path, exc_info=error)
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the service's log")


def problem_of(error: SegstreamError) -> JSONResponse:
    """An error of the tree as HTTP answers it."""
    status = next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS)
    response = problem(
        status, error.message, field=error.field, retry_after_seconds=error.retry_after_seconds
    )
    if status is HTTPStatus.UNAUTHORIZED:
        response.headers["WWW-Authenticate"] = 'Bearer realm="segstream"'
    return response


def document_problems(app: FastAPI) -> None:
    """Let the OpenAPI document tell of errors under the media type that they have."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        for item in document["paths"].values():
            for operation in item.values():
                for status, response in operation["responses"].items():
                    content = response.get("content", {})
                    if int(status) >= HTTPStatus.BAD_REQUEST and "application/json" in content:
                        content[_MEDIA_TYPE] = content.pop("application/json")
        return document

    app.openapi = openapi  # type: ignore[method-assign]


def problem(
    status: HTTPStatus,
    detail: str,
    *,
    field: str = "",
    retry_after_seconds: float | None = None,
) -> JSONResponse:
    """An error as HTTP answers it."""
    body: dict[str, Any] = {"title": status.phrase, "status": status.value, "detail": detail}
    if field:
        body["field"] = field
    headers = {}
    if retry_after_seconds is not None:
        headers["Retry-After"] = str(math.ceil(retry_after_seconds))
    return JSONResponse(body, status, headers, media_type=_MEDIA_TYPE)
