"""The client's side of the StreamSegment contract, without any input or output."""

import math
import time
import uuid
from collections import OrderedDict, deque
from dataclasses import dataclass, fields, replace

import grpc
import numpy as np

from segstream.client.channel import MAX_MESSAGE_BYTES, error_of
from segstream.client.decoder import AnswerDecoder
from segstream.client.messages import (
    ChannelOrder,
    Decoded,
    Frame,
    FrameResult,
    Resumption,
    SessionEnd,
    SessionInfo,
    StageTimings,
    StreamOptions,
)
from segstream.errors import (
    EngineError,
    InvalidInputError,
    SegstreamError,
    TooLargeError,
    UnavailableError,
)
from segstream.media.images import Image, encode_image
from segstream.media.label_maps import (
    IdSpace,
    LabelMapEncoding,
)
from segstream.rpc_status import error_of_parts
from segstream.trace_context import current_headers
from segstream.v1 import segmentation_pb2 as pb
from segstream.wire import (
    FRAME_POLICIES,
    ID_SPACES,
    IMAGE_ENCODINGS,
    LABEL_MAP_ENCODINGS,
    SESSION_END_REASONS,
    SESSION_ORIGINS,
    SKIP_REASONS,
    SessionEndReason,
    SessionOrigin,
    check_range,
    check_session_id,
    inverted,
)

SESSION_ID_HEADER = "x-session-id"

# What a message may hold besides the image.
_MESSAGE_OVERHEAD_BYTES = 1024

# What the numbers of the wire can hold.
_MAX_UINT32 = 2**32 - 1
_MAX_UINT64 = 2**64 - 1
_MAX_INT64 = 2**63 - 1

_END_REASONS_BY_NUMBER = inverted(SESSION_END_REASONS)
_ORIGINS_BY_NUMBER = inverted(SESSION_ORIGINS)
_SKIP_REASONS_BY_NUMBER = inverted(SKIP_REASONS)


@dataclass(frozen=True, slots=True)
class _SentFrame:
    frame: pb.Frame
    sent_at: float
    is_memorise_only: bool = False
    held_frame_index: int | None = None


