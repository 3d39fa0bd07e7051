"""Errors as google.rpc statuses, and back."""

from typing import Any

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, ResourceInfo, RetryInfo
from google.rpc.status_pb2 import Status

from segstream import errors, rpc_status
from segstream.errors import SegstreamError
from segstream.wire import RETRY_HINT, status_of

# What servers and proxies let through by default, names and values together.
MAX_METADATA_BYTES = 8192
DETAILS = "grpc-status-details-bin"


class Call(grpc.RpcError):
    """A call that ended with an error, as gRPC shows it to the client."""

    def __init__(
        self, code: grpc.StatusCode, details: str, metadata: rpc_status.Metadata | None
    ) -> None:
        self._end = code, details, metadata

    def code(self) -> grpc.StatusCode:
        return self._end[0]

    def details(self) -> str:
        return self._end[1]

    def trailing_metadata(self) -> Any:
        return self._end[2]


def ended_with(error: SegstreamError) -> Call:
    return Call(status_of(error), error.message, rpc_status.trailing_metadata(error))


def details_of(error: SegstreamError) -> list[Any]:
    status = Status.FromString(dict(rpc_status.trailing_metadata(error))[DETAILS])
    kinds = {kind.DESCRIPTOR.full_name: kind for kind in (BadRequest, ErrorInfo, ResourceInfo)}
    kinds[RetryInfo.DESCRIPTOR.full_name] = RetryInfo
    found = []
    for packed in status.details:
        detail = kinds[packed.TypeName()]()
        assert packed.Unpack(detail)
        found.append(detail)
    return found


def kinds_of(base: type[SegstreamError]) -> list[type[SegstreamError]]:
    """The kinds of the tree itself, whatever other modules derive from them."""
    derived = [kind for kind in base.__subclasses__() if kind.__module__ == errors.__name__]
    return derived + [each for kind in derived for each in kinds_of(kind)]


@pytest.mark.parametrize("kind", kinds_of(SegstreamError))
def test_an_error_arrives_as_it_was_raised(kind: type[SegstreamError]) -> None:
    raised = kind("field is 7, at most 5", field="field", value="x y", limit=5)
    told = rpc_status.error_of_call(ended_with(raised))
    assert type(told) is kind
    for name in ("message", "field", "value", "limit", "retry_after_seconds", "reason"):
        assert getattr(told, name) == getattr(raised, name), name


def test_each_kind_has_a_reason_of_its_own() -> None:
    reasons = [kind.reason for kind in kinds_of(SegstreamError)]
    assert len(set(reasons)) == len(reasons)


@pytest.mark.parametrize("seconds", [0.25, 1.0, 90.0])
def test_the_time_to_wait_is_told_in_both_ways(seconds: float) -> None:
    raised = errors.ExhaustedError("no room", retry_after_seconds=seconds)
    assert (RETRY_HINT, f"{1000 * seconds:.0f}") in rpc_status.trailing_metadata(raised)
    assert rpc_status.error_of_call(ended_with(raised)).retry_after_seconds == seconds


def test_a_field_at_fault_is_a_violation() -> None:
    info, violations = details_of(errors.TooLargeError("a.b is 7", field="a.b", limit=5.5))
    assert (info.reason, info.domain) == ("TOO_LARGE", "segstream")
    assert dict(info.metadata) == {"field": "a.b", "limit": "5.5"}
    [violation] = violations.field_violations
    assert (violation.field, violation.description) == ("a.b", "a.b is 7")


def test_a_name_that_is_missing_is_a_resource() -> None:
    error = errors.NotFoundError("no x", field="config.session_id", value="x")
    _, resource = details_of(error)
    assert (resource.resource_type, resource.resource_name) == ("segstream/session", "x")


@pytest.mark.parametrize("text", ["x" * 10**6, "\N{GRINNING FACE}" * 10**5, "\ud800" * 5000])
def test_whatever_is_told_again_fits_into_a_header(text: str) -> None:
    error = errors.ExhaustedError(text, field="config.model", value=text)
    invalid = errors.InvalidInputError(text, field="config.model", value=text)
    for each in (error, invalid):
        percent_encoded = 3 * len(each.message.encode())
        base64 = sum(4 * len(value) // 3 for _, value in rpc_status.trailing_metadata(each))
        assert percent_encoded + base64 < MAX_METADATA_BYTES
        assert rpc_status.error_of_call(ended_with(each)).message == each.message


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        (),
        ((DETAILS, b"\xff\xff"),),
        ((DETAILS, Status(code=3, message="of a proxy").SerializeToString()),),
        ((DETAILS, Status(code=5, message="text").SerializeToString()),),
    ],
    ids=["none", "empty", "broken", "of_another_status", "without_details"],
)
def test_without_details_the_status_tells_the_kind(metadata: Any) -> None:
    told = rpc_status.error_of_call(Call(grpc.StatusCode.NOT_FOUND, "text", metadata))
    assert (type(told), told.message) == (errors.NotFoundError, "text")


def test_a_reason_of_a_newer_service_is_told_by_its_status() -> None:
    told = rpc_status.error_of_parts(
        8, "text", reason="QUOTA", metadata={"limit": "many"}, retry_after_seconds=2.0
    )
    assert type(told) is errors.ExhaustedError
    assert (told.limit, told.retry_after_seconds) == (None, 2.0)


def test_a_wire_calls_a_field_by_its_own_name() -> None:
    error = errors.InvalidInputError("frame.data is no frame.data", field="frame.data")
    assert error.renamed("body").message == "body is no frame.data"
    assert (error.field, str(error)) == ("body", "body is no frame.data")
