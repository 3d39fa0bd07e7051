"""What both ends of the gRPC wire agree on: enumerations, statuses, the rule of session ids."""

import math
import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, TypeVar

import grpc

from segstream.errors import (
    AlreadyExistsError,
    EngineError,
    ExhaustedError,
    InvalidInputError,
    NotFoundError,
    SegstreamError,
    UnauthenticatedError,
    UnavailableError,
    WrongStateError,
)
from segstream.media.images import ImageEncoding
from segstream.media.label_maps import IdSpace, LabelMapEncoding
from segstream.v1 import segmentation_pb2 as pb

_K = TypeVar("_K")
_V = TypeVar("_V")

MAX_SESSION_ID_LENGTH: Final = 128
RETRY_HINT: Final = "grpc-retry-pushback-ms"
"""Trailing metadata by which gRPC servers tell clients when to retry (gRFC A6)."""

DEFAULT_OVERLAY_OPACITY: Final = 0.55
DEFAULT_OVERLAY_QUALITY: Final = 80

# One less than the wire could carry, for the index after it must fit as well.
MAX_FRAME_INDEX: Final = 2**64 - 2
_SESSION_ID = re.compile(r"[A-Za-z0-9._:-]*")


class SessionEndReason(StrEnum):
    """Why a stream ended in order, as its client is told."""

    UNSPECIFIED = "unspecified"
    CLIENT_CLOSED = "client_closed"
    SHUTDOWN = "shutdown"
    IDLE = "idle"
    EXPIRED = "expired"
    REPLACED = "replaced"
    CLOSED = "closed"

    @property
    def is_resumable(self) -> bool:
        """Whether the session is parked, for its client to go on with."""
        return self in (SessionEndReason.SHUTDOWN, SessionEndReason.IDLE)


class SessionOrigin(StrEnum):
    """Where the memory of a session came from when its stream began."""

    NEW = "new"
    RESUMED = "resumed"
    RESTORED = "restored"
    REBUILT = "rebuilt"


class FramePolicy(StrEnum):
    """What becomes of frames that wait while earlier ones are segmented."""

    ALL = "all"
    LATEST = "latest"
    KEEP_MEMORY_SKIP_MASK = "keep_memory_skip_mask"


class SkipReason(StrEnum):
    """Why a frame got no label map though nothing was wrong with it."""

    SUPERSEDED = "superseded"
    DEADLINE_PASSED = "deadline_passed"
    MEMORISE_ONLY = "memorise_only"


