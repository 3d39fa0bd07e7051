"""What Triton adds to a frame, and what its death costs.

    python benchmarks/triton_server.py [--json] [--rounds N] [--sessions N]

Starts a real Triton with the repository of this tree and computes the same frames in process, in
Triton over shared memory, and in Triton with the pages travelling in the messages; interleaved,
medians. Added is what a frame takes beside the network's own time. Then many sessions at once in
either, and how long the answers stay away when the stub or the server is killed under load. Needs
Linux and a tritonserver (see 'segstream triton --help').
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from segstream.bench.local_redis import free_port
from segstream.engine import Engine, InProcessEngine, Step, StepResult
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import DeviceStorage, PageStorage
from segstream.models import load
from segstream.telemetry.logging import configure_logging
from segstream.triton.engine import TritonEngine

MODEL = "lmanet-erfnet-camvid"
SIZE = (512, 1024)
LOAD_SIZE = (360, 480)
START_SECONDS = 120.0


@dataclass
class Contender:
    """An engine and where its pages lie."""

    engine: Engine
    storage: PageStorage
    times: list[float] = field(default_factory=list)
    overheads: list[float] = field(default_factory=list)

    def session(self, pool: PagePool) -> "Session":
        info = self.engine.models[MODEL]
        return Session(self.engine, MemoryBank(pool, info.memory_length), info.digest)

    def pool(self, size: tuple[int, int], num_sessions: int) -> PagePool:
        pages_each = self.engine.models[MODEL].memory_length + 1
        geometry = self.engine.page_geometry(MODEL, *size)
        return PagePool(geometry, num_sessions * pages_each, self.storage)


@dataclass
class Session:
    """One video's memory in one engine."""

    engine: Engine
    bank: MemoryBank
    digest: str
    waits: list[float] = field(default_factory=list)

    async def segment(self, image: Image) -> StepResult:
        started = time.perf_counter()
        step = Step(
            MODEL,
            image,
            self.bank.pages,
            self.bank.slots,
            self.bank.reserve(),
            model_digest=self.digest,
        )
        result = await self.engine.step(step)
        self.bank.commit()
        self.waits.append(time.perf_counter() - started)
        return result

    async def segment_all(self, video: Sequence[Image]) -> list[LabelMap]:
        return [label_map_of(await self.segment(image)) for image in video]


def label_map_of(result: StepResult) -> LabelMap:
    assert result.label_map is not None
    return result.label_map


