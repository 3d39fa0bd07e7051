"""The queue that replicas share: a stream in Redis, with acknowledgement, kept by streaQ."""

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from anyio import CancelScope
from coredis.exceptions import RedisError
from streaq import StreaqRetry, Worker

from segstream.clips.queue import Work

_NAME: Final = "segstream:clips"
_TASK: Final = "segment_clip"
_CONNECT_SECONDS = 5.0


class _Worker(Worker[None]):
    async def signal_handler(self, scope: CancelScope) -> None:
        """None: streaQ would take SIGTERM from the service, whatever ``handle_signals`` says."""


class RedisJobQueue:
    """Clips whose worker does not stir for ``silence_seconds`` are given to another one."""

    def __init__(
        self, url: str, *, password: str | None, num_workers: int, silence_seconds: float = 5.0
    ) -> None:
        self._url = url
        self._password = password
        self._num_workers = num_workers
        self._silence_seconds = silence_seconds

    async def put(self, clip_ids: Sequence[str]) -> None:
        """Raises ConnectionError if Redis cannot be had."""
        worker = self._worker(_refuse)
        registered = worker.registry[_TASK]
        try:
            async with asyncio.timeout(_CONNECT_SECONDS), worker:
                for clip_id in clip_ids:
                    task = registered.enqueue(clip_id)
                    task.id = clip_id
                    await task
        except (RedisError, OSError, TimeoutError, ExceptionGroup) as error:
            raise ConnectionError(f"the clip queue in Redis cannot be had: {error}") from error

    async def run(self, work: Work) -> None:
        """Raises what there is to raise when Redis goes."""
        await self._worker(partial(_work_or_retry, work)).run_async()

    async def close(self) -> None:
        """Nothing is held between calls."""

    def _worker(self, work: Any) -> _Worker:
        worker = _Worker(
            redis_url=self._url,
            redis_kwargs={} if self._password is None else {"password": self._password},
            concurrency=max(1, self._num_workers),
            queue_name=_NAME,
            # JSON, for nothing is unpickled; faults of tasks are told by their text.
            serializer=partial(json.dumps, default=str),
            deserializer=json.loads,
            idle_timeout=self._silence_seconds,
        )

        async def segment_clip(clip_id: str) -> None:
            await work(clip_id)

        worker.task(name=_TASK, max_tries=None, timeout=None, ttl=0, silent=True)(segment_clip)
        return worker


async def _work_or_retry(work: Work, clip_id: str) -> None:
    if not await work(clip_id):
        raise StreaqRetry(delay=0)


async def _refuse(clip_id: str) -> None:
    raise StreaqRetry(delay=0)
