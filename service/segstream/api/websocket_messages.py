"""WebSocket messages to the proto's and back: a JSON head and, where there are bytes, the bytes.

A text message is a head alone. A binary message is the head's size (uint32, big endian), the head
and then the ``data`` of the frame or label map, and the label map's ``confidence``. The head is the
proto's message in protobuf's JSON mapping, with the names of the proto.
"""

import json
import struct
from typing import Any

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from segstream.errors import InvalidInputError
from segstream.v1 import segmentation_pb2 as pb

MAX_HEAD_BYTES = 64 * 1024

_HEAD_SIZE = struct.Struct(">I")
_MAX_FAULT_LENGTH = 500
_MAX_INDEX = 2**64 - 1


class FrameHeadError(InvalidInputError):
    """A frame whose head cannot be used but says which frame it is of."""

    def __init__(self, message: str, *, frame_index: int) -> None:
        super().__init__(message, field="frame")
        self.frame_index = frame_index


def request_from_message(message: str | bytes) -> pb.StreamSegmentRequest:
    """A message of the client. Raises InvalidInputError; FrameHeadError for a frame."""
    if isinstance(message, str):
        return _parse(message.encode())
    head, data = _split(message)
    request = _parse(head)
    if not request.HasField("frame"):
        kind = request.WhichOneof("message")
        raise InvalidInputError(
            f"a binary message must hold a frame, got {kind}: send it as text", field="frame"
        )
    request.frame.data = data
    return request


def message_from_response(response: pb.StreamSegmentResponse) -> str | bytes:
    """A message of the service. Takes the label map's bytes out of ``response``."""
    data = None
    if response.result.HasField("label_map"):
        label_map = response.result.label_map
        data = label_map.data + label_map.confidence
        label_map.ClearField("data")
        label_map.ClearField("confidence")
    fields = MessageToDict(
        response, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    if data is None:
        return json.dumps(fields)
    del fields["result"]["label_map"]["data"]
    del fields["result"]["label_map"]["confidence"]
    head = json.dumps(fields).encode()
    return b"".join((_HEAD_SIZE.pack(len(head)), head, data))


def _split(message: bytes) -> tuple[bytes, bytes]:
    if len(message) < _HEAD_SIZE.size:
        raise InvalidInputError(
            f"the binary message has {len(message)} bytes; it begins with the size of its head, "
            f"which takes {_HEAD_SIZE.size}",
            field="head",
        )
    (num_bytes,) = _HEAD_SIZE.unpack_from(message)
    _check_head_size(num_bytes)
    end = _HEAD_SIZE.size + num_bytes
    if end > len(message):
        raise InvalidInputError(
            f"the head is to have {num_bytes} bytes, but {len(message) - _HEAD_SIZE.size} follow",
            field="head",
        )
    return message[_HEAD_SIZE.size : end], message[end:]


def _check_head_size(num_bytes: int) -> None:
    if num_bytes > MAX_HEAD_BYTES:
        raise InvalidInputError(
            f"the head has {num_bytes} bytes; at most {MAX_HEAD_BYTES} are allowed", field="head"
        )


def _parse(head: bytes) -> pb.StreamSegmentRequest:
    _check_head_size(len(head))
    fields = None
    try:
        fields = json.loads(head.decode())
        if b"\\u" in head:  # an escape may stand for half a character, which protobuf cannot bear
            json.dumps(fields, ensure_ascii=False).encode()
        return ParseDict(fields, pb.StreamSegmentRequest())
    except (ParseError, ValueError, TypeError, AttributeError, RecursionError) as error:
        # The text may hold what is no Unicode, as JSON's escapes may.
        told = str(error)[:_MAX_FAULT_LENGTH].encode(errors="replace").decode()
        text = f"the head is not a StreamSegmentRequest in JSON: {told}"
        index = _frame_index(fields)
        if index is None:
            raise InvalidInputError(text, field="head") from error
        raise FrameHeadError(text, frame_index=index) from error


def _frame_index(fields: Any) -> int | None:
    """The index of a frame whose other fields may be amiss."""
    frame = fields.get("frame") if isinstance(fields, dict) else None
    index = frame.get("index", 0) if isinstance(frame, dict) else None
    if isinstance(index, str) and index.isascii() and index.isdecimal() and len(index) <= 20:
        index = int(index)
    is_index = isinstance(index, int) and not isinstance(index, bool) and 0 <= index <= _MAX_INDEX
    return index if is_index else None
