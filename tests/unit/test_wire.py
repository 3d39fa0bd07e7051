"""What both ends of the gRPC wire agree on."""

from collections.abc import Mapping
from typing import Any

import grpc
import pytest

from segstream import errors, wire
from segstream.v1 import segmentation_pb2 as pb


class OneMoreError(errors.TooLargeError):
    pass


@pytest.mark.parametrize(
    ("table", "enumeration"),
    [
        (wire.IMAGE_ENCODINGS, pb.ImageEncoding),
        (wire.LABEL_MAP_ENCODINGS, pb.LabelMapEncoding),
        (wire.ID_SPACES, pb.IdSpace),
        (wire.SESSION_END_REASONS, pb.SessionEndReason),
    ],
)
def test_a_table_has_each_number_of_the_contract_under_its_name(
    table: Mapping[Any, int], enumeration: Any
) -> None:
    assert sorted(table.values()) == sorted(enumeration.values())[1:]
    for value, number in table.items():
        assert enumeration.Name(number).lower().endswith(f"_{value}")
    assert wire.inverted(wire.inverted(table)) == table


@pytest.mark.parametrize("kind", errors.SegstreamError.__subclasses__())
def test_an_error_comes_out_as_the_kind_that_went_in(kind: type[errors.SegstreamError]) -> None:
    assert wire.error_type_of(wire.status_of(kind("text"))) is kind


def test_a_kind_without_a_status_has_that_of_its_nearest_base() -> None:
    assert wire.status_of(OneMoreError("text")) is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.UnavailableError),
        (grpc.StatusCode.CANCELLED, errors.UnavailableError),
        (grpc.StatusCode.UNKNOWN, errors.EngineError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.EngineError),
    ],
)
def test_a_status_that_the_service_does_not_send(
    status: grpc.StatusCode, kind: type[errors.SegstreamError]
) -> None:
    assert wire.error_type_of(status) is kind


@pytest.mark.parametrize("session_id", ["", "cam:1", "A.b_c-9", "x" * 128])
def test_a_good_session_id(session_id: str) -> None:
    wire.check_session_id(session_id, "session_id")


@pytest.mark.parametrize(
    ("session_id", "told"),
    [("x" * 129, "129 characters, at most 128"), ("a b", "'a b' may hold only"), ("ü\n", "'ü")],
)
def test_a_bad_session_id(session_id: str, told: str) -> None:
    with pytest.raises(errors.InvalidInputError, match=told) as caught:
        wire.check_session_id(session_id, "config.session_id")
    assert caught.value.field == "config.session_id"
    assert caught.value.message.startswith("config.session_id")
