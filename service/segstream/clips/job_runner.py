"""Jobs: who has one, how it ends, and when it is tried again."""

import asyncio
import time
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog
from opentelemetry.trace import Span, SpanKind, StatusCode

from segstream.clips.attempt import Attempt, ChunkSize, StoppedError
from segstream.clips.chunks import ChunkStore
from segstream.clips.decoder import DecoderLimits
from segstream.clips.library import ClipLibrary
from segstream.clips.records import Clip, ClipState
from segstream.errors import (
    EngineError,
    ExhaustedError,
    NotFoundError,
    SegstreamError,
    UnavailableError,
)
from segstream.streaming import Resources, Segmenter
from segstream.trace_context import context_of

_log = structlog.get_logger(__name__)

_MAX_STALLED_ATTEMPTS: Final = 3
_RETRY_SECONDS = 1.0
_NOT_THE_CLIPS_FAULT = (ExhaustedError, UnavailableError, EngineError)


class JobRunner:
    """Takes clips through the segmenter, on from where the last attempt broke off.

    The memory at that place is rebuilt from the frames before it, so that label maps are the same
    as without a break.
    """

    def __init__(
        self,
        library: ClipLibrary,
        segmenter: Segmenter,
        resources: Resources,
        limits: DecoderLimits,
        *,
        chunk_size: ChunkSize | None = None,
    ) -> None:
        self._library = library
        self._segmenter = segmenter
        self._resources = resources
        self._limits = limits
        self._chunk_size = chunk_size or ChunkSize()
        self.num_running = 0

    async def run(self, clip_id: str, stopping: asyncio.Event) -> bool:
        """Work on a job until it is over; False to have it given to a worker again."""
        clip = await asyncio.to_thread(self._take, clip_id)
        if clip is None:
            return True
        with self._resources.tracing.tracer.start_as_current_span(
            "clip_job",
            context_of(clip.submission.trace),
            SpanKind.CONSUMER,
            {"segstream.clip_id": clip.id, "segstream.attempt": clip.progress.attempt},
        ) as span:
            return await self._work_on(clip, stopping, span)

    async def _work_on(self, clip: Clip, stopping: asyncio.Event, span: Span) -> bool:
        clip_id = clip.id
        log = _log.bind(clip_id=clip_id, attempt=clip.progress.attempt)
        log.info("clip begun", num_frames_done=clip.progress.num_frames_done)
        self.num_running += 1
        attempt = Attempt(
            clip,
            self._library,
            self._segmenter,
            self._resources,
            self._limits,
            self._chunk_size,
            stopping,
        )
        try:
            await attempt.carry_out()
        except StoppedError:
            return await self._settle_stopped(attempt)
        except _NOT_THE_CLIPS_FAULT as error:
            span.set_status(StatusCode.ERROR, error.message)
            log.warning("clip broke off", error=error.message)
            return await self._give_back(attempt, error.message, stopping)
        except SegstreamError as error:
            span.set_status(StatusCode.ERROR, error.message)
            log.info("clip failed", error=error.message)
            await asyncio.to_thread(self._end, clip_id, ClipState.FAILED, error)
            return True
        except Exception as error:
            span.record_exception(error)
            span.set_status(StatusCode.ERROR)
            log.exception("clip broke off")
            return await self._give_back(attempt, f"{type(error).__name__}: {error}", stopping)
        else:
            await asyncio.to_thread(self._end, clip_id, ClipState.DONE)
            log.info("clip done", num_frames=attempt.progress.num_frames_done)
            return True
        finally:
            self.num_running -= 1

    def _take(self, clip_id: str) -> Clip | None:
        """The clip, its progress telling that it is worked on; None if there is nothing to do."""
        try:
            clip = self._library.get(clip_id)
        except NotFoundError:
            return None
        if clip.is_over:
            return None
        progress = clip.progress
        if progress.num_stalled_attempts >= _MAX_STALLED_ATTEMPTS:
            told = f"; the last time: {progress.last_error}" if progress.last_error else ""
            message = (
                f"clip broke off {progress.num_stalled_attempts} times after frame "
                f"{progress.num_frames_done}{told}"
            )
            self._end(clip_id, ClipState.FAILED, EngineError(message, field="clip"))
            return None
        progress = progress.model_copy(
            update={
                "attempt": progress.attempt + 1,
                "num_stalled_attempts": progress.num_stalled_attempts + 1,
                "is_running": True,
                "replica": self._resources.replica_name,
                "started_at": progress.started_at or time.time(),
                "frames_per_second": 0.0,
            }
        )
        self._library.tell(clip_id, progress)
        return replace(clip, progress=progress)

    async def _settle_stopped(self, attempt: Attempt) -> bool:
        """Clear up after a cancelled job, or leave an interrupted one to the next worker."""
        clip_id = attempt.clip.id
        if attempt.is_lost or await asyncio.to_thread(self._library.is_over, clip_id):
            if not attempt.is_lost:
                await asyncio.to_thread(self._clear, clip_id)
            return True
        progress = attempt.progress.model_copy(
            update={
                "is_running": False,
                "num_stalled_attempts": max(0, attempt.progress.num_stalled_attempts - 1),
            }
        )
        await asyncio.to_thread(self._library.tell, clip_id, progress)
        return False

    async def _give_back(self, attempt: Attempt, error: str, stopping: asyncio.Event) -> bool:
        progress = attempt.progress.model_copy(update={"is_running": False, "last_error": error})
        await asyncio.to_thread(self._library.tell, attempt.clip.id, progress)
        with suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_SECONDS):
                await stopping.wait()
        return False

    def _end(self, clip_id: str, state: ClipState, error: SegstreamError | None = None) -> None:
        if self._library.end(clip_id, state, error):
            self._resources.metrics.clip_ended(state.value)
        self._clear(clip_id)

    def _clear(self, clip_id: str) -> None:
        """Of a job that is over only its results are kept."""
        ChunkStore(self._library, clip_id).remove()
        self._library.remove_files(clip_id, "clip")
