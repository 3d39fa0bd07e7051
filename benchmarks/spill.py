"""What it costs to spill a session's memory and to restore it, side by side with a forward.

    python benchmarks/spill.py [--json] [--clip PATH]

Pages of a real video go through the Redis and the directory tier; beside it, how well they could be
compressed, and how long at a stretch moving them keeps the event loop from other work. Medians; of
these stretches the longest of each move counts, in processor time of the loop's thread, since what
else runs on the machine is no matter of the service's.
"""

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import zstandard
from rich.console import Console
from rich.table import Table

from segstream.bench.clips import add_clip
from segstream.bench.local_redis import LocalRedis
from segstream.media.images import Image
from segstream.media.video import VideoReader
from segstream.memory.directory_store import DirectoryStore
from segstream.memory.memory_bank import MemoryBank
from segstream.memory.page_pool import PagePool
from segstream.memory.page_storage import DeviceStorage
from segstream.memory.redis_store import RedisStore
from segstream.memory.snapshot import Snapshot
from segstream.memory.spill_store import SpillStore
from segstream.models import LMANet, OnnxLMANet, load, model_digest

ROOT = Path(__file__).parent.parent
MODEL = "lmanet-erfnet-camvid"
DTYPES = (torch.float32, torch.float16)
ROUNDS = 15
SESSION = "session"

_R = TypeVar("_R")


def fill_bank(model: LMANet, frames: list[Image], dtype: torch.dtype) -> tuple[MemoryBank, float]:
    """A bank over the memory of these frames, and the median milliseconds of a forward."""
    network = OnnxLMANet(model)
    height, width = frames[0].shape[:2]
    length = model.config.memory_length
    pool = PagePool(model.page_geometry(height, width), length + 1, DeviceStorage(dtype))
    bank = MemoryBank(pool, length)
    times = []
    for frame in frames:
        images = torch.from_numpy(frame).permute(2, 0, 1)[None].float().div_(255)
        started = time.perf_counter()
        network(
            images,
            bank.pages,
            torch.tensor([bank.slots], dtype=torch.int32).reshape(1, len(bank.slots)),
            torch.tensor([bank.reserve()]),
        )
        bank.commit()
        times.append(1000 * (time.perf_counter() - started))
    return bank, statistics.median(times[length:])


def compressions(snapshot: Snapshot) -> list[dict[str, Any]]:
    """Size and time of the pages as they are, and compressed in two ways."""
    pages = [
        pool.view(torch.uint8).numpy().reshape(-1) for pool in (snapshot.keys, snapshot.values)
    ]
    plain = b"".join(part.tobytes() for part in pages)
    itemsize = snapshot.keys.element_size()
    shuffled = b"".join(part.reshape(-1, itemsize).T.tobytes() for part in pages)
    found = []
    for name, data in (("zstd -1", plain), ("shuffled, zstd -1", shuffled)):
        packed, pack_ms = median_ms(partial(zstandard.compress, data, 1))
        _, unpack_ms = median_ms(partial(zstandard.decompress, packed))
        found.append(
            {
                "compression": name,
                "ratio": len(packed) / len(plain),
                "pack_ms": pack_ms,
                "unpack_ms": unpack_ms,
            }
        )
    return found


def median_ms(run: Callable[[], _R]) -> tuple[_R, float]:
    times = []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        result = run()
        times.append(1000 * (time.perf_counter() - started))
    return result, statistics.median(times)


async def measure_move(run: Callable[[], Awaitable[Any]]) -> dict[str, float]:
    """Milliseconds that a move takes, and for which it holds the loop at a stretch."""
    times, longest_holds = [], []
    for _ in range(ROUNDS):
        holds: list[float] = []
        watching = asyncio.create_task(watch_the_loop(holds))
        await asyncio.sleep(0)
        started = time.perf_counter()
        await run()
        times.append(1000 * (time.perf_counter() - started))
        await asyncio.sleep(0)
        watching.cancel()
        longest_holds.append(max(holds))
    return {
        "ms": statistics.median(times),
        "loop_held_ms": statistics.median(longest_holds),
        "loop_held_ms_at_worst": max(longest_holds),
    }