class SessionProtocol:
    """Turns frames into requests and responses into results, over as many calls as it takes.

    Keeps the frames without an answer, and of those with one the last that the memory is made of:
    whatever a replica knows of the session, these make its memory what it was. One thread may send
    while another accepts; ``config_request``, ``take``, ``frame_request`` and ``resend`` need a
    lock around them.
    """

    def __init__(
        self, address: str, options: StreamOptions, metadata: tuple[tuple[str, str], ...] = ()
    ) -> None:
        _check_options(options)
        self._client_metadata = metadata
        self.address = address
        self.options = options
        self.info: SessionInfo | None = None
        self.end: SessionEnd | None = None
        self.resumptions: list[Resumption] = []
        self._session_id = options.session_id or uuid.uuid4().hex
        # Calls are made in a thread of their own, which knows nothing of the caller's span.
        self._trace_headers = current_headers()
        self._epoch = 0
        self._next_frame_index = options.resume_from or 0
        self._unanswered: OrderedDict[int, pb.Frame] = OrderedDict()
        self._memorised: deque[pb.Frame] = deque()
        self._in_flight: deque[_SentFrame] = deque()
        self._has_progressed = False
        self._broke_at: float | None = None
        self._decoder = AnswerDecoder(verifies_digests=_verifies_digests(options))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The call's headers: for the load balancer, the key, and the trace of the caller."""
        return (
            (SESSION_ID_HEADER, self._session_id),
            *self._client_metadata,
            *self._trace_headers.items(),
        )

    @property
    def is_resuming(self) -> bool:
        """Whether the next call goes on with a session that an earlier one began."""
        return self.info is not None

    def has_progressed(self) -> bool:
        """Whether frames were answered since this was last asked."""
        has_progressed, self._has_progressed = self._has_progressed, False
        return has_progressed

    def config_request(self) -> pb.StreamSegmentRequest:
        """The first message of a call."""
        options = self.options
        config = pb.SessionConfig(
            session_id=self._session_id,
            model=self.info.model if self.info is not None else options.model,
            label_map_encoding=LABEL_MAP_ENCODINGS[options.label_map_encoding],
            id_space=ID_SPACES[options.id_space],
            max_working_height=options.max_working_height,
            frame_policy=FRAME_POLICIES[options.frame_policy],
            has_scene_cut_guard=options.has_scene_cut_guard,
            is_memoryless=options.is_memoryless,
            wants_confidence=options.wants_confidence,
        )
        if options.label_map_encoding is LabelMapEncoding.OVERLAY_JPEG:
            config.overlay.opacity = options.overlay_opacity
            config.overlay.quality = options.overlay_quality
        if self.is_resuming or options.resume_from is not None:
            missing = next(iter(self._unanswered), self._next_frame_index)
            config.resume.next_frame_index = missing
        if self.is_resuming:
            self._broke_at = time.monotonic() if self._broke_at is None else self._broke_at
        self.end = None
        return pb.StreamSegmentRequest(config=config)

    def encode(self, frame: Frame | Image) -> pb.Frame:
        """Pack a frame, yet without its index; InvalidInputError if the wire cannot carry it."""
        if not isinstance(frame, Frame):
            frame = Frame(frame)
        height, width = _checked_shape(frame.image)
        check_range("timestamp_us", frame.timestamp_us, -_MAX_INT64, _MAX_INT64)
        check_range("deadline_ms", frame.deadline_ms, 0, _MAX_UINT32)
        encoding = self.options.frame_encoding
        image = frame.image
        if self.options.channel_order is ChannelOrder.BGR:
            image = image[:, :, ::-1]
        data = encode_image(image, encoding, quality=self.options.jpeg_quality)
        if len(data) > MAX_MESSAGE_BYTES - _MESSAGE_OVERHEAD_BYTES:
            raise TooLargeError(
                f"the {width}x{height} frame has {len(data)} bytes as {encoding}; "
                f"a message may have at most {MAX_MESSAGE_BYTES}",
                field="frame.data",
            )
        return pb.Frame(
            timestamp_us=frame.timestamp_us,
            encoding=IMAGE_ENCODINGS[encoding],
            data=data,
            width=width,
            height=height,
            deadline_ms=frame.deadline_ms,
            traceparent=self._own_traceparent(),
        )

    def _own_traceparent(self) -> str:
        """That of the caller's span where it is another one than when the session was made."""
        traceparent = current_headers().get("traceparent", "")
        return "" if traceparent == self._trace_headers.get("traceparent") else traceparent

    def take(self, frame: pb.Frame) -> None:
        """Give an encoded frame its index, and answer for it from now on."""
        frame.index = self._next_frame_index
        self._next_frame_index += 1
        self._unanswered[frame.index] = frame

    def frame_request(self, frame: pb.Frame) -> pb.StreamSegmentRequest:
        """The request that sends a frame in the present call."""
        held = self._decoder.newest
        self._in_flight.append(_SentFrame(frame, time.perf_counter(), held_frame_index=held))
        request = pb.StreamSegmentRequest(frame=frame)
        if held is not None:
            request.frame.held_frame_index = held
        return request

    def resend(self, next_frame_index: int) -> list[pb.StreamSegmentRequest]:
        """What a call must send first to a service whose memory has the frames below that index."""
        self._in_flight.clear()
        requests = []
        for frame in self._memorised:
            if frame.index >= next_frame_index:
                again = pb.Frame()
                again.CopyFrom(frame)
                again.is_memorise_only = True
                self._in_flight.append(_SentFrame(again, time.perf_counter(), True))
                requests.append(pb.StreamSegmentRequest(frame=again))
        requests += [self.frame_request(frame) for frame in self._unanswered.values()]
        if self._broke_at is not None:
            self.resumptions[-1] = replace(self.resumptions[-1], num_frames_resent=len(requests))
        return requests

    def accept(self, response: pb.StreamSegmentResponse) -> FrameResult | None:
        """Read a response; None for what the caller need not know. EngineError for nonsense."""
        arrived_at = time.perf_counter()
        match response.WhichOneof("message"):
            case "result" if self.info is not None:
                return self._accept_result(response.result, arrived_at)
            case "ended" if self.info is not None:
                reason = _END_REASONS_BY_NUMBER.get(
                    response.ended.reason, SessionEndReason.UNSPECIFIED
                )
                self.end = SessionEnd(reason, response.ended.num_label_maps)
                return None
            case message:
                raise EngineError(f"segstream at {self.address} sent {message} out of turn")

    def end_of_stream(self) -> SegstreamError:
        """The error for whoever waits for more after the call ended without one."""
        reason = "the stream was closed without a word" if self.end is None else self.end.reason
        return UnavailableError(f"segstream at {self.address} ended the session: {reason}")

    def error_of(self, error: Exception) -> Exception:
        """The error for whoever waits for more after the call failed with ``error``."""
        return error_of(error, self.address) if isinstance(error, grpc.RpcError) else error

    def accept_ready(self, ready: pb.SessionReady) -> SessionInfo | None:
        """The service has the session; None if the caller knows of it from an earlier call.

        Raises UnavailableError for a replica that lags behind one that had the session before.
        """
        if ready.epoch < self._epoch:
            raise UnavailableError(
                f"segstream at {self.address} has epoch {ready.epoch} of the session, "
                f"but {self._epoch} was seen before"
            )
        self._epoch = ready.epoch
        origin = _ORIGINS_BY_NUMBER.get(ready.origin, SessionOrigin.NEW)
        self._memorised = deque(self._memorised, maxlen=ready.memory_length)
        if self.info is not None:
            self.resumptions.append(Resumption(origin, ready.epoch))
            return None
        if self.options.resume_from is None:
            self._next_frame_index = ready.next_frame_index
        self.info = SessionInfo(
            session_id=ready.session_id,
            model=ready.model,
            epoch=ready.epoch,
            origin=origin,
            next_frame_index=self._next_frame_index,
            memory_length=ready.memory_length,
            class_names=tuple(ready.class_names),
        )
        return self.info

    def _accept_result(self, result: pb.FrameResult, arrived_at: float) -> FrameResult | None:
        sent = self._in_flight.popleft() if self._in_flight else None
        if sent is None or sent.frame.index != result.frame_index:
            awaited = "none" if sent is None else f"frame {sent.frame.index}"
            raise EngineError(
                f"segstream at {self.address} answered frame {result.frame_index} "
                f"where {awaited} was awaited"
            )
        outcome = result.WhichOneof("outcome")
        if sent.is_memorise_only:
            if outcome == "error":
                self.resumptions[-1] = replace(self.resumptions[-1], is_exact=False)
            return None
        self._answered(sent.frame, is_memorised=_is_memorised(result))
        decoded = self._decode(result, sent) if outcome == "label_map" else None
        packed = result.label_map
        return FrameResult(
            frame_index=result.frame_index,
            timestamp_us=result.timestamp_us,
            error=_frame_error(result) if outcome not in ("label_map", "skipped") else None,
            skipped=_SKIP_REASONS_BY_NUMBER.get(result.skipped.reason)
            if outcome == "skipped"
            else None,
            digest=packed.digest,
            num_memory_frames=result.num_memory_frames,
            is_duplicate=result.is_duplicate,
            is_memory_reset=result.is_memory_reset,
            is_model_changed=result.is_model_changed,
            degradation_level=result.degradation_level,
            timings=_timings(result.timings),
            round_trip_seconds=arrived_at - sent.sent_at,
            num_bytes=len(packed.data) + len(packed.confidence),
            base_frame_index=(
                packed.base_frame_index if packed.HasField("base_frame_index") else None
            ),
            decoded=decoded,
        )

    def _answered(self, frame: pb.Frame, *, is_memorised: bool) -> None:
        self._has_progressed = True
        self._unanswered.pop(frame.index, None)
        if is_memorised:
            self._memorised.append(frame)
        if self._broke_at is not None:
            seconds = time.monotonic() - self._broke_at
            self.resumptions[-1] = replace(self.resumptions[-1], seconds=seconds)
            self._broke_at = None

    def _decode(self, result: pb.FrameResult, sent: _SentFrame) -> Decoded:
        decoded = self._decoder.decode(result.frame_index, result.label_map)
        is_delta = self.options.label_map_encoding is LabelMapEncoding.DELTA
        if is_delta and decoded.label_map is not None:
            self._decoder.hold(result.frame_index, decoded.label_map)
            # Frames behind this one name the same label map or a newer one.
            self._decoder.let_go_before(sent.held_frame_index or 0)
        return decoded


