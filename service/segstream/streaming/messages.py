"""What goes into a session and what comes out, whatever wire carries it."""

from dataclasses import dataclass, field
from enum import StrEnum

from segstream.errors import InvalidInputError, SegstreamError
from segstream.media.images import ImageEncoding
from segstream.media.label_maps import IdSpace, LabelMapEncoding
from segstream.wire import (
    DEFAULT_OVERLAY_OPACITY,
    DEFAULT_OVERLAY_QUALITY,
    FramePolicy,
    SkipReason,
    check_range,
    check_session_id,
)


class SessionEndReason(StrEnum):
    """Why a stream or a session ended; one for every way it can."""

    CLIENT_CLOSED = "client_closed"
    CLIENT_GONE = "client_gone"
    SHUTDOWN = "shutdown"
    IDLE = "idle"
    EXPIRED = "expired"
    REPLACED = "replaced"
    CLOSED = "closed"
    FAULT = "fault"


class MemoryTier(StrEnum):
    """Where the memory of a session is."""

    NONE = "none"
    DEVICE = "device"
    SPILL = "spill"
    FRAMES = "frames"


@dataclass(frozen=True, slots=True)
class SessionConfig:
    """How a session is to be served. Empty ``session_id`` or ``model``: the service chooses.

    ``max_working_height`` in pixels; 0 = every frame at its own size. ``resume_from``: the client
    goes on with the session and has the answers to all frames below this index; None = it begins
    anew. ``is_memoryless``: every frame is segmented as if it were the first one. ``is_offline``:
    nobody waits for the answer to a single frame. ``overlay_opacity`` from 0 to 1 and
    ``overlay_quality`` from 1 to 100 are for OVERLAY_JPEG. ``wants_confidence``: each label map
    comes with one of how sure the network is. Raises InvalidInputError.
    """

    session_id: str = ""
    model: str = ""
    label_map_encoding: LabelMapEncoding = LabelMapEncoding.PNG
    id_space: IdSpace = IdSpace.TRAIN_ID
    max_working_height: int = 0
    frame_policy: FramePolicy = FramePolicy.ALL
    has_scene_cut_guard: bool = False
    resume_from: int | None = None
    is_memoryless: bool = False
    is_offline: bool = False
    overlay_opacity: float = DEFAULT_OVERLAY_OPACITY
    overlay_quality: int = DEFAULT_OVERLAY_QUALITY
    wants_confidence: bool = False

    def __post_init__(self) -> None:
        check_session_id(self.session_id, "config.session_id")
        check_range("config.overlay.opacity", self.overlay_opacity, 0, 1)
        check_range("config.overlay.quality", self.overlay_quality, 1, 100)
        if self.resume_from is not None and not self.session_id:
            raise InvalidInputError(
                "config.session_id is empty, but config.resume needs the session's id",
                field="config.session_id",
            )
        if self.is_memoryless and self.frame_policy is FramePolicy.KEEP_MEMORY_SKIP_MASK:
            raise InvalidInputError(
                f"config.frame_policy is {self.frame_policy}, but config.is_memoryless says that "
                "there is no memory to keep",
                field="config.frame_policy",
            )


@dataclass(frozen=True, slots=True)
class Frame:
    """One encoded frame; ``timestamp_us`` is the client's clock.

    ``encoding`` None = told by the data's first bytes. Size 0 = as the image says.
    ``deadline_seconds`` after its arrival a frame that still waits is skipped; 0 = never.
    ``is_memorise_only``: no label map is wanted. ``held_frame_index``: the client holds the label
    map of that frame. ``fault`` is what the wire found wrong with the frame already; it will be the
    frame's result. ``traceparent``: the W3C trace that the frame belongs to; empty: that of its
    stream.
    """

    index: int
    encoding: ImageEncoding | None
    data: bytes
    timestamp_us: int = 0
    width: int = 0
    height: int = 0
    deadline_seconds: float = 0.0
    is_memorise_only: bool = False
    held_frame_index: int | None = None
    fault: SegstreamError | None = None
    traceparent: str = ""


@dataclass(frozen=True, slots=True)
class EncodedLabelMap:
    """A label map as the client asked for it, and the digest of its train ids.

    ``data`` of a DELTA tells the change since the label map of ``base_frame_index``; None = it is
    whole. ``confidence`` is a packed confidence map, empty = not asked for.
    """

    encoding: LabelMapEncoding
    width: int
    height: int
    data: bytes
    digest: bytes
    base_frame_index: int | None = None
    confidence: bytes = b""

    @property
    def num_bytes(self) -> int:
        """What travels of it."""
        return len(self.data) + len(self.confidence)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A frame without a label map, as was asked for; the memory may hold it all the same."""

    reason: SkipReason
    is_memorised: bool


@dataclass(frozen=True, slots=True)
class FrameResult:
    """The answer to one frame: a label map, word that it was skipped, or an error.

    ``stage_seconds`` by stage name (telemetry.metrics.STAGES); ``num_memory_frames`` is the depth
    of memory the label map rests on, ``degradation_level`` the steps that overload took off it.
    ``is_model_changed``: the memory was rebuilt before this frame, on weights that are new.
    """

    frame_index: int
    timestamp_us: int
    outcome: EncodedLabelMap | Skipped | SegstreamError
    num_memory_frames: int = 0
    batch_size: int = 0
    is_duplicate: bool = False
    is_memory_reset: bool = False
    is_model_changed: bool = False
    degradation_level: int = 0
    stage_seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SessionStatus:
    """A session as operators see it; ages in seconds, ``page_age_seconds`` oldest first.

    ``temporal_consistency``: the running mean of its stream, None where nothing was compared.
    """

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
    page_age_seconds: tuple[float, ...]
    idle_seconds: float
    last_move: str
    last_move_age_seconds: float
    temporal_consistency: float | None
