import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segstream.api.websocket_messages import (
    FrameHeadError,
    message_from_response,
    request_from_message,
)
from segstream.errors import InvalidInputError
from segstream.v1 import segmentation_pb2 as pb
from tests.support.websocket import packed, unpacked

_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_fields = st.dictionaries(
    st.sampled_from([field.name for field in pb.Frame.DESCRIPTOR.fields] + ["resume", "model"]),
    _values,
)
_heads = st.dictionaries(st.sampled_from(["config", "frame", "end_of_frames"]), _fields | _values)


def test_a_text_message_is_the_message_in_json() -> None:
    text = '{"config": {"session_id": "a", "resume": {"next_frame_index": "3"}}}'
    config = pb.SessionConfig(session_id="a", resume=pb.Resume(next_frame_index=3))
    assert request_from_message(text) == pb.StreamSegmentRequest(config=config)


def test_a_binary_message_carries_the_frames_bytes_behind_its_head() -> None:
    head = {"frame": {"index": 5, "encoding": "IMAGE_ENCODING_JPEG"}}
    frame = pb.Frame(index=5, encoding=pb.IMAGE_ENCODING_JPEG, data=b"\xff\xd8")
    assert request_from_message(packed(head, b"\xff\xd8")).frame == frame


def test_a_label_map_travels_behind_the_head() -> None:
    label_map = pb.LabelMap(width=2, height=1, data=b"\x01\xff", digest=b"d")
    response = pb.StreamSegmentResponse(result=pb.FrameResult(frame_index=2**60))
    response.result.label_map.CopyFrom(label_map)
    message = message_from_response(response)
    assert isinstance(message, bytes)
    head, data = unpacked(message)
    assert data == label_map.data
    assert head["result"]["frame_index"] == str(2**60)
    assert head["result"]["num_memory_frames"] == 0
    assert head["result"]["label_map"] == {
        "encoding": "LABEL_MAP_ENCODING_UNSPECIFIED",
        "width": 2,
        "height": 1,
        "digest": "ZA==",
        "num_confidence_bytes": 0,
    }


def test_confidence_travels_behind_the_label_map() -> None:
    label_map = pb.LabelMap(data=b"\x01", confidence=b"PNG", num_confidence_bytes=3)
    label_map.base_frame_index = 0
    response = pb.StreamSegmentResponse(result=pb.FrameResult(label_map=label_map))
    message = message_from_response(response)
    assert isinstance(message, bytes)
    head, data = unpacked(message)
    assert data == b"\x01PNG"
    sent = head["result"]["label_map"]
    assert (sent["num_confidence_bytes"], sent["base_frame_index"]) == (3, "0")
    assert "confidence" not in sent


def test_a_response_without_bytes_is_text() -> None:
    message = message_from_response(
        pb.StreamSegmentResponse(
            error=pb.SessionError(code=5, message="é", reason="NOT_FOUND", metadata={"value": "x"})
        )
    )
    assert isinstance(message, str)
    assert json.loads(message) == {
        "error": {
            "code": 5,
            "message": "é",
            "field": "",
            "retry_after_seconds": 0,
            "reason": "NOT_FOUND",
            "metadata": {"value": "x"},
        }
    }


@pytest.mark.parametrize("index", [3, "3", 3.0])
def test_a_frame_with_a_bad_field_is_told_by_its_index(index: object) -> None:
    with pytest.raises(InvalidInputError) as refused:
        request_from_message(packed({"frame": {"index": index, "colour": 1}}))
    if isinstance(index, float):
        assert not isinstance(refused.value, FrameHeadError)
    else:
        assert isinstance(refused.value, FrameHeadError)
        assert refused.value.frame_index == 3


@pytest.mark.parametrize("index", [-1, 2**64, "9" * 5000, True, None, "³"])
def test_an_index_that_none_can_have_is_none(index: object) -> None:
    with pytest.raises(InvalidInputError) as refused:
        request_from_message(packed({"frame": {"index": index, "colour": 1}}))
    assert not isinstance(refused.value, FrameHeadError)


@given(st.binary(max_size=64) | st.text(max_size=64) | _heads.map(json.dumps) | _heads.map(packed))
def test_whatever_comes_is_a_request_or_refused(message: str | bytes) -> None:
    try:
        assert isinstance(request_from_message(message), pb.StreamSegmentRequest)
    except InvalidInputError as error:
        error.message.encode()
