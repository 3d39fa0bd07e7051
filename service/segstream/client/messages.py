"""What a caller of the client gives and gets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from segstream.errors import NotFoundError, SegstreamError
from segstream.label_sets import LABEL_SETS, LabelSet
from segstream.media.confidence import ConfidenceMap
from segstream.media.images import Image, ImageEncoding
from segstream.media.label_maps import IdSpace, LabelMap, LabelMapEncoding
from segstream.wire import (
    DEFAULT_OVERLAY_OPACITY,
    DEFAULT_OVERLAY_QUALITY,
    FramePolicy,
    SessionEndReason,
    SessionOrigin,
    SkipReason,
)


class ChannelOrder(StrEnum):
    """How the channels of the caller's images lie: RGB, or BGR as OpenCV's do."""

    RGB = "rgb"
    BGR = "bgr"


class StreamKeywords(TypedDict, total=False):
    """The keyword arguments of ``stream``; `StreamOptions` says what they mean."""

    model: str
    session_id: str
    channel_order: ChannelOrder
    frame_encoding: ImageEncoding
    jpeg_quality: int
    label_map_encoding: LabelMapEncoding
    id_space: IdSpace
    max_working_height: int
    verify_digests: bool
    frame_policy: FramePolicy
    has_scene_cut_guard: bool
    resume_timeout_seconds: float
    resume_from: int | None
    is_memoryless: bool
    overlay_opacity: float
    overlay_quality: int
    wants_confidence: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """How one session is to run.

    ``model`` and ``session_id``: empty for the service's choice. ``frame_encoding``: how frames
    travel; everything but JPEG keeps the exact pixels. ``max_working_height``: frames higher than
    this are segmented at this height and their label maps enlarged; 0 for none.
    ``verify_digests``: compare every label map with the digest the service sent; needs train ids.
    ``frame_policy``: what becomes of frames that wait. ``has_scene_cut_guard``: forget the memory
    at a hard cut. ``resume_timeout_seconds``: how long a session whose service is gone is tried
    elsewhere before its error is raised; 0 = not at all. ``resume_from``: go on with the session of
    this id at this frame index, for a program that was itself started anew. ``is_memoryless``:
    every frame is segmented as if it were the first one. ``label_map_encoding``: how label maps
    travel; with OVERLAY_JPEG pictures come in their place, whose looks ``overlay_opacity``, from 0
    to 1, and ``overlay_quality``, from 1 to 100, tell. ``wants_confidence``: how sure the network
    is of each pixel comes as well. ``channel_order`` is that of the images handed in; OpenCV's are
    BGR.
    """

    model: str = ""
    session_id: str = ""
    channel_order: ChannelOrder = ChannelOrder.RGB
    frame_encoding: ImageEncoding = ImageEncoding.JPEG
    jpeg_quality: int = 95
    label_map_encoding: LabelMapEncoding = LabelMapEncoding.ZSTD
    id_space: IdSpace = IdSpace.TRAIN_ID
    max_working_height: int = 0
    verify_digests: bool = False
    frame_policy: FramePolicy = FramePolicy.ALL
    has_scene_cut_guard: bool = False
    resume_timeout_seconds: float = 30.0
    resume_from: int | None = None
    is_memoryless: bool = False
    overlay_opacity: float = DEFAULT_OVERLAY_OPACITY
    overlay_quality: int = DEFAULT_OVERLAY_QUALITY
    wants_confidence: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """An image, ``(H, W, 3)`` uint8 of the session's channel order, and when it was taken.

    ``timestamp_us`` is by the caller's clock. ``deadline_ms`` after its arrival at the service its
    label map is of no use; 0 = never.
    """

    image: Image
    timestamp_us: int = 0
    deadline_ms: int = 0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What the service said when it opened the session."""

    session_id: str
    model: str
    epoch: int
    origin: SessionOrigin
    next_frame_index: int
    memory_length: int
    class_names: tuple[str, ...]

    @property
    def label_set(self) -> LabelSet:
        """The known label set with exactly these classes; NotFoundError if there is none."""
        return find_label_set(self.class_names)


