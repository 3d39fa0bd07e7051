"""The queue of one machine: an SQLite file with acknowledgement, kept by persist-queue."""

import asyncio
import fcntl
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final

from persistqueue import Empty, UniqueAckQ
from persistqueue.serializers import json

from segstream.clips.queue import Work

_FILE: Final = "queue.sqlite"
_POLL_SECONDS = 0.5


class EmbeddedJobQueue:
    """Lies in ``folder``. Of services that share it one works; when it ends, the next one does."""

    def __init__(self, folder: Path, *, num_workers: int) -> None:
        self._folder = folder
        self._num_workers = num_workers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="clip-queue")
        self._queue: Any = None
        self._has_more = asyncio.Event()

    async def put(self, clip_ids: Sequence[str]) -> None:
        """Raises OSError if the folder cannot be written."""
        await self._in_thread(self._put, clip_ids)
        self._has_more.set()

    async def run(self, work: Work) -> None:
        """Waits for the folder to be free of other workers."""
        async with self._locked():
            await self._in_thread(self._resume)
            workers = [asyncio.create_task(self._work(work)) for _ in range(self._num_workers)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def close(self) -> None:
        """Let go of the file."""
        await self._in_thread(self._close)
        self._thread.shutdown()

    async def _work(self, work: Work) -> None:
        while True:
            item = await self._in_thread(self._get)
            if item is None:
                self._has_more.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._has_more.wait()
                continue
            working = asyncio.ensure_future(work(item["data"]))
            try:
                is_finished = await asyncio.shield(working)
            except asyncio.CancelledError:
                await self._in_thread(self._answer, item["pqid"], await working)
                raise
            await self._in_thread(self._answer, item["pqid"], is_finished)

    @asynccontextmanager
    async def _locked(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._folder.mkdir, parents=True, exist_ok=True)
        with (self._folder / "queue.lock").open("w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    await asyncio.sleep(_POLL_SECONDS)
            yield

    async def _in_thread(self, function: Any, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def _opened(self) -> Any:
        if self._queue is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._queue = UniqueAckQ(
                str(self._folder),
                db_file_name=_FILE,
                multithreading=True,
                auto_resume=False,
                serializer=json,
            )
        return self._queue

    def _put(self, clip_ids: Sequence[str]) -> None:
        for clip_id in clip_ids:
            self._opened().put(clip_id)

    def _resume(self) -> None:
        """What a worker had that died is to be had again."""
        self._opened().resume_unack_tasks()

    def _get(self) -> Any:
        try:
            return self._opened().get(block=False, raw=True)
        except Empty:
            return None

    def _answer(self, item_id: int, is_finished: bool) -> None:
        queue = self._opened()
        if is_finished:
            queue.ack(id=item_id)
            queue.clear_acked_data(max_delete=0, keep_latest=0)
        else:
            queue.nack(id=item_id)

    def _close(self) -> None:
        if self._queue is not None:
            self._queue.close()
            self._queue = None
