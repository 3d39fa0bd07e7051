"""A load of sessions on a service: closed loop or at a given frame rate, warm-up, think time."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from random import Random
from typing import Any

from segstream.bench.wires import Answer, Connection, Session
from segstream.errors import InvalidInputError, SegstreamError

MAX_OUTSTANDING = 4
"""Frames of a session that wait behind the one being answered; a camera drops the next one."""


@dataclass(frozen=True, slots=True)
class Load:
    """What each of ``num_streams`` sessions does, for ``warm_up_seconds`` and then ``seconds``.

    ``frames_per_second`` of each session, whatever the answers do (open loop); None: the next frame
    goes ``think_seconds`` after the answer to the last one (closed loop). Raises InvalidInputError.
    """

    num_streams: int = 1
    frames_per_second: float | None = None
    think_seconds: float = 0.0
    warm_up_seconds: float = 2.0
    seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.frames_per_second is not None and self.think_seconds:
            raise InvalidInputError(
                f"think_time is {1000 * self.think_seconds:g} ms, but rate says when frames go: "
                "give one of them",
                field="think_time",
            )


@dataclass(frozen=True, slots=True)
class Sample:
    """A frame and its answer: when it was due by the clock of the load, and when it was answered.

    What a late frame waited before it could be sent counts as its latency.
    """

    due: float
    answered: float
    answer: Answer

    @property
    def latency_seconds(self) -> float:
        return self.answered - self.due


@dataclass(slots=True)
class Measurement:
    """The frames answered, and those dropped, between the end of the warm-up and the end.

    ``memory_bytes``: what the memory of each session took on the service's device at the end.
    """

    seconds: float
    samples: list[Sample] = field(default_factory=list)
    num_dropped: int = 0
    memory_bytes: list[int] = field(default_factory=list)


async def run_load(connection: Connection, frames: Sequence[bytes], load: Load) -> Measurement:
    """Open the sessions, apply the load, and tell how it went.

    Each session sends ``frames`` over and over, beginning at another one. Raises what a session is
    refused with or ends with.
    """
    async with AsyncExitStack() as stack:
        sessions = [
            await stack.enter_async_context(connection.session()) for _ in range(load.num_streams)
        ]
        begin = time.perf_counter() + load.warm_up_seconds
        measurement = Measurement(load.seconds)
        drivers = [
            _Driver(session, frames, number, load, begin, measurement)
            for number, session in enumerate(sessions)
        ]
        await run_all(driver.run() for driver in drivers)
        measurement.memory_bytes = await connection.memory_bytes()
    return measurement


async def run_all(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    """All of them at once. Raises the first error, when the others are cancelled."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for work in works:
                tasks.create_task(work)
    except* SegstreamError as errors:
        raise _first(errors) from None


def _first(errors: BaseExceptionGroup[SegstreamError]) -> SegstreamError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


class _Driver:
    """One session under load."""

    def __init__(
        self,
        session: Session,
        frames: Sequence[bytes],
        number: int,
        load: Load,
        begin: float,
        measurement: Measurement,
    ) -> None:
        self._session = session
        self._frames = frames
        self._load = load
        self._begin, self._end = begin, begin + load.seconds
        self._measurement = measurement
        self._num_sent = number  # so that sessions are not in step with each other
        self._phase = Random(number).random()

    async def run(self) -> None:
        if self._load.frames_per_second is None:
            await self._closed_loop()
            return
        under_way: asyncio.Queue[float | None] = asyncio.Queue(MAX_OUTSTANDING)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._receive_all(under_way))
            await self._send_all(1 / self._load.frames_per_second, under_way)
            await under_way.put(None)

    async def _closed_loop(self) -> None:
        while (now := time.perf_counter()) < self._end:
            await self._send()
            self._note(now, await self._session.receive())
            await asyncio.sleep(self._load.think_seconds)

    async def _send_all(self, period: float, under_way: "asyncio.Queue[float | None]") -> None:
        """A frame each period, at a phase of the session's own."""
        due = time.perf_counter() + self._phase * period
        while due < self._end:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            if not under_way.full():
                under_way.put_nowait(due)
                await self._send()
            elif due >= self._begin:
                self._measurement.num_dropped += 1
            due += period

    async def _receive_all(self, under_way: "asyncio.Queue[float | None]") -> None:
        while (due := await under_way.get()) is not None:
            self._note(due, await self._session.receive())

    async def _send(self) -> None:
        frame = self._frames[self._num_sent % len(self._frames)]
        self._num_sent += 1
        await self._session.send(frame)

    def _note(self, due: float, answer: Answer) -> None:
        now = time.perf_counter()
        if self._begin <= now < self._end:
            self._measurement.samples.append(Sample(due, now, answer))
