"""A session: one video's frames in order, its memory, and the way of each frame."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from copy import copy
from functools import partial

from segstream.doors.accounts import Account, session_id_of
from segstream.engine import ModelInfo, StepResult
from segstream.errors import (
    EngineError,
    ExhaustedError,
    InvalidInputError,
    ModelChangedError,
    SegstreamError,
)
from segstream.media.images import Image
from segstream.media.label_maps import LabelMapEncoding
from segstream.media.temporal_consistency import View
from segstream.memory.frame_log import LoggedFrame
from segstream.memory.lease import Lease
from segstream.memory.memory_bank import MemoryBank
from segstream.streaming.answers import Answers
from segstream.streaming.engine_steps import memorise, step_into
from segstream.streaming.frame_codec import DecodedFrame, Decoding, Timing, decode_frame, timed
from segstream.streaming.frame_in_work import FrameInWork
from segstream.streaming.frame_trace import StreamTrace
from segstream.streaming.messages import (
    Frame,
    FrameResult,
    SessionConfig,
    SessionEndReason,
    SessionStatus,
    Skipped,
)
from segstream.streaming.recall import Recalled
from segstream.streaming.resources import Resources
from segstream.streaming.scene_cut import SceneCutGuard
from segstream.streaming.session_memory import SessionMemory
from segstream.streaming.session_state import SessionState
from segstream.streaming.skipping import is_memorised, skip_reason
from segstream.streaming.stream import Stream
from segstream.wire import FramePolicy, SkipReason


class SessionOverError(Exception):
    """Another replica has the session: this one may not answer for it."""


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
        self._answers = Answers(resources, model, recalled.state)
        self._frame_size = recalled.state.frame_size
        self._stepping: asyncio.Task[None] | None = None
        self._unfinished: dict[int, FrameInWork] = {}
        self.attach(config)

    def attach(self, config: SessionConfig) -> None:
        """A stream begins, with its own wishes but over the same memory."""
        self.heard_at = time.monotonic()
        self.stream = Stream(
            config,
            StreamTrace(self._resources.tracing),
            first_index=self.next_frame_index,
            guard=SceneCutGuard() if config.has_scene_cut_guard else None,
        )

    @property
    def config(self) -> SessionConfig:
        return self.stream.config

    @property
    def memory_length(self) -> int:
        """The frames of memory a label map rests on once the memory is full."""
        return self.memory.max_length

    @property
    def num_label_maps(self) -> int:
        """Answered so far, by this replica and those before it."""
        return self._answers.num_label_maps

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
        work = FrameInWork(frame, self.stream, self.stream.trace.begin(frame))
        if self.config.frame_policy is not FramePolicy.LATEST:
            work.decoding = self._start_decoding(frame)
        return work

    async def advance(self, work: FrameInWork, *, is_superseded: bool = False) -> None:
        """Take the frame through the engine and into the memory.

        is_superseded: a newer frame waits already; what that means is the frame policy's affair.

        Raises ExhaustedError where there is no memory for the session at all; a fault of the frame
        becomes its outcome.
        """
        frame, policy = work.frame, self.config.frame_policy
        skip = skip_reason(frame, policy, work.seconds_in_work(), is_superseded=is_superseded)
        if (answered := self._answers.again(work)) is not None:
            work.outcome = answered
        elif skip is not None and not (self.memory_length and is_memorised(skip, policy)):
            work.outcome = Skipped(skip, is_memorised=False)
            self.next_frame_index = max(self.next_frame_index, frame.index + 1)
            self._unfinished[frame.index] = work
        elif skip is SkipReason.MEMORISE_ONLY and frame.index < self.stream.first_index:
            work.outcome = Skipped(skip, is_memorised=True)
        else:
            await self._take_in(work, skip)

    async def _take_in(self, work: FrameInWork, skip: SkipReason | None) -> None:
        decoded, timing = await (work.decoding or self._start_decoding(work.frame))
        work.decoding = None
        work.coded("image_decode", timing)
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
        result = await self._answers.make(work)
        if not await self.lease.confirm():
            self.stream.end(SessionEndReason.REPLACED)
            raise SessionOverError
        self._answers.give(work, result)
        self._unfinished.pop(work.frame.index, None)
        work.trace.end(result)
        return result

    async def settle(self) -> None:
        """Bring what the engine has begun to its end, for the client that comes back for it."""
        if self._stepping is not None:
            await asyncio.wait([self._stepping])
            if not self._stepping.cancelled():
                self._stepping.exception()  # nobody is left to be told
        self.stream.last_view = None
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
            temporal_consistency=self.stream.consistency,
        )

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
        resources, image = self._resources, decoded.image
        guard, is_cut = await self._guarded(image)
        geometry = resources.engine.page_geometry(self.model.name, *image.shape[:2])
        holding = time.perf_counter()
        async with self.memory.hold(geometry, is_reset=is_cut) as bank:
            work.trace.stage("memory_hold", time.perf_counter() - holding)
            work.is_memory_reset = is_cut or self.memory.was_lost
            work.degradation_level = resources.ladder.level
            depth = 0 if is_cut or skip is not None else resources.ladder.read_depth()
            read_slots = bank.slots[-depth:] if depth else ()
            waited = work.seconds_since_decoded()
            result = await step_into(
                *(bank, image, self.model, resources),
                read_slots=read_slots,
                wants_label_map=skip is None,
                wants_confidence=self.config.wants_confidence,
            )
            outcome = result if skip is None else Skipped(skip, is_memorised=True)
            # Nothing may come between these: the frame is in the memory or it is not.
            bank.commit(is_reset=is_cut)
            self.memory.appended(work.frame, bank, is_reset=is_cut)
            self.stream.guard = guard
            self._taken_in(work, decoded, outcome)
        if decoded.grey is not None and result.label_map is not None:
            work.views = self.stream.see(View(decoded.grey, result.label_map))
        work.num_memory_frames = len(read_slots)
        work.seconds.update(result.stage_seconds)
        work.seconds["queue"] = work.seconds.get("queue", 0.0) + waited
        resources.ladder.observe(work.seconds["queue"], time.monotonic())

    def _taken_in(
        self, work: FrameInWork, decoded: DecodedFrame, outcome: StepResult | Skipped
    ) -> None:
        """The frame is in the memory; its answer is due, even if its client goes away."""
        work.outcome = outcome
        work.frame_size = self._frame_size = (decoded.width, decoded.height)
        if self.config.label_map_encoding is LabelMapEncoding.OVERLAY_JPEG:
            work.full_image = decoded.full_image
        self.next_frame_index = work.frame.index + 1
        self._unfinished[work.frame.index] = work

    async def _memorise_again(self, frames: Sequence[LoggedFrame], bank: MemoryBank) -> None:
        """Append frames to the bank that it has held before."""
        images = []
        for frame in frames:
            decoded = await self._resources.off_loop(self._decode, frame)
            if isinstance(decoded, SegstreamError):
                raise decoded
            self._frame_size = (decoded.width, decoded.height)
            images.append(decoded.image)
        await memorise(bank, images, self.model, self._resources)

    async def _guarded(self, image: Image) -> tuple[SceneCutGuard | None, bool]:
        """The guard as it is after this frame, and whether a hard cut comes before it."""
        if self.stream.guard is None:
            return None, False
        guard = copy(self.stream.guard)
        last_frame = self.memory.last_frame
        if not guard.has_seen and last_frame is not None:
            decoded = await self._resources.off_loop(self._decode, last_frame)
            if isinstance(decoded, DecodedFrame):
                guard.is_cut(decoded.image)
        return guard, guard.is_cut(image)

    def _describe(self) -> SessionState:
        return SessionState(
            next_frame_index=self.next_frame_index,
            frame_size=self._frame_size,
            num_label_maps=self.num_label_maps,
            results=self._answers.stored(),
        )
