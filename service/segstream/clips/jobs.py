"""The clips' place in the service: what comes in is queued, worked on, and removed in time."""

import asyncio
from contextlib import suppress

import structlog

from segstream.clips.job_runner import JobRunner
from segstream.clips.library import ClipLibrary
from segstream.clips.queue import JobQueue
from segstream.clips.records import Clip, Submission

_log = structlog.get_logger(__name__)

_SWEEP_SECONDS = 20.0
_RETRY_SECONDS = 1.0


class ClipJobs:
    """Takes clips and works on them between ``start`` and ``stop``, unless it ``has_workers`` not.

    A queue may lose what it was given; so all unfinished clips are put to it again and again.
    """

    def __init__(
        self,
        library: ClipLibrary,
        queue: JobQueue,
        runner: JobRunner,
        *,
        has_workers: bool,
    ) -> None:
        self.library = library
        self._queue = queue
        self._runner = runner
        self._has_workers = has_workers
        self._tasks: list[asyncio.Task[None]] = []
        self.stopping = asyncio.Event()

    @property
    def num_running(self) -> int:
        """Jobs worked on here."""
        return self._runner.num_running

    async def start(self) -> None:
        """Begin to work, with what an earlier life has left if there is anything."""
        if self._has_workers:
            self._tasks = [
                asyncio.create_task(self._run()),
                asyncio.create_task(self._sweep()),
            ]

    async def stop(self, deadline_seconds: float) -> None:
        """Store what is finished of the jobs under way and leave them to other workers.

        Jobs that have not stopped by the deadline are given up; what they stored holds.
        """
        if self.stopping.is_set():
            return
        self.stopping.set()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=deadline_seconds)
            if late:
                _log.warning("clips given up", num_running=self.num_running)
        await self._queue.close()

    async def submit(self, submission: Submission) -> Clip:
        """Queue an uploaded clip; see ``ClipLibrary.submit``."""
        clip = await asyncio.to_thread(self.library.submit, submission)
        await self.enqueue(clip)
        return clip

    async def enqueue(self, clip: Clip) -> None:
        """Queue it, unless its job is over; what the queue misses now it gets later."""
        if clip.is_over:
            return
        try:
            await self._queue.put([clip.id])
        except OSError as error:
            _log.warning("clip not queued yet", clip_id=clip.id, error=str(error))

    async def _run(self) -> None:
        """The queue may come and go."""
        while not self.stopping.is_set():
            try:
                await self._queue.run(self._work)
            except Exception as error:
                _log.warning("clip queue lost", error=repr(error))
            await self._pause()

    async def _work(self, clip_id: str) -> bool:
        if self.stopping.is_set():
            return False
        try:
            return await self._runner.run(clip_id, self.stopping)
        except Exception:
            _log.exception("clip left undone", clip_id=clip_id)
            await self._pause()
            return False

    async def _pause(self) -> None:
        """Before trying again; none when stopping."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_RETRY_SECONDS):
                await self.stopping.wait()

    async def _sweep(self) -> None:
        while True:
            try:
                await asyncio.to_thread(self.library.tidy)
                unfinished = await asyncio.to_thread(self.library.unfinished)
                if unfinished:
                    await self._queue.put([clip.id for clip in unfinished])
            except Exception:
                _log.exception("tidying clips failed")
            await asyncio.sleep(_SWEEP_SECONDS)
