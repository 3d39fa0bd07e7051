"""The pipeline of one stream: frames in, results out, in order and never too many at once."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from segstream.streaming.frame_in_work import FrameInWork
from segstream.streaming.messages import Frame, FrameResult, SessionEndReason, Skipped
from segstream.streaming.session import Session, SessionOverError
from segstream.wire import FramePolicy

_R = TypeVar("_R")

# Where frames may be skipped, so many may wait to be: the newest must get here to be preferred.
_MAX_SKIPPABLE_FRAMES = 32


class Pipeline:
    """Overlaps the steps of neighbouring frames of one session.

    A reader begins frames, an advancer takes them through the engine one by one, and whoever
    iterates gets them finished. Each hands on through a queue of ``max_pending_frames``; when the
    last one is full nobody reads from the wire any more, and the client is held back. A key that
    has had its frames for the moment is held back in the same way.
    """

    def __init__(self, session: Session, *, max_pending_frames: int, idle_seconds: float) -> None:
        self._session = session
        self._account = session.account
        self._stream = session.stream
        self._idle_seconds = idle_seconds
        self._tasks: set[asyncio.Task[Any]] = set()
        self._num_in_work = 0
        self._num_begun = 0
        skips = session.config.frame_policy is not FramePolicy.ALL
        self._begun: asyncio.Queue[FrameInWork | Exception | None] = asyncio.Queue(
            max(max_pending_frames, _MAX_SKIPPABLE_FRAMES if skips else 0)
        )
        self._advanced: asyncio.Queue[asyncio.Task[FrameResult] | Exception | None] = asyncio.Queue(
            max_pending_frames
        )

    async def results(self, frames: AsyncIterator[Frame]) -> AsyncGenerator[FrameResult, None]:
        """A result for each frame, until the frames or the stream end.

        Raises what ``frames`` raises, after the results of the frames before. Cancels the task that
        iterates when it takes no result for ``idle_seconds``: its client has stopped reading.
        """
        self._watch(asyncio.create_task(self._read(frames)))
        self._watch(asyncio.create_task(self._advance()))
        try:
            while (finishing := await self._next_advanced()) is not None:
                try:
                    result = await finishing
                except SessionOverError:
                    return
                with self._patience():
                    yield result
                self._num_in_work -= 1
        finally:
            unfinished = list(self._tasks)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    async def _next_advanced(self) -> "asyncio.Task[FrameResult] | None":
        """The next frame to finish; None at the end, or when the stream is cut off."""
        stream = self._stream
        getting = self._watch(asyncio.create_task(self._advanced.get()))
        ending = self._watch(asyncio.create_task(stream.is_ending.wait()))
        try:
            await asyncio.wait({getting, ending}, return_when=asyncio.FIRST_COMPLETED)
            if stream.is_cut_off:
                return None
            item = await getting
        finally:
            getting.cancel()
            ending.cancel()
        if isinstance(item, Exception):
            raise item
        return item

    @contextmanager
    def _patience(self) -> Iterator[None]:
        """Cancels the task that iterates when the block takes longer than the idle limit."""
        task = asyncio.current_task()
        assert task is not None, "results() is iterated by a task"

        def give_up() -> None:
            self._stream.end(SessionEndReason.IDLE)
            task.cancel("the client reads no results")

        timer = asyncio.get_running_loop().call_later(self._idle_seconds, give_up)
        try:
            yield
        finally:
            timer.cancel()

    def _watch(self, task: "asyncio.Task[_R]") -> "asyncio.Task[_R]":
        """``task``, which ends with the stream at the latest; what it raises need not be asked."""
        self._tasks.add(task)
        task.add_done_callback(self._forget)
        return task

    def _forget(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # else the event loop complains where the client has gone

    async def _read(self, frames: AsyncIterator[Frame]) -> None:
        try:
            while (frame := await self._next(frames)) is not None:
                self._num_in_work += 1
                work = self._session.begin(frame)
                if work.decoding is not None:
                    self._watch(work.decoding)
                self._num_begun += 1
                await self._begun.put(work)
        except Exception as error:
            await self._begun.put(error)
        else:
            await self._begun.put(None)

    async def _next(self, frames: AsyncIterator[Frame]) -> Frame | None:
        """The next frame; None, the stream being told to end, when there is none."""
        ending = self._stream.is_ending
        if ending.is_set():
            return None
        frame = self._watch(asyncio.ensure_future(anext(frames, None)))
        stop = self._watch(asyncio.create_task(ending.wait()))
        try:
            done: set[asyncio.Task[Any]] = set()
            while not done:
                done, _ = await asyncio.wait(
                    {frame, stop}, timeout=self._idle_seconds, return_when=asyncio.FIRST_COMPLETED
                )
                # A client that waits for its results is not idle.
                if self._num_in_work == 0:
                    break
        finally:
            stop.cancel()
            frame.cancel()
        if frame in done:
            if (received := await frame) is None:
                self._stream.end(SessionEndReason.CLIENT_CLOSED)
            return received
        self._stream.end(SessionEndReason.IDLE)
        return None

    async def _advance(self) -> None:
        try:
            while isinstance(work := await self._begun.get(), FrameInWork):
                await self._account.wait_for_frame()
                self._num_begun -= 1
                await self._session.advance(work, is_superseded=self._num_begun > 0)
                if not (isinstance(work.outcome, Skipped) and not work.outcome.is_memorised):
                    self._account.frames.spend()
                finishing = self._watch(asyncio.create_task(self._session.finish(work)))
                await self._advanced.put(finishing)
        except Exception as error:
            await self._advanced.put(error)
        else:
            await self._advanced.put(work)