@dataclass(frozen=True, slots=True)
class SessionEnd:
    """The service's last word on a session that ended in order."""

    reason: SessionEndReason
    num_label_maps: int


@dataclass(frozen=True, slots=True)
class Resumption:
    """How a session went on after its call had broken.

    ``seconds`` from the break to the next answer, 0 before it. Not ``is_exact`` when a frame was
    refused that the memory is made of.
    """

    origin: SessionOrigin
    epoch: int
    num_frames_resent: int = 0
    seconds: float = 0.0
    is_exact: bool = True


@dataclass(frozen=True, slots=True)
class StageTimings:
    """Where the service spent a frame's time, and how many sessions shared its forward."""

    queue_seconds: float = 0.0
    image_decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    memory_read_seconds: float = 0.0
    fuse_decode_seconds: float = 0.0
    label_map_encode_seconds: float = 0.0
    total_seconds: float = 0.0
    batch_size: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Decoded:
    """What an answer held: a label map or an overlay, and a confidence map if asked for."""

    label_map: LabelMap | None = None
    overlay: Image | None = None
    confidence: ConfidenceMap | None = None


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameResult:
    """The answer to one frame: a label map, an error, or why it was skipped; one of them.

    The error of a frame leaves the session as it was, so it is told here and the stream goes on.
    ``is_memory_reset``: the memory was emptied before this frame, by the scene-cut guard or because
    the service had lost it. ``is_model_changed``: it was rebuilt on the model's new weights.
    ``degradation_level``: steps that the service's overload took off the memory that was read.
    ``digest`` is the BLAKE2b-128 of the train ids, empty with an error. ``round_trip_seconds``
    runs from the encoded frame's hand-over to gRPC until its answer arrived. ``num_bytes``: what
    label map or overlay, and confidence, took on the way. ``base_frame_index``: the frame since
    whose label map a delta told the change; None = it came whole.
    """

    frame_index: int
    timestamp_us: int
    error: SegstreamError | None = None
    skipped: SkipReason | None = None
    digest: bytes = b""
    num_memory_frames: int = 0
    is_duplicate: bool = False
    is_memory_reset: bool = False
    is_model_changed: bool = False
    degradation_level: int = 0
    timings: StageTimings = field(default_factory=StageTimings)
    round_trip_seconds: float = 0.0
    num_bytes: int = 0
    base_frame_index: int | None = None
    decoded: Decoded | None = field(default=None, repr=False)

    @property
    def label_map(self) -> LabelMap:
        """The label map, ``(H, W)`` uint8 of the frame's size.

        Raises ``error`` if there is one, NotFoundError for a skipped frame and for an overlay.
        """
        return self._found("label map", self._outcome().label_map)

    @property
    def overlay(self) -> Image:
        """The frame in the colours of its classes, RGB ``(H, W, 3)`` uint8, with OVERLAY_JPEG.

        Raises as ``label_map``.
        """
        return self._found("overlay", self._outcome().overlay)

    @property
    def confidence(self) -> ConfidenceMap:
        """How sure the network is of each pixel's class, ``(H, W)`` uint8: its softmax, 255 = 1.

        Raises as ``label_map``, and NotFoundError unless the stream ``wants_confidence``.
        """
        return self._found("confidence", self._outcome().confidence)

    def _outcome(self) -> Decoded:
        if self.error is not None:
            raise self.error
        if self.skipped is not None:
            raise NotFoundError(f"frame {self.frame_index} was skipped: {self.skipped}")
        assert self.decoded is not None
        return self.decoded

    def _found(self, name: str, array: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
        if array is None:
            raise NotFoundError(
                f"frame {self.frame_index} came without {name}: the stream did not ask for it",
                field=name,
            )
        return array


def find_label_set(class_names: Sequence[str]) -> LabelSet:
    """The known label set with exactly these class names in this order, or NotFoundError."""
    for label_set in LABEL_SETS.values():
        if tuple(label.name for label in label_set.labels) == tuple(class_names):
            return label_set
    raise NotFoundError(
        f"no label set has the model's {len(class_names)} classes ({', '.join(class_names)}); "
        f"known label sets: {', '.join(LABEL_SETS)}",
        field="class_names",
    )
