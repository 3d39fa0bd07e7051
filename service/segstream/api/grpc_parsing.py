"""Bytes that are no protobuf: an error of the caller's, where gRPC itself would say INTERNAL."""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import DecodeError, Message

from segstream.errors import InvalidInputError

_M = TypeVar("_M", bound=Message)


class ParsingInterceptor(grpc.aio.ServerInterceptor):
    """Hands what cannot be parsed to the methods of ``service``, for `parsed` to raise."""

    def __init__(self, service: str) -> None:
        self._prefix = f"/{service}/"

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None or not handler_call_details.method.startswith(self._prefix):
            return handler
        return handler._replace(request_deserializer=partial(_parse, handler.request_deserializer))


def parsed(request: _M) -> _M:
    """The request. Raises InvalidInputError when its bytes were none."""
    if isinstance(request, InvalidInputError):
        raise request
    return request


def _parse(parse: Callable[[bytes], Message], data: bytes) -> Message | InvalidInputError:
    try:
        return parse(data)
    except DecodeError as error:
        return InvalidInputError(
            f"message of {len(data)} bytes cannot be parsed: {error}; see segmentation.proto",
            field="message",
        )
