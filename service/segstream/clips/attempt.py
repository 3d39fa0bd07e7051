"""A worker's go at a job: a clip's frames through a session of this service, chunk by chunk."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import structlog

from segstream.clips.chunks import ChunkStore, ChunkWriter
from segstream.clips.decoder import ClipDecoder, DecoderLimits, decoding
from segstream.clips.library import ClipLibrary
from segstream.clips.records import Clip, ClipFacts
from segstream.clips.results import ClipResults
from segstream.clips.threads import in_threads
from segstream.doors.accounts import Account
from segstream.errors import ExhaustedError, SegstreamError, TooLargeError, UnavailableError
from segstream.media.images import Image, ImageEncoding
from segstream.media.label_maps import LabelMapEncoding
from segstream.streaming import (
    EncodedLabelMap,
    Frame,
    FrameResult,
    Resources,
    Segmenter,
    Session,
    SessionConfig,
    SessionEndReason,
    Skipped,
)

_log = structlog.get_logger(__name__)

_RETRY_SECONDS = 1.0
_WATCH_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class ChunkSize:
    """A chunk is stored when it has so many frames or is so old, whichever comes first."""

    max_frames: int = 32
    max_seconds: float = 4.0


class StoppedError(Exception):
    """The attempt ends here: the service stops, or the job is over or another worker's."""