IMAGE_ENCODINGS: Final = {
    ImageEncoding.JPEG: pb.IMAGE_ENCODING_JPEG,
    ImageEncoding.PNG: pb.IMAGE_ENCODING_PNG,
    ImageEncoding.RAW_RGB: pb.IMAGE_ENCODING_RAW_RGB,
}
LABEL_MAP_ENCODINGS: Final = {
    LabelMapEncoding.PNG: pb.LABEL_MAP_ENCODING_PNG,
    LabelMapEncoding.ZSTD: pb.LABEL_MAP_ENCODING_ZSTD,
    LabelMapEncoding.RAW: pb.LABEL_MAP_ENCODING_RAW,
    LabelMapEncoding.COCO_RLE: pb.LABEL_MAP_ENCODING_COCO_RLE,
    LabelMapEncoding.DELTA: pb.LABEL_MAP_ENCODING_DELTA,
    LabelMapEncoding.OVERLAY_JPEG: pb.LABEL_MAP_ENCODING_OVERLAY_JPEG,
}
ID_SPACES: Final = {
    IdSpace.TRAIN_ID: pb.ID_SPACE_TRAIN_ID,
    IdSpace.LABEL_ID: pb.ID_SPACE_LABEL_ID,
}
SESSION_END_REASONS: Final = {
    SessionEndReason.CLIENT_CLOSED: pb.SESSION_END_REASON_CLIENT_CLOSED,
    SessionEndReason.SHUTDOWN: pb.SESSION_END_REASON_SHUTDOWN,
    SessionEndReason.IDLE: pb.SESSION_END_REASON_IDLE,
    SessionEndReason.EXPIRED: pb.SESSION_END_REASON_EXPIRED,
    SessionEndReason.REPLACED: pb.SESSION_END_REASON_REPLACED,
    SessionEndReason.CLOSED: pb.SESSION_END_REASON_CLOSED,
}
SESSION_ORIGINS: Final = {
    SessionOrigin.NEW: pb.SESSION_ORIGIN_NEW,
    SessionOrigin.RESUMED: pb.SESSION_ORIGIN_RESUMED,
    SessionOrigin.RESTORED: pb.SESSION_ORIGIN_RESTORED,
    SessionOrigin.REBUILT: pb.SESSION_ORIGIN_REBUILT,
}
FRAME_POLICIES: Final = {
    FramePolicy.ALL: pb.FRAME_POLICY_ALL,
    FramePolicy.LATEST: pb.FRAME_POLICY_LATEST,
    FramePolicy.KEEP_MEMORY_SKIP_MASK: pb.FRAME_POLICY_KEEP_MEMORY_SKIP_MASK,
}
SKIP_REASONS: Final = {
    SkipReason.SUPERSEDED: pb.SKIP_REASON_SUPERSEDED,
    SkipReason.DEADLINE_PASSED: pb.SKIP_REASON_DEADLINE_PASSED,
    SkipReason.MEMORISE_ONLY: pb.SKIP_REASON_MEMORISE_ONLY,
}


def inverted(table: Mapping[_K, _V]) -> dict[_V, _K]:
    """The table for the way back; its values must differ."""
    return {value: key for key, value in table.items()}


_STATUSES: Final[dict[type[SegstreamError], grpc.StatusCode]] = {
    InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
    UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
    NotFoundError: grpc.StatusCode.NOT_FOUND,
    AlreadyExistsError: grpc.StatusCode.ALREADY_EXISTS,
    WrongStateError: grpc.StatusCode.FAILED_PRECONDITION,
    ExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    EngineError: grpc.StatusCode.INTERNAL,
}
_ERROR_TYPES: Final = inverted(_STATUSES) | {
    # Not sent by the service, but what gRPC itself makes of a service that is gone or too slow.
    grpc.StatusCode.DEADLINE_EXCEEDED: UnavailableError,
    grpc.StatusCode.CANCELLED: UnavailableError,
}


def status_of(error: SegstreamError) -> grpc.StatusCode:
    """The status that an error goes out with: that of its nearest kind."""
    return next(_STATUSES[kind] for kind in type(error).__mro__ if kind in _STATUSES)


def error_type_of(status: grpc.StatusCode) -> type[SegstreamError]:
    """The kind of error that a status stands for; EngineError for whatever is not foreseen."""
    return _ERROR_TYPES.get(status, EngineError)


def check_range(field: str, value: float, least: float, most: float) -> None:
    """Raise InvalidInputError unless ``value`` is in ``least .. most``; infinity is no bound."""
    if not least <= value <= most:
        bound = f"from {least} to {most}" if most < math.inf else f"{least} or more"
        raise InvalidInputError(f"{field} is {value}; it must be {bound}", field=field)


def check_session_id(session_id: str, field: str) -> None:
    """Raise InvalidInputError unless a session may be named so; empty: the service chooses."""
    if len(session_id) > MAX_SESSION_ID_LENGTH:
        raise InvalidInputError(
            f"{field} has {len(session_id)} characters, "
            f"at most {MAX_SESSION_ID_LENGTH} are allowed",
            field=field,
            limit=MAX_SESSION_ID_LENGTH,
        )
    if not _SESSION_ID.fullmatch(session_id):
        raise InvalidInputError(
            f"{field} {session_id!r} may hold only letters, digits and . _ : -", field=field
        )