async def measure_tier(store: SpillStore, bank: MemoryBank, digest: str) -> dict[str, Any]:
    epoch = (await store.claim(SESSION, "benchmark")).epoch

    async def spill() -> None:
        snapshot = await asyncio.to_thread(snapshot_of, bank, digest, epoch)
        await store.save(SESSION, epoch, await asyncio.to_thread(snapshot.encode))

    async def restore() -> None:
        parts = await store.load(SESSION)
        assert parts is not None
        decoded = await asyncio.to_thread(Snapshot.decode, parts, model_digest=digest)
        bank.release()
        await asyncio.to_thread(decoded.into, bank)

    tier = {
        "tier": store.name,
        "spill": await measure_move(spill),
        "restore": await measure_move(restore),
    }
    await store.close()
    return tier


async def watch_the_loop(holds: list[float]) -> None:
    """For how long, in milliseconds of its thread, others keep the loop from going round."""
    while True:
        started = time.thread_time()
        await asyncio.sleep(0)
        holds.append(1000 * (time.thread_time() - started))


def snapshot_of(bank: MemoryBank, digest: str, epoch: int) -> Snapshot:
    return Snapshot.of(bank, model_digest=digest, epoch=epoch, next_frame_index=0, state=b"")


def measure(model: LMANet, frames: list[Image], dtype: torch.dtype) -> dict[str, Any]:
    bank, forward_ms = fill_bank(model, frames, dtype)
    digest = model_digest(model)
    with LocalRedis() as redis, tempfile.TemporaryDirectory() as folder:
        tiers = [
            asyncio.run(measure_tier(store, bank, digest))
            for store in (
                RedisStore(redis.url, lease_seconds=1.0, ttl_seconds=60.0),
                DirectoryStore(Path(folder), max_bytes=1 << 30),
            )
        ]
    snapshot = snapshot_of(bank, digest, 1)
    return {
        "size": f"{frames[0].shape[0]}x{frames[0].shape[1]}",
        "dtype": str(dtype).removeprefix("torch."),
        "num_pages": snapshot.num_pages,
        "mebibytes": sum(map(len, snapshot.encode())) / 2**20,
        "forward_ms": forward_ms,
        "tiers": tiers,
        "compressions": compressions(snapshot),
    }


def show(results: list[dict[str, Any]]) -> None:
    console = Console(width=max(100, Console().width))
    moves = Table("pages", "MiB", "forward, ms", "tier", "move", "ms", "loop held, ms", "at worst")
    packs = Table("pages", "compression", "size", "pack, ms", "unpack, ms")
    for result in results:
        pages = f"{result['num_pages']} of {result['size']}, {result['dtype']}"
        for tier in result["tiers"]:
            for name in ("spill", "restore"):
                move = tier[name]
                moves.add_row(
                    *(pages, f"{result['mebibytes']:.1f}", f"{result['forward_ms']:.0f}"),
                    *(tier["tier"], name, f"{move['ms']:.1f}"),
                    *(f"{move['loop_held_ms']:.2f}", f"{move['loop_held_ms_at_worst']:.2f}"),
                )
        for pack in result["compressions"]:
            packs.add_row(
                *(pages, pack["compression"], f"{100 * pack['ratio']:.0f} %"),
                *(f"{pack['pack_ms']:.1f}", f"{pack['unpack_ms']:.1f}"),
            )
    console.print(moves)
    console.print(packs)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    add_clip(parser, ROOT)
    options = parser.parse_args()
    with VideoReader(options.clip) as reader:
        frames = [frame for frame, _ in zip(reader, range(ROUNDS), strict=False)]
    model = load(MODEL)
    results = [measure(model, frames, dtype) for dtype in DTYPES]
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        show(results)


if __name__ == "__main__":
    main()