def make_videos(num_videos: int, num_frames: int, size: tuple[int, int]) -> list[list[Image]]:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (size[0] // 8, size[1] // 8, 3), np.uint8)
    wide = scene.repeat(8, axis=0).repeat(8, axis=1)
    return [
        [np.roll(wide, 4 * n + 16 * number, axis=1) for n in range(num_frames)]
        for number in range(num_videos)
    ]


async def measure_frames(contenders: dict[str, Contender], num_rounds: int) -> dict[str, Any]:
    """One frame in each in turn."""
    [video] = make_videos(1, num_rounds, SIZE)
    sessions = {name: c.session(c.pool(SIZE, 1)) for name, c in contenders.items()}
    num_differing = 0
    for number, image in enumerate(video):
        label_maps = []
        for name, session in sessions.items():
            result = await session.segment(image)
            label_maps.append(label_map_of(result))
            if number > session.bank.memory_length:
                own = sum(s for stage, s in result.stage_seconds.items() if stage != "queue")
                contenders[name].times.append(1000 * session.waits[-1])
                contenders[name].overheads.append(1000 * (session.waits[-1] - own))
        num_differing += sum(not np.array_equal(label_maps[0], other) for other in label_maps[1:])
    medians = {name: statistics.median(c.times) for name, c in contenders.items()}
    overheads = {name: statistics.median(c.overheads) for name, c in contenders.items()}
    return {
        "size": f"{SIZE[0]}x{SIZE[1]}",
        "in_process_ms_median": medians["in process"],
        "triton_ms_median": medians["triton"],
        "added_ms_median": overheads["triton"] - overheads["in process"],
        "bank_shipped_added_ms_median": overheads["shipped"] - overheads["in process"],
        "label_maps_compared": len(video) * (len(contenders) - 1),
        "label_maps_differing": num_differing,
    }


async def measure_load(
    contenders: dict[str, Contender], num_sessions: int, num_rounds: int
) -> dict[str, Any]:
    """All sessions at once, in one engine after the other and again."""
    videos = make_videos(num_sessions, 6, LOAD_SIZE)
    pools = {name: c.pool(LOAD_SIZE, num_sessions) for name, c in contenders.items()}
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    found: dict[str, list[list[LabelMap]]] = {}
    triton = contenders["triton"].engine
    assert isinstance(triton, TritonEngine)
    before = (await triton.statistics())[MODEL]
    for _ in range(num_rounds):
        for name, contender in contenders.items():
            sessions = [contender.session(pools[name]) for _ in videos]
            started = time.perf_counter()
            found[name] = await asyncio.gather(
                *(s.segment_all(v) for s, v in zip(sessions, videos, strict=True))
            )
            seconds = time.perf_counter() - started
            rates[name].append(sum(map(len, videos)) / seconds)
            for session in sessions:
                session.bank.release()
    after = (await triton.statistics())[MODEL]
    pairs = zip(*(chain.from_iterable(maps) for maps in found.values()), strict=True)
    return {
        "sessions": num_sessions,
        "in_process_frames_per_second": statistics.median(rates["in process"]),
        "triton_frames_per_second": statistics.median(rates["triton"]),
        "throughput_ratio": statistics.median(
            t / p for t, p in zip(rates["triton"], rates["in process"], strict=True)
        ),
        "mean_batch_size": (after.num_frames - before.num_frames)
        / (after.num_batches - before.num_batches),
        "label_maps_compared": num_sessions * len(videos[0]),
        "label_maps_differing": sum(not np.array_equal(*pair) for pair in pairs),
    }


async def measure_deaths(
    contender: Contender, num_sessions: int, supervisor: "subprocess.Popen[bytes]"
) -> dict[str, Any]:
    """The longest that a session waits for an answer when the stub, then the server, is killed."""
    engine = contender.engine
    assert isinstance(engine, TritonEngine)
    videos = make_videos(num_sessions, 30, (120, 160))
    pool = contender.pool((120, 160), num_sessions)
    waits = {}
    for victim in ("stub", "server"):
        sessions = [contender.session(pool) for _ in videos]
        streaming = asyncio.gather(
            *(s.segment_all(v) for s, v in zip(sessions, videos, strict=True))
        )
        await asyncio.sleep(0.5)
        stub = engine.served(MODEL).description.pid
        os.kill(stub if victim == "stub" else _parent(stub), signal.SIGKILL)
        await streaming
        waits[f"{victim}_recovery_seconds"] = max(max(session.waits) for session in sessions)
        for session in sessions:
            session.bank.release()
    assert supervisor.poll() is None, "segstream triton has ended"
    return waits


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat.rpartition(")")[2].split()[1])


@asynccontextmanager
async def in_triton(address: str, **options: Any) -> AsyncIterator[Contender]:
    engine = TritonEngine(address, [MODEL], **options)
    try:
        await engine.start(START_SECONDS)
        yield Contender(engine, engine.page_storage)
    finally:
        await engine.stop()


async def measure(options: argparse.Namespace, port: int, supervisor: Any) -> dict[str, Any]:
    address = f"127.0.0.1:{port}"
    in_process = InProcessEngine({MODEL: load(MODEL)})
    in_process.start()
    here = Contender(in_process, DeviceStorage())
    async with in_triton(address) as triton:
        async with in_triton(address, page_passing="tensors") as shipped:
            contenders = {"in process": here, "triton": triton, "shipped": shipped}
            frames = await measure_frames(contenders, options.rounds)
        loaded = await measure_load(
            {"in process": here, "triton": triton}, options.sessions, max(3, options.rounds // 5)
        )
        deaths = await measure_deaths(triton, options.sessions, supervisor)
    await in_process.stop()
    return (
        loaded
        | frames
        | deaths
        | {
            key: frames[key] + loaded[key]
            for key in ("label_maps_compared", "label_maps_differing")
        }
    )


def show(result: dict[str, Any]) -> None:
    table = Table("", "value", title=f"Triton, {MODEL}")
    for name, value in result.items():
        text = f"{value:.2f}" if isinstance(value, float) else str(value)
        table.add_row(name.replace("_", " "), text)
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--sessions", type=int, default=8)
    options = parser.parse_args()
    configure_logging("console", "error")
    ports = {name: free_port() for name in ("port", "http-port", "metrics-port")}
    flags = [f"--{name}={port}" for name, port in ports.items()]
    repository = Path(__file__).parent.parent / "model_repository"
    with tempfile.NamedTemporaryFile(suffix=".log") as log:
        supervisor = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "segstream",
                "triton",
                f"--model-repository={repository}",
                *flags,
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            result = asyncio.run(measure(options, ports["port"], supervisor))
        finally:
            supervisor.terminate()
            supervisor.wait(30)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
