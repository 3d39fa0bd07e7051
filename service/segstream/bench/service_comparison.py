"""``segstream bench service --compare``: the service beside the bare engine and other servers.

All take the same frames of the same sessions, in closed loops, with the same weights. They take
turns, in another order each round, and ratios are taken within a round: whatever else the machine
does falls on all alike.
"""

import asyncio
import base64
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from random import Random

import numpy as np
import torch

from segstream.bench.load import Load, run_all
from segstream.bench.peer import running_peer
from segstream.bench.service import Progress, ServiceResult, make_frames, run
from segstream.bench.wires import FrameFormat, HttpConnection, Session, Wire, connecting
from segstream.checkpoints import DEFAULT
from segstream.engine import InProcessEngine, Step
from segstream.errors import EngineError
from segstream.media.images import decode_image
from segstream.media.label_maps import LabelMap, LabelMapEncoding, decode_label_map
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import DeviceStorage
from segstream.models import load as load_model

SERVICE, ENGINE, LITSERVE, FASTAPI = "service", "engine", "litserve", "fastapi"

_FRAMES_PER_ROUND = 4  # of each session


@dataclass(slots=True)
class _Stream:
    """One session of one contender: a call takes its next frame to a label map."""

    segment: Callable[[int], Awaitable[LabelMap]]
    num_segmented: int = 0
    label_maps: list[LabelMap] = field(default_factory=list)  # of the last round

    async def go_on(self, num_frames: int) -> None:
        self.label_maps = []
        for _ in range(num_frames):
            self.label_maps.append(await self.segment(self.num_segmented))
            self.num_segmented += 1


async def run_compared(
    address: str,
    frames: FrameFormat,
    load: Load,
    *,
    rounds: int,
    progress: Progress = lambda _: None,
) -> ServiceResult:
    """The service at ``address`` under the load, then beside the others with as many sessions.

    Raises UnavailableError where LitServe is not installed, and as ``run``.
    """
    alone = await run(address, Wire.GRPC, frames, load, progress=progress)
    encoded = make_frames(frames)
    async with AsyncExitStack() as stack:
        contenders = {}
        for name, opening in (
            (SERVICE, _service(address, frames, encoded, load.num_streams)),
            (ENGINE, _engine(frames, encoded, load.num_streams)),
            (LITSERVE, _litserve(frames, encoded, load.num_streams)),
            (FASTAPI, _fastapi(frames, encoded, load.num_streams)),
        ):
            progress(f"starting {name}")
            contenders[name] = await stack.enter_async_context(opening)
        rates = await _take_turns(contenders, rounds, progress)
    return {
        **alone,
        "engine_only_frames_per_second": statistics.median(rates[ENGINE]),
        "throughput_ratio": _ratio(rates, ENGINE),
        "speedup_vs_litserve": _ratio(rates, LITSERVE),
        "speedup_vs_fastapi": _ratio(rates, FASTAPI),
        "frames_per_second_by_contender": {
            name: statistics.median(values) for name, values in rates.items()
        },
        "label_map_agreement": {
            name: _agreement(contenders[SERVICE], streams)
            for name, streams in contenders.items()
            if name != SERVICE
        },
    }


