from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class LabelMapEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LABEL_MAP_ENCODING_UNSPECIFIED: _ClassVar[LabelMapEncoding]
    LABEL_MAP_ENCODING_PNG: _ClassVar[LabelMapEncoding]
    LABEL_MAP_ENCODING_ZSTD: _ClassVar[LabelMapEncoding]
    LABEL_MAP_ENCODING_RAW: _ClassVar[LabelMapEncoding]
    LABEL_MAP_ENCODING_COCO_RLE: _ClassVar[LabelMapEncoding]
    LABEL_MAP_ENCODING_DELTA: _ClassVar[LabelMapEncoding]
    LABEL_MAP_ENCODING_OVERLAY_JPEG: _ClassVar[LabelMapEncoding]

class IdSpace(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ID_SPACE_UNSPECIFIED: _ClassVar[IdSpace]
    ID_SPACE_TRAIN_ID: _ClassVar[IdSpace]
    ID_SPACE_LABEL_ID: _ClassVar[IdSpace]

class FramePolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FRAME_POLICY_UNSPECIFIED: _ClassVar[FramePolicy]
    FRAME_POLICY_ALL: _ClassVar[FramePolicy]
    FRAME_POLICY_LATEST: _ClassVar[FramePolicy]
    FRAME_POLICY_KEEP_MEMORY_SKIP_MASK: _ClassVar[FramePolicy]

class ImageEncoding(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    IMAGE_ENCODING_UNSPECIFIED: _ClassVar[ImageEncoding]
    IMAGE_ENCODING_JPEG: _ClassVar[ImageEncoding]
    IMAGE_ENCODING_PNG: _ClassVar[ImageEncoding]
    IMAGE_ENCODING_RAW_RGB: _ClassVar[ImageEncoding]

class SessionOrigin(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_ORIGIN_UNSPECIFIED: _ClassVar[SessionOrigin]
    SESSION_ORIGIN_NEW: _ClassVar[SessionOrigin]
    SESSION_ORIGIN_RESUMED: _ClassVar[SessionOrigin]
    SESSION_ORIGIN_RESTORED: _ClassVar[SessionOrigin]
    SESSION_ORIGIN_REBUILT: _ClassVar[SessionOrigin]

class SkipReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SKIP_REASON_UNSPECIFIED: _ClassVar[SkipReason]
    SKIP_REASON_SUPERSEDED: _ClassVar[SkipReason]
    SKIP_REASON_DEADLINE_PASSED: _ClassVar[SkipReason]
    SKIP_REASON_MEMORISE_ONLY: _ClassVar[SkipReason]

class SessionEndReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SESSION_END_REASON_UNSPECIFIED: _ClassVar[SessionEndReason]
    SESSION_END_REASON_CLIENT_CLOSED: _ClassVar[SessionEndReason]
    SESSION_END_REASON_SHUTDOWN: _ClassVar[SessionEndReason]
    SESSION_END_REASON_IDLE: _ClassVar[SessionEndReason]
    SESSION_END_REASON_EXPIRED: _ClassVar[SessionEndReason]
    SESSION_END_REASON_REPLACED: _ClassVar[SessionEndReason]
    SESSION_END_REASON_CLOSED: _ClassVar[SessionEndReason]

class MemoryTier(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MEMORY_TIER_UNSPECIFIED: _ClassVar[MemoryTier]
    MEMORY_TIER_DEVICE: _ClassVar[MemoryTier]
    MEMORY_TIER_SPILL: _ClassVar[MemoryTier]
    MEMORY_TIER_FRAMES: _ClassVar[MemoryTier]
LABEL_MAP_ENCODING_UNSPECIFIED: LabelMapEncoding
LABEL_MAP_ENCODING_PNG: LabelMapEncoding
LABEL_MAP_ENCODING_ZSTD: LabelMapEncoding
LABEL_MAP_ENCODING_RAW: LabelMapEncoding
LABEL_MAP_ENCODING_COCO_RLE: LabelMapEncoding
LABEL_MAP_ENCODING_DELTA: LabelMapEncoding
LABEL_MAP_ENCODING_OVERLAY_JPEG: LabelMapEncoding
ID_SPACE_UNSPECIFIED: IdSpace
ID_SPACE_TRAIN_ID: IdSpace
ID_SPACE_LABEL_ID: IdSpace
FRAME_POLICY_UNSPECIFIED: FramePolicy
FRAME_POLICY_ALL: FramePolicy
FRAME_POLICY_LATEST: FramePolicy
FRAME_POLICY_KEEP_MEMORY_SKIP_MASK: FramePolicy
IMAGE_ENCODING_UNSPECIFIED: ImageEncoding
IMAGE_ENCODING_JPEG: ImageEncoding
IMAGE_ENCODING_PNG: ImageEncoding
IMAGE_ENCODING_RAW_RGB: ImageEncoding
SESSION_ORIGIN_UNSPECIFIED: SessionOrigin
SESSION_ORIGIN_NEW: SessionOrigin
SESSION_ORIGIN_RESUMED: SessionOrigin
SESSION_ORIGIN_RESTORED: SessionOrigin
SESSION_ORIGIN_REBUILT: SessionOrigin
SKIP_REASON_UNSPECIFIED: SkipReason
SKIP_REASON_SUPERSEDED: SkipReason
SKIP_REASON_DEADLINE_PASSED: SkipReason
SKIP_REASON_MEMORISE_ONLY: SkipReason
SESSION_END_REASON_UNSPECIFIED: SessionEndReason
SESSION_END_REASON_CLIENT_CLOSED: SessionEndReason
SESSION_END_REASON_SHUTDOWN: SessionEndReason
SESSION_END_REASON_IDLE: SessionEndReason
SESSION_END_REASON_EXPIRED: SessionEndReason
SESSION_END_REASON_REPLACED: SessionEndReason
SESSION_END_REASON_CLOSED: SessionEndReason
MEMORY_TIER_UNSPECIFIED: MemoryTier
MEMORY_TIER_DEVICE: MemoryTier
MEMORY_TIER_SPILL: MemoryTier
MEMORY_TIER_FRAMES: MemoryTier

class StreamSegmentRequest(_message.Message):
    __slots__ = ("config", "frame", "end_of_frames")
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    FRAME_FIELD_NUMBER: _ClassVar[int]
    END_OF_FRAMES_FIELD_NUMBER: _ClassVar[int]
    config: SessionConfig
    frame: Frame
    end_of_frames: EndOfFrames
    def __init__(self, config: _Optional[_Union[SessionConfig, _Mapping]] = ..., frame: _Optional[_Union[Frame, _Mapping]] = ..., end_of_frames: _Optional[_Union[EndOfFrames, _Mapping]] = ...) -> None: ...

class EndOfFrames(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StreamSegmentResponse(_message.Message):
    __slots__ = ("ready", "result", "ended", "error")
    READY_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ready: SessionReady
    result: FrameResult
    ended: SessionEnded
    error: SessionError
    def __init__(self, ready: _Optional[_Union[SessionReady, _Mapping]] = ..., result: _Optional[_Union[FrameResult, _Mapping]] = ..., ended: _Optional[_Union[SessionEnded, _Mapping]] = ..., error: _Optional[_Union[SessionError, _Mapping]] = ...) -> None: ...

class SessionConfig(_message.Message):
    __slots__ = ("session_id", "model", "label_map_encoding", "id_space", "max_working_height", "frame_policy", "has_scene_cut_guard", "resume", "is_memoryless", "overlay", "wants_confidence")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_ENCODING_FIELD_NUMBER: _ClassVar[int]
    ID_SPACE_FIELD_NUMBER: _ClassVar[int]
    MAX_WORKING_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    FRAME_POLICY_FIELD_NUMBER: _ClassVar[int]
    HAS_SCENE_CUT_GUARD_FIELD_NUMBER: _ClassVar[int]
    RESUME_FIELD_NUMBER: _ClassVar[int]
    IS_MEMORYLESS_FIELD_NUMBER: _ClassVar[int]
    OVERLAY_FIELD_NUMBER: _ClassVar[int]
    WANTS_CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    label_map_encoding: LabelMapEncoding
    id_space: IdSpace
    max_working_height: int
    frame_policy: FramePolicy
    has_scene_cut_guard: bool
    resume: Resume
    is_memoryless: bool
    overlay: OverlayStyle
    wants_confidence: bool
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., label_map_encoding: _Optional[_Union[LabelMapEncoding, str]] = ..., id_space: _Optional[_Union[IdSpace, str]] = ..., max_working_height: _Optional[int] = ..., frame_policy: _Optional[_Union[FramePolicy, str]] = ..., has_scene_cut_guard: _Optional[bool] = ..., resume: _Optional[_Union[Resume, _Mapping]] = ..., is_memoryless: _Optional[bool] = ..., overlay: _Optional[_Union[OverlayStyle, _Mapping]] = ..., wants_confidence: _Optional[bool] = ...) -> None: ...

class OverlayStyle(_message.Message):
    __slots__ = ("opacity", "quality")
    OPACITY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    opacity: float
    quality: int
    def __init__(self, opacity: _Optional[float] = ..., quality: _Optional[int] = ...) -> None: ...

class Resume(_message.Message):
    __slots__ = ("next_frame_index",)
    NEXT_FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    next_frame_index: int
    def __init__(self, next_frame_index: _Optional[int] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("index", "timestamp_us", "encoding", "data", "width", "height", "deadline_ms", "is_memorise_only", "held_frame_index", "traceparent")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_US_FIELD_NUMBER: _ClassVar[int]
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_MS_FIELD_NUMBER: _ClassVar[int]
    IS_MEMORISE_ONLY_FIELD_NUMBER: _ClassVar[int]
    HELD_FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    index: int
    timestamp_us: int
    encoding: ImageEncoding
    data: bytes
    width: int
    height: int
    deadline_ms: int
    is_memorise_only: bool
    held_frame_index: int
    traceparent: str
    def __init__(self, index: _Optional[int] = ..., timestamp_us: _Optional[int] = ..., encoding: _Optional[_Union[ImageEncoding, str]] = ..., data: _Optional[bytes] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., deadline_ms: _Optional[int] = ..., is_memorise_only: _Optional[bool] = ..., held_frame_index: _Optional[int] = ..., traceparent: _Optional[str] = ...) -> None: ...

class SessionReady(_message.Message):
    __slots__ = ("session_id", "model", "epoch", "origin", "next_frame_index", "memory_length", "class_names")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    ORIGIN_FIELD_NUMBER: _ClassVar[int]
    NEXT_FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    MEMORY_LENGTH_FIELD_NUMBER: _ClassVar[int]
    CLASS_NAMES_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    epoch: int
    origin: SessionOrigin
    next_frame_index: int
    memory_length: int
    class_names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., epoch: _Optional[int] = ..., origin: _Optional[_Union[SessionOrigin, str]] = ..., next_frame_index: _Optional[int] = ..., memory_length: _Optional[int] = ..., class_names: _Optional[_Iterable[str]] = ...) -> None: ...

class FrameResult(_message.Message):
    __slots__ = ("frame_index", "timestamp_us", "label_map", "error", "skipped", "num_memory_frames", "timings", "is_duplicate", "is_memory_reset", "degradation_level", "is_model_changed")
    FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    TIMESTAMP_US_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    NUM_MEMORY_FRAMES_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    IS_DUPLICATE_FIELD_NUMBER: _ClassVar[int]
    IS_MEMORY_RESET_FIELD_NUMBER: _ClassVar[int]
    DEGRADATION_LEVEL_FIELD_NUMBER: _ClassVar[int]
    IS_MODEL_CHANGED_FIELD_NUMBER: _ClassVar[int]
    frame_index: int
    timestamp_us: int
    label_map: LabelMap
    error: FrameError
    skipped: SkippedFrame
    num_memory_frames: int
    timings: StageTimings
    is_duplicate: bool
    is_memory_reset: bool
    degradation_level: int
    is_model_changed: bool
    def __init__(self, frame_index: _Optional[int] = ..., timestamp_us: _Optional[int] = ..., label_map: _Optional[_Union[LabelMap, _Mapping]] = ..., error: _Optional[_Union[FrameError, _Mapping]] = ..., skipped: _Optional[_Union[SkippedFrame, _Mapping]] = ..., num_memory_frames: _Optional[int] = ..., timings: _Optional[_Union[StageTimings, _Mapping]] = ..., is_duplicate: _Optional[bool] = ..., is_memory_reset: _Optional[bool] = ..., degradation_level: _Optional[int] = ..., is_model_changed: _Optional[bool] = ...) -> None: ...

class SkippedFrame(_message.Message):
    __slots__ = ("reason", "is_memorised")
    REASON_FIELD_NUMBER: _ClassVar[int]
    IS_MEMORISED_FIELD_NUMBER: _ClassVar[int]
    reason: SkipReason
    is_memorised: bool
    def __init__(self, reason: _Optional[_Union[SkipReason, str]] = ..., is_memorised: _Optional[bool] = ...) -> None: ...

class LabelMap(_message.Message):
    __slots__ = ("encoding", "width", "height", "data", "digest", "base_frame_index", "confidence", "num_confidence_bytes")
    ENCODING_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    BASE_FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    NUM_CONFIDENCE_BYTES_FIELD_NUMBER: _ClassVar[int]
    encoding: LabelMapEncoding
    width: int
    height: int
    data: bytes
    digest: bytes
    base_frame_index: int
    confidence: bytes
    num_confidence_bytes: int
    def __init__(self, encoding: _Optional[_Union[LabelMapEncoding, str]] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., data: _Optional[bytes] = ..., digest: _Optional[bytes] = ..., base_frame_index: _Optional[int] = ..., confidence: _Optional[bytes] = ..., num_confidence_bytes: _Optional[int] = ...) -> None: ...

class FrameError(_message.Message):
    __slots__ = ("code", "message", "field", "retry_after_seconds", "reason", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    field: str
    retry_after_seconds: float
    reason: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ..., reason: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SessionError(_message.Message):
    __slots__ = ("code", "message", "field", "retry_after_seconds", "reason", "metadata")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    code: int
    message: str
    field: str
    retry_after_seconds: float
    reason: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, code: _Optional[int] = ..., message: _Optional[str] = ..., field: _Optional[str] = ..., retry_after_seconds: _Optional[float] = ..., reason: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class StageTimings(_message.Message):
    __slots__ = ("queue_seconds", "image_decode_seconds", "encode_seconds", "memory_read_seconds", "fuse_decode_seconds", "label_map_encode_seconds", "total_seconds", "batch_size")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ENCODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_READ_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FUSE_DECODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LABEL_MAP_ENCODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    image_decode_seconds: float
    encode_seconds: float
    memory_read_seconds: float
    fuse_decode_seconds: float
    label_map_encode_seconds: float
    total_seconds: float
    batch_size: int
    def __init__(self, queue_seconds: _Optional[float] = ..., image_decode_seconds: _Optional[float] = ..., encode_seconds: _Optional[float] = ..., memory_read_seconds: _Optional[float] = ..., fuse_decode_seconds: _Optional[float] = ..., label_map_encode_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ..., batch_size: _Optional[int] = ...) -> None: ...

class SessionEnded(_message.Message):
    __slots__ = ("reason", "num_label_maps")
    REASON_FIELD_NUMBER: _ClassVar[int]
    NUM_LABEL_MAPS_FIELD_NUMBER: _ClassVar[int]
    reason: SessionEndReason
    num_label_maps: int
    def __init__(self, reason: _Optional[_Union[SessionEndReason, str]] = ..., num_label_maps: _Optional[int] = ...) -> None: ...

class ListSessionsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSessionsResponse(_message.Message):
    __slots__ = ("sessions",)
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[SessionStatus]
    def __init__(self, sessions: _Optional[_Iterable[_Union[SessionStatus, _Mapping]]] = ...) -> None: ...

class GetSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class GetSessionResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: SessionStatus
    def __init__(self, session: _Optional[_Union[SessionStatus, _Mapping]] = ...) -> None: ...

class CloseSessionRequest(_message.Message):
    __slots__ = ("session_id",)
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    def __init__(self, session_id: _Optional[str] = ...) -> None: ...

class CloseSessionResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SessionStatus(_message.Message):
    __slots__ = ("session_id", "model", "owner", "epoch", "is_streaming", "next_frame_index", "num_label_maps", "tier", "device_bytes", "spill_bytes", "frame_bytes", "page_age_seconds", "idle_seconds", "last_move", "last_move_age_seconds", "temporal_consistency")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    IS_STREAMING_FIELD_NUMBER: _ClassVar[int]
    NEXT_FRAME_INDEX_FIELD_NUMBER: _ClassVar[int]
    NUM_LABEL_MAPS_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SPILL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FRAME_BYTES_FIELD_NUMBER: _ClassVar[int]
    PAGE_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LAST_MOVE_FIELD_NUMBER: _ClassVar[int]
    LAST_MOVE_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TEMPORAL_CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    model: str
    owner: str
    epoch: int
    is_streaming: bool
    next_frame_index: int
    num_label_maps: int
    tier: MemoryTier
    device_bytes: int
    spill_bytes: int
    frame_bytes: int
    page_age_seconds: _containers.RepeatedScalarFieldContainer[float]
    idle_seconds: float
    last_move: str
    last_move_age_seconds: float
    temporal_consistency: float
    def __init__(self, session_id: _Optional[str] = ..., model: _Optional[str] = ..., owner: _Optional[str] = ..., epoch: _Optional[int] = ..., is_streaming: _Optional[bool] = ..., next_frame_index: _Optional[int] = ..., num_label_maps: _Optional[int] = ..., tier: _Optional[_Union[MemoryTier, str]] = ..., device_bytes: _Optional[int] = ..., spill_bytes: _Optional[int] = ..., frame_bytes: _Optional[int] = ..., page_age_seconds: _Optional[_Iterable[float]] = ..., idle_seconds: _Optional[float] = ..., last_move: _Optional[str] = ..., last_move_age_seconds: _Optional[float] = ..., temporal_consistency: _Optional[float] = ...) -> None: ...
