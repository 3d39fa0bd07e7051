"""What a thousand sessions cost that have nothing to do, and whether one among them feels them.

    python benchmarks/idle_sessions.py [--json] [--sessions N]

Starts two services. In one, more and more sessions are opened, each over a connection of its own
with a memory on the device, and then left alone; in the other there are none. Prints the processor
time that the idle ones take, their memory beside what ``segstream plan`` plans for them, and how
long a frame of one active session takes beside them and without them, interleaved. Linux only.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from segstream.bench.service import make_frames
from segstream.bench.wires import FrameFormat, Session, Wire, connecting
from segstream.cli.local_server import SERVE_COMMAND, LocalServer, local_server
from segstream.planning.plan import memory_bytes

IDLE = FrameFormat(96, 128)
ACTIVE = FrameFormat(360, 480)
FRAMES_EACH = 4  # of an idle session, before it idles: its memory is full
IDLE_SECONDS = 15.0
ROUNDS, FRAMES_PER_ROUND = 10, 3
_NUM_OPENED_AT_ONCE = 50
_MIB = 2**20


async def open_idle(
    stack: AsyncExitStack, server: LocalServer, frames: Sequence[bytes], count: int
) -> None:
    """Sessions whose memory is full and that now say nothing."""

    async def open_one() -> None:
        connection = await stack.enter_async_context(connecting(Wire.GRPC, server.grpc, IDLE))
        session = await stack.enter_async_context(connection.session())
        for frame in frames[:FRAMES_EACH]:
            await segment(session, frame)

    for done in range(0, count, _NUM_OPENED_AT_ONCE):
        await asyncio.gather(*(open_one() for _ in range(min(_NUM_OPENED_AT_ONCE, count - done))))


async def segment(session: Session, frame: bytes) -> None:
    await session.send(frame)
    answer = await session.receive()
    if answer.error:
        raise RuntimeError(answer.error)


async def measure_idling(server: LocalServer) -> dict[str, float]:
    before, started = processor_seconds(server.pid), time.perf_counter()
    await asyncio.sleep(IDLE_SECONDS)
    seconds = processor_seconds(server.pid) - before
    return {
        "idle_percent_of_a_core": 100 * seconds / (time.perf_counter() - started),
        "resident_mib": resident_bytes(server.pid) / _MIB,
    }


async def measure_active(sessions: dict[str, Session], frames: Sequence[bytes]) -> dict[str, float]:
    """The same frames in either service in turn; the ratio is the median of those of a round."""
    medians: dict[str, list[float]] = {name: [] for name in sessions}
    order = list(sessions)
    for _ in range(ROUNDS):
        order.reverse()
        for name in order:
            times = []
            for frame in frames[:FRAMES_PER_ROUND]:
                started = time.perf_counter()
                await segment(sessions[name], frame)
                times.append(time.perf_counter() - started)
            medians[name].append(statistics.median(times))
    pairs = zip(medians["crowded"], medians["alone"], strict=True)
    return {
        "active_ms_median": 1000 * statistics.median(medians["crowded"]),
        "alone_ms_median": 1000 * statistics.median(medians["alone"]),
        "active_to_alone": statistics.median(mine / theirs for mine, theirs in pairs),
    }


async def run(crowded: LocalServer, alone: LocalServer, counts: Sequence[int]) -> dict[str, Any]:
    idle_frames, active_frames = make_frames(IDLE), make_frames(ACTIVE)
    results: list[dict[str, float]] = []
    async with AsyncExitStack() as stack:
        active = {}
        for name, server in (("crowded", crowded), ("alone", alone)):
            connection = await stack.enter_async_context(connecting(Wire.GRPC, server.grpc, ACTIVE))
            active[name] = await stack.enter_async_context(connection.session())
            for frame in active_frames:
                await segment(active[name], frame)
        num_open = 0
        for count in (0, *counts):
            await open_idle(stack, crowded, idle_frames, count - num_open)
            num_open = count
            results.append(
                {"idle_sessions": count}
                | await measure_idling(crowded)
                | await measure_active(active, active_frames)
            )
        idle = await stack.enter_async_context(connecting(Wire.GRPC, crowded.grpc, IDLE))
        session_bytes = min(await idle.memory_bytes())
    first, last = results[0], results[-1]
    for result in results:
        base, count = round(_MIB * first["resident_mib"]), int(result["idle_sessions"])
        result["planned_mib"] = memory_bytes(base, session_bytes, count) / _MIB
    return {
        "size": f"{IDLE.height}x{IDLE.width}",
        "results": results,
        "kib_per_idle_session": 1024
        * (last["resident_mib"] - first["resident_mib"])
        / last["idle_sessions"],
    }


def processor_seconds(pid: int) -> float:
    """User and system time of the process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--sessions", type=int, default=1000)
    options = parser.parse_args()
    allow_connections(options.sessions)
    command = (
        *(*SERVE_COMMAND, "--max-sessions", str(options.sessions + 1)),
        *("--idle-seconds", "3600", "--spill-after-seconds", "3600"),
    )
    counts = sorted({options.sessions // 10, options.sessions} - {0})
    with local_server(command=command) as crowded, local_server(command=command) as alone:
        result = uvloop.run(run(crowded, alone, counts))
    if options.json:
        print(json.dumps(result))
        return
    columns = (
        *("idle sessions", "% of a core", "resident MiB", "planned MiB"),
        *("active, ms", "alone, ms", "active / alone"),
    )
    caption = f"{result['kib_per_idle_session']:.0f} KiB for each idle session"
    table = Table(*columns, caption=caption)
    for row in result["results"]:
        table.add_row(
            str(row["idle_sessions"]),
            f"{row['idle_percent_of_a_core']:.2f}",
            f"{row['resident_mib']:.0f}",
            f"{row['planned_mib']:.0f}",
            f"{row['active_ms_median']:.1f}",
            f"{row['alone_ms_median']:.1f}",
            f"{row['active_to_alone']:.3f}",
        )
    Console().print(table)


def allow_connections(count: int) -> None:
    """Each takes a file descriptor here and one in the service, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 4 * count + 1000)), hard))


if __name__ == "__main__":
    main()
