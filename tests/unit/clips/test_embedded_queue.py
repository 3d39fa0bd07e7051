import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from segstream.clips.embedded_queue import EmbeddedJobQueue


class Worker:
    """Notes what it is given, and does it when it may."""

    def __init__(self, *, is_finished: bool = True) -> None:
        self.begun: asyncio.Queue[str] = asyncio.Queue()
        self.may_end = asyncio.Event()
        self.is_finished = is_finished

    async def __call__(self, clip_id: str) -> bool:
        await self.begun.put(clip_id)
        await self.may_end.wait()
        return self.is_finished

    async def next(self) -> str:
        async with asyncio.timeout(10):
            return await self.begun.get()


@asynccontextmanager
async def running(folder: Path, worker: Worker) -> AsyncIterator[EmbeddedJobQueue]:
    queue = EmbeddedJobQueue(folder, num_workers=1)
    task = asyncio.create_task(queue.run(worker))
    try:
        yield queue
    finally:
        worker.may_end.set()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        await queue.close()


async def test_clips_are_worked_on_in_order_and_once(tmp_path: Path) -> None:
    worker = Worker()
    worker.may_end.set()
    async with running(tmp_path, worker) as queue:
        await queue.put(["a", "b", "a"])
        await queue.put(["b", "c"])
        assert [await worker.next() for _ in "abc"] == ["a", "b", "c"]
        await asyncio.sleep(0.1)
        assert worker.begun.empty()
        await queue.put(["a"])
        assert await worker.next() == "a"


async def test_what_was_not_acknowledged_is_given_again(tmp_path: Path) -> None:
    """As after a kill: the file knows of a worker that is no more."""
    queue = EmbeddedJobQueue(tmp_path, num_workers=1)
    await queue.put(["a", "b"])
    assert queue._get()["data"] == "a"
    await queue.close()
    worker = Worker()
    worker.may_end.set()
    async with running(tmp_path, worker):
        assert {await worker.next(), await worker.next()} == {"a", "b"}


async def test_unfinished_work_is_given_back_when_the_queue_stops(tmp_path: Path) -> None:
    interrupted = Worker(is_finished=False)
    async with running(tmp_path, interrupted) as queue:
        await queue.put(["a"])
        assert await interrupted.next() == "a"
    worker = Worker()
    async with running(tmp_path, worker):
        assert await worker.next() == "a"


async def test_of_two_that_share_a_folder_one_works_until_it_ends(tmp_path: Path) -> None:
    first, second = Worker(), Worker()
    first.may_end.set()
    async with running(tmp_path, first) as queue:
        await queue.put(["a"])
        assert await first.next() == "a"
        async with running(tmp_path, second) as other:
            await other.put(["b"])
            assert await first.next() == "b"
            await asyncio.sleep(0.1)
            assert second.begun.empty()
    async with running(tmp_path, second) as queue:
        await queue.put(["c"])
        assert await second.next() == "c"