def check_max_in_flight(max_in_flight: int) -> None:
    """Raise InvalidInputError unless at least one frame may be in flight."""
    if max_in_flight < 1:
        raise InvalidInputError(
            f"max_in_flight is {max_in_flight}; it must be 1 or more", field="max_in_flight"
        )


def _check_options(options: StreamOptions) -> None:
    check_session_id(options.session_id, "session_id")
    check_range("resume_timeout_seconds", options.resume_timeout_seconds, 0, math.inf)
    check_range("resume_from", options.resume_from or 0, 0, _MAX_UINT64)
    if options.resume_from is not None and not options.session_id:
        raise InvalidInputError("resume_from needs the session_id", field="session_id")
    check_range("max_working_height", options.max_working_height, 0, _MAX_UINT32)
    check_range("jpeg_quality", options.jpeg_quality, 1, 100)
    check_range("overlay_opacity", options.overlay_opacity, 0, 1)
    check_range("overlay_quality", options.overlay_quality, 1, 100)
    if options.verify_digests and not options.label_map_encoding.holds_ids:
        raise InvalidInputError(
            f"verify_digests needs ids, but label_map_encoding is {options.label_map_encoding}",
            field="label_map_encoding",
        )
    if options.verify_digests and options.id_space is not IdSpace.TRAIN_ID:
        raise InvalidInputError(
            f"verify_digests needs train ids, but id_space is {options.id_space}", field="id_space"
        )


