import asyncio
import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from segstream.bench.local_redis import LocalRedis
from segstream.clips import jobs
from segstream.clips.redis_queue import RedisJobQueue
from segstream.models import LMANet
from tests.support.clips import write_clip
from tests.support.service import TIMEOUT_SECONDS, running_service

CLIPS = [f"{number:032x}" for number in range(6)]


class Worker:
    """Notes what it is given, and does it when it may."""

    def __init__(self, *, is_finished: bool = True) -> None:
        self.given: list[str] = []
        self.arrived = asyncio.Condition()
        self.may_end = asyncio.Event()
        self.is_finished = is_finished

    async def __call__(self, clip_id: str) -> bool:
        async with self.arrived:
            self.given.append(clip_id)
            self.arrived.notify_all()
        await self.may_end.wait()
        return self.is_finished

    async def wait_for(self, count: int) -> None:
        async with asyncio.timeout(TIMEOUT_SECONDS), self.arrived:
            await self.arrived.wait_for(lambda: len(self.given) >= count)


def queue(redis: LocalRedis) -> RedisJobQueue:
    return RedisJobQueue(redis.url, password=None, num_workers=1, silence_seconds=1.0)


@asynccontextmanager
async def running(redis: LocalRedis, worker: Worker) -> AsyncIterator[None]:
    task = asyncio.create_task(queue(redis).run(worker))
    try:
        yield
    finally:
        worker.may_end.set()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_every_clip_goes_to_one_worker_however_often_it_is_put(redis: LocalRedis) -> None:
    workers = [Worker(), Worker()]
    await queue(redis).put(CLIPS)
    await queue(redis).put(CLIPS)
    async with running(redis, workers[0]), running(redis, workers[1]):
        for worker in workers:
            await worker.wait_for(1)
            worker.may_end.set()
        await asyncio.sleep(1.0)
    assert sorted(workers[0].given + workers[1].given) == CLIPS


async def test_a_long_job_stays_with_its_worker(redis: LocalRedis) -> None:
    busy, idle = Worker(), Worker()
    await queue(redis).put(CLIPS[:1])
    async with running(redis, busy):
        await busy.wait_for(1)
        async with running(redis, idle):
            await asyncio.sleep(3.0)
    assert (busy.given, idle.given) == (CLIPS[:1], [])


async def test_unfinished_work_goes_to_the_next_worker(redis: LocalRedis) -> None:
    interrupted, other = Worker(is_finished=False), Worker()
    await queue(redis).put(CLIPS[:1])
    async with running(redis, interrupted):
        await interrupted.wait_for(1)
    async with running(redis, other):
        await other.wait_for(1)
    assert other.given == CLIPS[:1]


async def test_a_queue_that_cannot_be_had(redis: LocalRedis) -> None:
    gone = RedisJobQueue("redis://127.0.0.1:1/0", password=None, num_workers=1)
    with pytest.raises(ConnectionError, match="clip queue in Redis cannot be had"):
        await gone.put(CLIPS)


async def test_signals_are_left_to_the_service(redis: LocalRedis) -> None:
    is_told = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, is_told.set)
    worker = Worker()
    worker.may_end.set()
    try:
        async with running(redis, worker):
            await queue(redis).put(CLIPS[:1])
            await worker.wait_for(1)
            os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                await is_told.wait()
            await queue(redis).put(CLIPS[1:2])
            await worker.wait_for(2)
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


async def test_clips_survive_a_redis_that_is_away_and_comes_back_empty(
    models: Mapping[str, LMANet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_SWEEP_SECONDS", 0.3)
    body = write_clip(tmp_path / "ride.mp4", 8).read_bytes()
    with LocalRedis() as redis:
        async with running_service(models, redis_url=redis.url) as service:
            await asyncio.to_thread(redis.kill)
            answer = await service.http.post("/v1/clips", content=body)
            assert (answer.status_code, answer.json()["state"]) == (202, "queued")
            await asyncio.to_thread(redis.start)
            async with asyncio.timeout(TIMEOUT_SECONDS):
                while (await service.http.get(answer.headers["location"])).json()[
                    "state"
                ] != "done":
                    continue
