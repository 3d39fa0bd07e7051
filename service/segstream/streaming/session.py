"""A session: one video's frames in order, its memory, and the way of each frame."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from functools import partial

from opentelemetry.trace import SpanKind, get_current_span

from segstream.doors.accounts import Account, session_id_of
from segstream.engine import ModelInfo, Step, StepResult
from segstream.errors import (
    EngineError,
    ExhaustedError,
    InvalidInputError,
    ModelChangedError,
    SegstreamError,
)
from segstream.media.images import Image
from segstream.media.label_maps import LabelMapEncoding
from segstream.media.temporal_consistency import View, running_mean, temporal_consistency
from segstream.memory.frame_log import LoggedFrame
from segstream.memory.lease import Lease
from segstream.memory.memory_bank import MemoryBank
from segstream.streaming.frame_codec import (
    Base,
    DecodedFrame,
    Decoding,
    EncodedResult,
    Timing,
    decode_frame,
    encode_result,
    timed,
)
from segstream.streaming.frame_trace import FrameTrace, StreamTrace, trace_engine_stages
from segstream.streaming.messages import (
    EncodedLabelMap,
    Frame,
    FrameResult,
    SessionConfig,
    SessionEndReason,
    SessionStatus,
    Skipped,
)
from segstream.streaming.recall import Recalled
from segstream.streaming.recent_results import StoredResult
from segstream.streaming.resources import Resources
from segstream.streaming.scene_cut import SceneCutGuard
from segstream.streaming.session_memory import SessionMemory
from segstream.streaming.session_state import SessionState
from segstream.streaming.stream import Stream
from segstream.trace_context import sampled_traceparent
from segstream.wire import FramePolicy, SkipReason


class SessionOverError(Exception):
    """Another replica has the session: this one may not answer for it."""


@dataclass(slots=True, eq=False)
class FrameInWork:
    """A frame on its way through the session; its pixels are let go as soon as they are used."""

    frame: Frame
    trace: FrameTrace
    decoding: "asyncio.Task[tuple[Decoding, Timing]] | None" = None
    arrived: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    num_memory_frames: int = 0
    is_memory_reset: bool = False
    is_model_changed: bool = False
    degradation_level: int = 0
    views: tuple[View, View] | None = None
    consistency: float | None = None
    outcome: StepResult | FrameResult | Skipped | SegstreamError | None = None
    full_image: Image | None = None  # for an overlay
    kept: EncodedLabelMap | None = None  # where it is not what is sent

    def seconds_since_decoded(self) -> float:
        """What has passed since the frame arrived, less the time that decoding took."""
        return time.perf_counter() - self.arrived - self.seconds["image_decode"]


class Session:
    """Takes each frame through three steps: ``begin``, ``advance`` in order, ``finish``.

    Only ``advance`` touches the memory, one frame at a time; the codecs' work on the frames before
    and after it may overlap. A frame that fails leaves the session as it was. One stream at a time
    is attached; between streams the session is parked. ``id`` is what its client calls it, ``name``
    what it is called here, where other keys' sessions may have the same id.
    """

    def __init__(
        self,
        lease: Lease,
        config: SessionConfig,
        model: ModelInfo,
        resources: Resources,
        *,
        recalled: Recalled | None = None,
        account: Account | None = None,
    ) -> None:
        recalled = recalled or Recalled()
        self.name = lease.session_id
        self.id = session_id_of(self.name)
        self.account = account or Account()
        self.lease = lease
        self.model = model
        self.origin = recalled.origin
        self.next_frame_index = recalled.state.next_frame_index
        self.num_label_maps = recalled.state.num_label_maps
        self.memory = SessionMemory(
            resources,
            lease,
            model,
            0 if config.is_memoryless else model.memory_length,
            recalled=recalled,
            memorise=self._memorise_again,
            describe=self._describe,
        )
        self._resources = resources
        self._recent = recalled.state.recent_results()
        self._frame_size = recalled.state.frame_size
        self._stepping: asyncio.Task[None] | None = None
        self._unfinished: dict[int, FrameInWork] = {}
        self.attach(config)

    def attach(self, config: SessionConfig) -> None:
        """A stream begins, with its own wishes but over the same memory."""
        self.stream = Stream(config)
        self._trace = StreamTrace(self._resources.tracing)
        self._last_view: View | None = None
        self._consistency: float | None = None
        self._first_new_index = self.next_frame_index
        self.heard_at = time.monotonic()
        self._guard = SceneCutGuard() if config.has_scene_cut_guard else None

    @property
    def config(self) -> SessionConfig:
        return self.stream.config

    @property
    def memory_length(self) -> int:
        """The frames of memory a label map rests on once the memory is full."""
        return self.memory.max_length

    @property
    def is_streaming(self) -> bool:
        """Whether a stream is attached; otherwise the session is parked."""
        return not self.stream.is_over.is_set()

    async def segment(self, frame: Frame) -> FrameResult:
        """One frame from arrival to answer; a fault of the frame is the answer's outcome."""
        work = self.begin(frame)
        await self.advance(work)
        return await self.finish(work)

    def begin(self, frame: Frame) -> FrameInWork:
        """Start decoding a frame, unless it is likely to be skipped."""
        self.heard_at = time.monotonic()
        work = FrameInWork(frame, self._trace.begin(frame))
        if self.config.frame_policy is not FramePolicy.LATEST:
            work.decoding = self._start_decoding(frame)
        return work

    async def advance(self, work: FrameInWork, *, is_superseded: bool = False) -> None:
        """Take the frame through the engine and into the memory.

        is_superseded: a newer frame waits already; what that means is the frame policy's affair.

        Raises ExhaustedError where there is no memory for the session at all; a fault of the frame
        becomes its outcome.
        """
        skip = self._skip_reason(work, is_superseded=is_superseded)
        if (answered := self._answered_before(work.frame.index)) is not None:
            work.outcome = answered
        elif skip is not None and not self._is_memorised(skip):
            work.outcome = Skipped(skip, is_memorised=False)
            self.next_frame_index = max(self.next_frame_index, work.frame.index + 1)
            self._unfinished[work.frame.index] = work
        elif skip is SkipReason.MEMORISE_ONLY and work.frame.index < self._first_new_index:
            work.outcome = Skipped(skip, is_memorised=True)
        else:
            await self._take_in(work, skip)

    async def _take_in(self, work: FrameInWork, skip: SkipReason | None) -> None:
        decoded, timing = await (work.decoding or self._start_decoding(work.frame))
        work.decoding = None
        work.seconds["image_decode"] = timing.seconds
        work.trace.stage("image_decode", timing.seconds, ended_ns=timing.ended_ns)
        try:
            if isinstance(decoded, SegstreamError):
                raise decoded
            self._check(work.frame, decoded)
            # Shielded: when the client goes away, the engine may still be writing the page.
            self._stepping = asyncio.create_task(self._step_on_any_model(work, decoded, skip))
            await asyncio.shield(self._stepping)
        except ExhaustedError:
            raise
        except SegstreamError as error:
            work.outcome = error

    async def finish(self, work: FrameInWork) -> FrameResult:
        """Encode the label map, or pass on what there is instead, and account for the frame.

        Raises SessionOverError when another replica has the session: the answer is no longer ours.
        """
        result = await self._result(work)
        if not await self.lease.confirm():
            self.stream.end(SessionEndReason.REPLACED)
            raise SessionOverError
        self._recent.add(result if work.kept is None else replace(result, outcome=work.kept))
        self._unfinished.pop(work.frame.index, None)
        self._account(work, result)
        work.trace.end(result)
        return result

    async def settle(self) -> None:
        """Bring what the engine has begun to its end, for the client that comes back for it."""
        if self._stepping is not None:
            await asyncio.wait([self._stepping])
            if not self._stepping.cancelled():
                self._stepping.exception()  # nobody is left to be told
        self._last_view = None
        for work in list(self._unfinished.values()):
            with suppress(SessionOverError):
                await self.finish(work)

    def status(self) -> SessionStatus:
        """What operators see."""
        memory = self.memory
        return SessionStatus(
            session_id=self.id,
            model=self.model.name,
            owner=self._resources.replica_name,
            epoch=self.lease.epoch,
            is_streaming=self.is_streaming,
            next_frame_index=self.next_frame_index,
            num_label_maps=self.num_label_maps,
            tier=memory.tier,
            device_bytes=memory.device_bytes,
            spill_bytes=memory.spill_bytes,
            frame_bytes=memory.frame_bytes,
            page_age_seconds=memory.page_ages(),
            idle_seconds=time.monotonic() - self.heard_at,
            last_move=memory.last_move,
            last_move_age_seconds=memory.last_move_age(),
            temporal_consistency=self._consistency,
        )

    def _answered_before(self, frame_index: int) -> FrameResult | None:
        """The answer to a frame of an earlier stream; within a stream, indices rise."""
        is_resend = self.config.resume_from is not None and frame_index < self._first_new_index
        return self._recent.again(frame_index) if is_resend else None

    def _skip_reason(self, work: FrameInWork, *, is_superseded: bool) -> SkipReason | None:
        frame = work.frame
        if frame.fault is not None:
            return None
        if frame.is_memorise_only:
            return SkipReason.MEMORISE_ONLY
        if is_superseded and self.config.frame_policy is not FramePolicy.ALL:
            return SkipReason.SUPERSEDED
        if 0 < frame.deadline_seconds < time.perf_counter() - work.arrived:
            return SkipReason.DEADLINE_PASSED
        return None

    def _is_memorised(self, skip: SkipReason) -> bool:
        if not self.memory_length:
            return False
        keeps = self.config.frame_policy is FramePolicy.KEEP_MEMORY_SKIP_MASK
        return keeps or skip is SkipReason.MEMORISE_ONLY

    def _start_decoding(self, frame: Frame) -> "asyncio.Task[tuple[Decoding, Timing]]":
        decode = partial(self._decode, wants_grey=self._resources.measures_consistency)
        return asyncio.create_task(self._resources.off_loop(timed, decode, frame))

    def _decode(self, frame: Frame | LoggedFrame, *, wants_grey: bool = False) -> Decoding:
        limits = self._resources.image_limits
        return decode_frame(frame, self.config.max_working_height, limits, wants_grey=wants_grey)

    def _check(self, frame: Frame, decoded: DecodedFrame) -> None:
        if frame.index < self.next_frame_index:
            raise InvalidInputError(
                f"frame.index is {frame.index}, must be at least {self.next_frame_index}: "
                "indices rise from frame to frame",
                field="frame.index",
            )
        size = (decoded.width, decoded.height)
        if self._frame_size is not None and size != self._frame_size:
            raise InvalidInputError(
                f"frame.data is {size[0]}x{size[1]}, but the session began with "
                f"{self._frame_size[0]}x{self._frame_size[1]}: open a session for each size",
                field="frame.data",
            )

    async def _step_on_any_model(
        self, work: FrameInWork, decoded: DecodedFrame, skip: SkipReason | None
    ) -> None:
        """Where the model was replaced meanwhile, rebuild the memory on the new one first."""
        work.trace.stage("wait", work.seconds_since_decoded())
        with work.trace.is_current():
            try:
                await self._step(work, decoded, skip)
            except ModelChangedError:
                await self._follow_model()
                work.is_model_changed = True
                await self._step(work, decoded, skip)

    async def _follow_model(self) -> None:
        old, new = self.model, self._resources.engine.models[self.model.name]
        if (old.label_set, old.memory_length) != (new.label_set, new.memory_length):
            raise EngineError(
                f"model {old.name!r} was replaced by one with other classes or another memory: "
                "begin a new session"
            )
        self.model = new
        await self.memory.follow_model(new)

    async def _step(
        self, work: FrameInWork, decoded: DecodedFrame, skip: SkipReason | None
    ) -> None:
        resources, model, image = self._resources, self.model, decoded.image
        guard, is_cut = await self._guarded(image)
        geometry = resources.engine.page_geometry(model.name, *image.shape[:2])
        holding = time.perf_counter()
        async with self.memory.hold(geometry, is_reset=is_cut) as bank:
            work.trace.stage("memory_hold", time.perf_counter() - holding)
            work.is_memory_reset = is_cut or self.memory.was_lost
            work.degradation_level = resources.ladder.level
            depth = 0 if is_cut or skip is not None else resources.ladder.read_depth()
            read_slots = bank.slots[-depth:] if depth else ()
            waited = work.seconds_since_decoded()
            result = await self._step_into(bank, image, read_slots, wants_label_map=skip is None)
            # Nothing may come between these: the frame is in the memory or it is not.
            bank.commit(is_reset=is_cut)
            self.memory.appended(work.frame, bank, is_reset=is_cut)
            self.next_frame_index = work.frame.index + 1
            self._frame_size = (decoded.width, decoded.height)
            self._guard = guard
            work.outcome = result if skip is None else Skipped(skip, is_memorised=True)
            if self.config.label_map_encoding is LabelMapEncoding.OVERLAY_JPEG:
                work.full_image = decoded.full_image
            self._unfinished[work.frame.index] = work
        if decoded.grey is not None and result.label_map is not None:
            before, self._last_view = self._last_view, View(decoded.grey, result.label_map)
            work.views = None if before is None else (before, self._last_view)
        work.num_memory_frames = len(read_slots)
        work.seconds.update(result.stage_seconds)
        work.seconds["queue"] = work.seconds.get("queue", 0.0) + waited
        resources.ladder.observe(work.seconds["queue"], time.monotonic())

    async def _step_into(
        self,
        bank: MemoryBank,
        image: Image,
        read_slots: tuple[int, ...],
        *,
        wants_label_map: bool,
    ) -> StepResult:
        """One step of the engine into a reserved slot, which goes back if it fails."""
        tracing, write_slot = self._resources.tracing, bank.reserve()
        with tracing.span("engine_step", SpanKind.CLIENT) as span:
            started_ns = time.time_ns()
            step = self._new_step(
                image, bank, write_slot, read_slots, wants_label_map=wants_label_map
            )
            try:
                result = await self._resources.engine.step(step)
            except BaseException:
                bank.rollback()
                raise
            trace_engine_stages(tracing, span, started_ns, result.stage_seconds)
        return result

    def _new_step(
        self,
        image: Image,
        bank: MemoryBank,
        write_slot: int,
        read_slots: tuple[int, ...] = (),
        *,
        wants_label_map: bool,
    ) -> Step:
        return Step(
            self.model.name,
            image,
            bank.pages,
            read_slots,
            write_slot,
            wants_label_map,
            model_digest=self.model.digest,
            traceparent=sampled_traceparent(get_current_span()),
            wants_confidence=wants_label_map and self.config.wants_confidence,
        )

    async def _memorise_again(self, frames: Sequence[LoggedFrame], bank: MemoryBank) -> None:
        """Append frames to the bank, all at once: none needs the memory of another."""
        resources = self._resources
        images = []
        for frame in frames:
            decoded = await resources.off_loop(self._decode, frame)
            if isinstance(decoded, SegstreamError):
                raise decoded
            self._frame_size = (decoded.width, decoded.height)
            images.append(decoded.image)
        steps = [
            asyncio.ensure_future(
                resources.engine.step(
                    self._new_step(image, bank, bank.reserve(), wants_label_map=False)
                )
            )
            for image in images
        ]
        try:
            await asyncio.gather(*steps)
        finally:
            await asyncio.wait(steps)  # nobody may write to a page that is given back
        for _ in steps:
            bank.commit()

    async def _guarded(self, image: Image) -> tuple[SceneCutGuard | None, bool]:
        """The guard as it is after this frame, and whether a hard cut comes before it."""
        if self._guard is None:
            return None, False
        guard = copy(self._guard)
        last_frame = self.memory.last_frame
        if not guard.has_seen and last_frame is not None:
            decoded = await self._resources.off_loop(self._decode, last_frame)
            if isinstance(decoded, DecodedFrame):
                guard.is_cut(decoded.image)
        return guard, guard.is_cut(image)

    async def _result(self, work: FrameInWork) -> FrameResult:
        outcome = work.outcome
        assert outcome is not None, "advance() comes first"
        if isinstance(outcome, FrameResult):
            return outcome
        if isinstance(outcome, SegstreamError):
            return FrameResult(work.frame.index, work.frame.timestamp_us, outcome)
        encoded: EncodedLabelMap | Skipped
        batch_size = 0
        if isinstance(outcome, StepResult):
            batch_size = outcome.batch_size
            encoded = await self._encode(work, outcome)
            work.seconds["total"] = time.perf_counter() - work.arrived
        else:
            encoded = outcome
        return FrameResult(
            work.frame.index,
            work.frame.timestamp_us,
            encoded,
            work.num_memory_frames,
            batch_size,
            is_memory_reset=work.is_memory_reset,
            is_model_changed=work.is_model_changed,
            degradation_level=work.degradation_level,
            stage_seconds=work.seconds,
        )

    async def _encode(self, work: FrameInWork, result: StepResult) -> EncodedLabelMap:
        assert self._frame_size is not None
        frame_size, base = self._frame_size, self._base(work.frame)

        def encode() -> EncodedResult:
            if work.views is not None:
                work.consistency = temporal_consistency(*work.views)
                work.views = None
            return encode_result(
                *(result, frame_size, self.config, self.model.label_set),
                image=work.full_image,
                base=base,
            )

        encoded, timing = await self._resources.off_loop(timed, encode)
        work.seconds["label_map_encode"] = timing.seconds
        work.trace.stage("label_map_encode", timing.seconds, ended_ns=timing.ended_ns)
        work.full_image = None
        if encoded.kept is not encoded.sent:
            work.kept = encoded.kept
        return encoded.sent

    def _base(self, frame: Frame) -> Base | None:
        """What a delta may be told against: a label map that client and session both hold."""
        index = frame.held_frame_index
        if index is None or self.config.label_map_encoding is not LabelMapEncoding.DELTA:
            return None
        held = self._recent.label_map(index)
        return None if held is None else Base(index, held)

    def _account(self, work: FrameInWork, result: FrameResult) -> None:
        metrics, outcome = self._resources.metrics, result.outcome
        if isinstance(outcome, SegstreamError):
            metrics.frame_failed(self.model.name, outcome)
        elif isinstance(outcome, Skipped):
            metrics.frame_skipped(self.model.name, outcome.reason.value)
        elif not result.is_duplicate:
            self.num_label_maps += 1
            metrics.frame_answered(
                self.model.name,
                work.seconds,
                result.batch_size,
                is_offline=self.config.is_offline,
            )
        if work.consistency is not None:
            metrics.label_maps_compared(self.model.name, work.consistency)
            self._consistency = running_mean(self._consistency, work.consistency)

    def _describe(self) -> SessionState:
        results = (StoredResult.of(result) for result in self._recent.results)
        return SessionState(
            next_frame_index=self.next_frame_index,
            frame_size=self._frame_size,
            num_label_maps=self.num_label_maps,
            results=tuple(results),
        )
