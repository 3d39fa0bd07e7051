"""The one door between protobuf messages and the streaming package's own."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import TypeVar

from segstream.errors import InvalidInputError, SegstreamError
from segstream.media.label_maps import IdSpace, LabelMapEncoding
from segstream.rpc_status import metadata_of
from segstream.streaming import (
    EncodedLabelMap,
    Frame,
    FrameResult,
    MemoryTier,
    Session,
    SessionConfig,
    SessionStatus,
    Skipped,
    Stream,
)
from segstream.v1 import segmentation_pb2 as pb
from segstream.wire import (
    DEFAULT_OVERLAY_OPACITY,
    DEFAULT_OVERLAY_QUALITY,
    FRAME_POLICIES,
    ID_SPACES,
    IMAGE_ENCODINGS,
    LABEL_MAP_ENCODINGS,
    MAX_FRAME_INDEX,
    SESSION_END_REASONS,
    SESSION_ORIGINS,
    SKIP_REASONS,
    FramePolicy,
    SessionEndReason,
    inverted,
    status_of,
)

_K = TypeVar("_K", bound=int)
_T = TypeVar("_T")

_STATED_IMAGE_ENCODINGS = inverted(IMAGE_ENCODINGS)
_IMAGE_ENCODINGS = {pb.IMAGE_ENCODING_UNSPECIFIED: None, **_STATED_IMAGE_ENCODINGS}
_LABEL_MAP_ENCODINGS = {
    pb.LABEL_MAP_ENCODING_UNSPECIFIED: LabelMapEncoding.PNG,
    **inverted(LABEL_MAP_ENCODINGS),
}
_ID_SPACES = {pb.ID_SPACE_UNSPECIFIED: IdSpace.TRAIN_ID, **inverted(ID_SPACES)}
_FRAME_POLICIES = {pb.FRAME_POLICY_UNSPECIFIED: FramePolicy.ALL, **inverted(FRAME_POLICIES)}
_TIERS = {
    MemoryTier.NONE: pb.MEMORY_TIER_UNSPECIFIED,
    MemoryTier.DEVICE: pb.MEMORY_TIER_DEVICE,
    MemoryTier.SPILL: pb.MEMORY_TIER_SPILL,
    MemoryTier.FRAMES: pb.MEMORY_TIER_FRAMES,
}


def config_from_pb(request: pb.StreamSegmentRequest | None) -> SessionConfig:
    """The first message of a stream. Raises InvalidInputError when it is not a SessionConfig."""
    kind = request and request.WhichOneof("message")
    if request is None or kind != "config":
        raise InvalidInputError(
            f"the first message must be a SessionConfig, got {kind}", field="config"
        )
    config = request.config
    return SessionConfig(
        session_id=config.session_id,
        model=config.model,
        label_map_encoding=_known(
            _LABEL_MAP_ENCODINGS, config.label_map_encoding, "config.label_map_encoding"
        ),
        id_space=_known(_ID_SPACES, config.id_space, "config.id_space"),
        max_working_height=config.max_working_height,
        frame_policy=_known(_FRAME_POLICIES, config.frame_policy, "config.frame_policy"),
        has_scene_cut_guard=config.has_scene_cut_guard,
        resume_from=config.resume.next_frame_index if config.HasField("resume") else None,
        is_memoryless=config.is_memoryless,
        overlay_opacity=(
            config.overlay.opacity
            if config.overlay.HasField("opacity")
            else DEFAULT_OVERLAY_OPACITY
        ),
        overlay_quality=config.overlay.quality or DEFAULT_OVERLAY_QUALITY,
        wants_confidence=config.wants_confidence,
    )


def frame_from_pb(request: pb.StreamSegmentRequest) -> Frame:
    """Every later message of a stream. Raises InvalidInputError when it is not a Frame."""
    if request.WhichOneof("message") != "frame":
        raise InvalidInputError(
            f"every message after the first must be a Frame, got {request.WhichOneof('message')}",
            field="frame",
        )
    frame = request.frame
    encoding, fault = None, None
    try:
        encoding = _known(_IMAGE_ENCODINGS, frame.encoding, "frame.encoding")
        _check_index(frame.index)
    except InvalidInputError as error:
        fault = error
    return Frame(
        index=frame.index,
        encoding=encoding,
        data=frame.data,
        timestamp_us=frame.timestamp_us,
        width=frame.width,
        height=frame.height,
        deadline_seconds=frame.deadline_ms / 1000,
        is_memorise_only=frame.is_memorise_only,
        held_frame_index=frame.held_frame_index if frame.HasField("held_frame_index") else None,
        fault=fault,
        traceparent=frame.traceparent,
    )


def ready_to_pb(session: Session) -> pb.StreamSegmentResponse:
    """The answer to a SessionConfig."""
    return pb.StreamSegmentResponse(
        ready=pb.SessionReady(
            session_id=session.id,
            model=session.model.name,
            epoch=session.lease.epoch,
            origin=SESSION_ORIGINS[session.origin],
            next_frame_index=session.next_frame_index,
            memory_length=session.memory_length,
            class_names=[label.name for label in session.model.label_set.labels],
        )
    )


def result_to_pb(result: FrameResult) -> pb.StreamSegmentResponse:
    """The answer to a Frame."""
    message = pb.FrameResult(
        frame_index=result.frame_index,
        timestamp_us=result.timestamp_us,
        num_memory_frames=result.num_memory_frames,
        is_duplicate=result.is_duplicate,
        is_memory_reset=result.is_memory_reset,
        is_model_changed=result.is_model_changed,
        degradation_level=result.degradation_level,
    )
    if isinstance(result.outcome, EncodedLabelMap):
        message.label_map.CopyFrom(_label_map_to_pb(result.outcome))
        message.timings.CopyFrom(_timings_to_pb(result))
    elif isinstance(result.outcome, Skipped):
        message.skipped.CopyFrom(
            pb.SkippedFrame(
                reason=SKIP_REASONS[result.outcome.reason],
                is_memorised=result.outcome.is_memorised,
            )
        )
    else:
        error = result.outcome
        message.error.CopyFrom(
            pb.FrameError(
                code=status_of(error).value[0],
                message=error.message,
                field=error.field,
                retry_after_seconds=error.retry_after_seconds or 0.0,
                reason=error.reason,
                metadata=metadata_of(error),
            )
        )
    return pb.StreamSegmentResponse(result=message)


def ended_to_pb(session: Session, stream: Stream) -> pb.StreamSegmentResponse:
    """The last message of a stream that ended in order."""
    reason = SESSION_END_REASONS[SessionEndReason(stream.end_reason.value)]
    return pb.StreamSegmentResponse(
        ended=pb.SessionEnded(reason=reason, num_label_maps=session.num_label_maps)
    )


def error_to_pb(error: SegstreamError) -> pb.StreamSegmentResponse:
    """The last message of a session that could not begin or go on."""
    return pb.StreamSegmentResponse(
        error=pb.SessionError(
            code=status_of(error).value[0],
            message=error.message,
            field=error.field,
            retry_after_seconds=error.retry_after_seconds or 0.0,
            reason=error.reason,
            metadata=metadata_of(error),
        )
    )


def status_to_pb(status: SessionStatus) -> pb.SessionStatus:
    """A session as operators see it."""
    return pb.SessionStatus(**(asdict(status) | {"tier": _TIERS[status.tier]}))


def _label_map_to_pb(label_map: EncodedLabelMap) -> pb.LabelMap:
    return pb.LabelMap(
        encoding=LABEL_MAP_ENCODINGS[label_map.encoding],
        width=label_map.width,
        height=label_map.height,
        data=label_map.data,
        digest=label_map.digest,
        base_frame_index=label_map.base_frame_index,
        confidence=label_map.confidence,
        num_confidence_bytes=len(label_map.confidence),
    )


def _timings_to_pb(result: FrameResult) -> pb.StageTimings:
    seconds = {f"{stage}_seconds": value for stage, value in result.stage_seconds.items()}
    return pb.StageTimings(batch_size=result.batch_size, **seconds)


def _check_index(index: int) -> None:
    if index > MAX_FRAME_INDEX:
        raise InvalidInputError(
            f"frame.index is {index}, must be at most {MAX_FRAME_INDEX}",
            field="frame.index",
            limit=MAX_FRAME_INDEX,
        )


def _known(table: Mapping[_K, _T], number: _K, field: str) -> _T:
    if number not in table:
        raise InvalidInputError(f"{field} is {number}, must be one of {sorted(table)}", field=field)
    return table[number]