async def _take_turns(
    contenders: dict[str, list[_Stream]], rounds: int, progress: Progress
) -> dict[str, list[float]]:
    """Frames per second of each contender in each round, after one that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    random, order = Random(0), list(contenders)
    for number in range(rounds + 1):
        for name in order:
            progress(f"round {number} of {rounds}: {name}")
            started = time.perf_counter()
            await run_all(stream.go_on(_FRAMES_PER_ROUND) for stream in contenders[name])
            seconds = time.perf_counter() - started
            if number:
                rates[name].append(len(contenders[name]) * _FRAMES_PER_ROUND / seconds)
        random.shuffle(order)
    return rates


def _ratio(rates: dict[str, list[float]], other: str) -> float:
    pairs = zip(rates[SERVICE], rates[other], strict=True)
    return statistics.median(mine / theirs for mine, theirs in pairs)


def _agreement(streams: Sequence[_Stream], others: Sequence[_Stream]) -> float:
    """Over all label maps of the last round."""
    pairs = zip(streams, others, strict=True)
    return float(np.mean([np.equal(a.label_maps, b.label_maps) for a, b in pairs]))


@asynccontextmanager
async def _service(
    address: str, frames: FrameFormat, encoded: Sequence[bytes], num_streams: int
) -> AsyncIterator[list[_Stream]]:
    async with AsyncExitStack() as stack:
        connection = await stack.enter_async_context(connecting(Wire.GRPC, address, frames))
        sessions = [
            await stack.enter_async_context(connection.session()) for _ in range(num_streams)
        ]
        yield _streams(sessions, frames, encoded, LabelMapEncoding.ZSTD)


@asynccontextmanager
async def _litserve(
    frames: FrameFormat, encoded: Sequence[bytes], num_streams: int
) -> AsyncIterator[list[_Stream]]:
    def body(session_id: str, frame: bytes) -> bytes:
        jpeg = base64.b64encode(frame).decode()
        return json.dumps({"session_id": session_id, "jpeg": jpeg}).encode()

    async with running_peer("litserve") as address, AsyncExitStack() as stack:
        connection = HttpConnection(address, "/predict", body=body)
        sessions = [
            await stack.enter_async_context(connection.session()) for _ in range(num_streams)
        ]
        yield _streams(sessions, frames, encoded, LabelMapEncoding.PNG)


@asynccontextmanager
async def _fastapi(
    frames: FrameFormat, encoded: Sequence[bytes], num_streams: int
) -> AsyncIterator[list[_Stream]]:
    async with running_peer("fastapi") as address, AsyncExitStack() as stack:
        connection = HttpConnection(address, "/segment/{session_id}")
        sessions = [
            await stack.enter_async_context(connection.session()) for _ in range(num_streams)
        ]
        yield _streams(sessions, frames, encoded, LabelMapEncoding.PNG)


def _streams(
    sessions: Sequence[Session],
    frames: FrameFormat,
    encoded: Sequence[bytes],
    encoding: LabelMapEncoding,
) -> list[_Stream]:
    def segmenting(session: Session, number: int) -> Callable[[int], Awaitable[LabelMap]]:
        async def segment(index: int) -> LabelMap:
            await session.send(encoded[(number + index) % len(encoded)])
            answer = await session.receive()
            if answer.error:
                raise EngineError(f"a frame failed: {answer.error}")
            return decode_label_map(answer.data, encoding, frames.width, frames.height)

        return segment

    return [_Stream(segmenting(session, number)) for number, session in enumerate(sessions)]


@asynccontextmanager
async def _engine(
    frames: FrameFormat, encoded: Sequence[bytes], num_streams: int
) -> AsyncIterator[list[_Stream]]:
    """The engine in this process on pixels, with nothing around it."""
    model = load_model(DEFAULT)
    engine = InProcessEngine({DEFAULT: model})
    await asyncio.to_thread(engine.start)
    images = [decode_image(frame, frames.encoding) for frame in encoded]
    length = model.config.memory_length
    geometry = model.page_geometry(frames.height, frames.width)
    storage = DeviceStorage(torch.float32, "cpu")
    pool = PagePool(geometry, num_streams * (length + 1), storage)

    def segmenting(bank: MemoryBank, number: int) -> Callable[[int], Awaitable[LabelMap]]:
        async def segment(index: int) -> LabelMap:
            image = images[(number + index) % len(images)]
            step = Step(DEFAULT, image, bank.pages, bank.slots, bank.reserve())
            result = await engine.step(step)
            bank.commit()
            assert result.label_map is not None
            return result.label_map

        return segment

    try:
        yield [_Stream(segmenting(MemoryBank(pool, length), n)) for n in range(num_streams)]
    finally:
        await engine.stop()