class Attempt:
    """Goes on from where the last one broke off.

    The memory at that place is rebuilt from the frames before it, so that label maps are the same
    as without a break. ``progress`` tells how far it came; ``is_lost``: another worker has the job.
    """

    def __init__(
        self,
        clip: Clip,
        library: ClipLibrary,
        segmenter: Segmenter,
        resources: Resources,
        limits: DecoderLimits,
        chunk_size: ChunkSize,
        stopping: asyncio.Event,
    ) -> None:
        self.clip = clip
        self.progress = clip.progress
        self.is_lost = False
        self._library = library
        self._segmenter = segmenter
        self._resources = resources
        self._limits = limits
        self._chunk_size = chunk_size
        self._stopping = stopping
        self._chunks = ChunkStore(library, clip.id)
        self._images: deque[Image] = deque()
        self._num_frames_before = 0

    async def carry_out(self) -> None:
        """Segment what is left and put the results together.

        Raises StoppedError when it may not go on, InvalidInputError for a clip that cannot be used
        and whatever else stands in the way.
        """
        async with AsyncExitStack() as stack:
            source = self._library.path(self.clip.id, "clip")
            copy = self._library.storage.local_copy(source)
            path = await stack.enter_async_context(in_threads(copy))
            session = await self._open_session(stack)
            facts = await self._segment(path, session)
        results = ClipResults(self._library, self.clip.submission)
        with self._resources.tracing.span("assemble_results"):
            await asyncio.to_thread(
                results.assemble, self._chunks, facts, session.model, self.progress.attempt
            )

    async def _open_session(self, stack: AsyncExitStack) -> Session:
        """A session, as soon as there is room for one; it is forgotten with the stack."""
        options = self.clip.submission.options
        # The key's own, that it may see the session; its quotas are for streams.
        account = Account(self.clip.submission.key_id)
        config = SessionConfig(
            model=options.model,
            label_map_encoding=LabelMapEncoding.RAW,
            max_working_height=options.max_working_height,
            is_offline=True,
        )
        while not self._stopping.is_set():
            try:
                session = await stack.enter_async_context(self._segmenter.open(config, account))
            except (ExhaustedError, UnavailableError):
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                # However the attempt ends: nobody will come back for the session.
                stack.callback(session.stream.end, SessionEndReason.CLOSED)
                return session
        raise StoppedError

    async def _segment(self, path: Path, session: Session) -> ClipFacts:
        first_new = await asyncio.to_thread(self._chunks.num_frames)
        first_frame = max(0, first_new - session.model.memory_length)
        async with decoding(path, self._limits, first_frame=first_frame) as decoder:
            facts = await decoder.facts()
            await asyncio.to_thread(self._check_minutes, facts, facts.num_frames or 0)
            self._num_frames_before = first_new
            await self._tell(num_frames=facts.num_frames, num_frames_done=first_new)
            frames = self._frames(decoder, facts, first_frame, first_new)
            pipeline = self._segmenter.pipeline(session)
            async with self._watched(session), aclosing(pipeline.results(frames)) as results:
                await self._store(results, facts, session)
        if session.stream.end_reason is not SessionEndReason.CLIENT_CLOSED:
            raise StoppedError
        return facts

    def _check_minutes(self, facts: ClipFacts, num_frames: int) -> None:
        """Raise TooLargeError if the clip is longer than what the key has left of the day."""
        submission = self.clip.submission
        if submission.max_minutes_per_day is None:
            return
        left = self._library.usage.seconds_left(
            submission.key_id, submission.max_minutes_per_day, but=submission.id
        )
        seconds = float(num_frames / facts.frames_per_second)
        if seconds > left:
            raise TooLargeError(
                f"clip has {seconds / 60:.2f} minutes or more, but of the "
                f"{submission.max_minutes_per_day:g} that its API key may have segmented each day "
                f"(max_clip_minutes_per_day) {max(0.0, left) / 60:.2f} are left",
                field="clip",
            )

    async def _frames(
        self, decoder: ClipDecoder, facts: ClipFacts, first_frame: int, first_new: int
    ) -> AsyncIterator[Frame]:
        index = first_frame
        async for data in decoder.frames():
            pixels = np.frombuffer(data, np.uint8)
            self._images.append(pixels.reshape(facts.height, facts.width, 3))
            yield Frame(
                index,
                ImageEncoding.RAW_RGB,
                data,
                timestamp_us=round(1_000_000 * index / facts.frames_per_second),
                width=facts.width,
                height=facts.height,
                is_memorise_only=index < first_new,
            )
            index += 1

    @asynccontextmanager
    async def _watched(self, session: Session) -> AsyncIterator[None]:
        """Cut the stream off when the service stops or the job is over."""

        async def watch() -> None:
            while not self._stopping.is_set() and not await self._is_over():
                try:
                    async with asyncio.timeout(_WATCH_SECONDS):
                        await self._stopping.wait()
                except TimeoutError:
                    continue
            session.stream.end(SessionEndReason.CLOSED)

        watching = asyncio.create_task(watch())
        try:
            yield
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _is_over(self) -> bool:
        try:
            return await asyncio.to_thread(self._library.is_over, self.clip.id)
        except OSError:
            _log.warning("clip storage does not answer", clip_id=self.clip.id, exc_info=True)
            return False

    async def _store(
        self, results: AsyncIterator[FrameResult], facts: ClipFacts, session: Session
    ) -> None:
        opacity = self.clip.submission.options.opacity
        off_loop = self._resources.off_loop
        writer = await off_loop(ChunkWriter, facts, session.model.label_set, opacity=opacity)
        began = chunk_began = time.monotonic()
        try:
            async for result in results:
                image = self._images.popleft()
                outcome = result.outcome
                if isinstance(outcome, SegstreamError):
                    raise outcome
                if isinstance(outcome, Skipped):
                    continue
                label_map = _train_ids(outcome)
                await off_loop(writer.add, image, label_map, result.stage_seconds)
                now = time.monotonic()
                if self._is_full(writer, now - chunk_began):
                    await self._commit(writer, facts, now - began)
                    chunk_began = now
            if writer.num_frames:
                await self._commit(writer, facts, time.monotonic() - began)
        finally:
            await off_loop(writer.close)

    def _is_full(self, writer: ChunkWriter, seconds: float) -> bool:
        size = self._chunk_size
        return writer.num_frames >= size.max_frames or seconds >= size.max_seconds

    async def _commit(self, writer: ChunkWriter, facts: ClipFacts, elapsed_seconds: float) -> None:
        first_frame = self.progress.num_frames_done
        num_frames = first_frame + writer.num_frames
        packed = await self._resources.off_loop(writer.pack)
        if not await asyncio.to_thread(self._chunks.add, first_frame, packed):
            self.is_lost = True
            raise StoppedError
        await asyncio.to_thread(self._charge, facts, num_frames)
        num_frames_here = num_frames - self._num_frames_before
        await self._tell(
            num_frames_done=num_frames,
            num_stalled_attempts=0,
            last_error="",
            frames_per_second=num_frames_here / max(elapsed_seconds, 1e-6),
        )

    def _charge(self, facts: ClipFacts, num_frames: int) -> None:
        """Count what is done, and see whether it is too much: a clip may state less than it has."""
        seconds = float(num_frames / facts.frames_per_second)
        self._library.usage.charge(self.clip.submission, seconds)
        self._check_minutes(facts, num_frames)

    async def _tell(self, **values: object) -> None:
        self.progress = self.progress.model_copy(update=values)
        await asyncio.to_thread(self._library.tell, self.clip.id, self.progress)


def _train_ids(label_map: EncodedLabelMap) -> "np.ndarray[tuple[int, int], np.dtype[np.uint8]]":
    ids = np.frombuffer(label_map.data, np.uint8)
    return ids.reshape(label_map.height, label_map.width)
