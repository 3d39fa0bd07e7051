"""Errors as google.rpc statuses with details, and back.

Every status carries an ``ErrorInfo``; beside it ``BadRequest`` where a field is at fault,
``ResourceInfo`` where a name is, and ``RetryInfo`` where trying again may help.
"""

from collections.abc import Iterator, Mapping
from typing import Final, TypeVar, cast

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from segstream import errors
from segstream.errors import InvalidInputError, SegstreamError
from segstream.wire import RETRY_HINT, error_type_of, status_of

DOMAIN: Final = "segstream"
"""``ErrorInfo.domain``: whose reasons these are."""

_KINDS: Final = {
    kind.reason: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, SegstreamError) and kind is not SegstreamError
}
_STATUS_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_M = TypeVar("_M", bound=Message)

Metadata = tuple[tuple[str, str | bytes], ...]


def trailing_metadata(error: SegstreamError) -> Metadata:
    """What a call that fails with ``error`` ends with: the details, and when to try again."""
    status = Status(code=status_of(error).value[0], message=error.message)
    for detail in _details(error):
        status.details.add().Pack(detail)
    hints: Metadata = rpc_status.to_status(status).trailing_metadata
    if error.retry_after_seconds is not None:
        hints += ((RETRY_HINT, f"{1000 * error.retry_after_seconds:.0f}"),)
    return hints


def metadata_of(error: SegstreamError) -> dict[str, str]:
    """What programs may want to know of an error beside its kind."""
    limit = "" if error.limit is None else f"{error.limit:g}"
    if error.limit is not None and float(error.limit).is_integer():
        limit = str(int(error.limit))
    facts = {"field": error.field, "value": error.value, "limit": limit}
    return {name: fact for name, fact in facts.items() if fact}


def error_of_call(call: grpc.RpcError) -> SegstreamError:
    """The error that a call ended with, as the service raised it."""
    code = call.code() or grpc.StatusCode.UNKNOWN
    message = call.details() or code.name
    status = _status_of_call(call)
    info = _detail(status, ErrorInfo)
    if info is None or info.domain != DOMAIN:
        return error_type_of(code)(message)
    retry = _detail(status, RetryInfo)
    seconds = None if retry is None else retry.retry_delay.ToTimedelta().total_seconds()
    return error_of_parts(
        code.value[0],
        message,
        reason=info.reason,
        metadata=info.metadata,
        retry_after_seconds=seconds,
    )


def error_of_parts(
    code: int,
    message: str,
    *,
    reason: str = "",
    field: str = "",
    metadata: Mapping[str, str],
    retry_after_seconds: float | None,
) -> SegstreamError:
    """The error that was told as its parts; by its gRPC status where the reason is not known."""
    by_status = error_type_of(_STATUS_CODES.get(code, grpc.StatusCode.UNKNOWN))
    error = _KINDS.get(reason, by_status)(
        message,
        field=field or metadata.get("field", ""),
        value=metadata.get("value", ""),
        limit=_number(metadata.get("limit", "")),
    )
    error.retry_after_seconds = retry_after_seconds
    return error


def _details(error: SegstreamError) -> Iterator[Message]:
    yield ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata_of(error))
    if isinstance(error, InvalidInputError) and error.field:
        violation = BadRequest.FieldViolation(
            field=error.field, description=error.message, reason=error.reason
        )
        yield BadRequest(field_violations=[violation])
    if error.value:
        kind = error.field.rpartition(".")[2].removesuffix("_id")
        yield ResourceInfo(resource_type=f"{DOMAIN}/{kind}", resource_name=error.value)
    if error.retry_after_seconds is not None:
        retry = RetryInfo()
        retry.retry_delay.FromMilliseconds(round(1000 * error.retry_after_seconds))
        yield retry


def _status_of_call(call: grpc.RpcError) -> Status | None:
    try:
        status: Status | None = rpc_status.from_call(cast(grpc.Call, call))
    except (ValueError, DecodeError):  # a proxy put its own words in place of the service's
        return None
    return status


def _detail(status: Status | None, kind: type[_M]) -> _M | None:
    for packed in () if status is None else status.details:
        detail = kind()
        if packed.Unpack(detail):
            return detail
    return None


def _number(text: str) -> float | None:
    try:
        return int(text) if text.isdecimal() else float(text)
    except ValueError:
        return None