def _verifies_digests(options: StreamOptions) -> bool:
    """Also, where it can be done, of deltas: a wrong one would spoil all that build on it."""
    is_delta = options.label_map_encoding is LabelMapEncoding.DELTA
    return options.verify_digests or (is_delta and options.id_space is IdSpace.TRAIN_ID)


def _checked_shape(image: Image) -> tuple[int, int]:
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
        kind = getattr(image, "dtype", type(image).__name__)
        raise InvalidInputError(f"a frame must be a uint8 array, got {kind}", field="frame")
    if image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidInputError(f"a frame must be (H, W, 3), got {image.shape}", field="frame")
    return image.shape[0], image.shape[1]


def _is_memorised(result: pb.FrameResult) -> bool:
    return result.WhichOneof("outcome") == "label_map" or result.skipped.is_memorised


def _frame_error(result: pb.FrameResult) -> SegstreamError:
    error = result.error
    return error_of_parts(
        error.code,
        f"frame {result.frame_index}: {error.message}",
        field=error.field,
        reason=error.reason,
        metadata=error.metadata,
        retry_after_seconds=error.retry_after_seconds or None,
    )


def _timings(timings: pb.StageTimings) -> StageTimings:
    return StageTimings(
        **{field.name: getattr(timings, field.name) for field in fields(StageTimings)}
    )
