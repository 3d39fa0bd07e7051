"""What the service carries: several sessions at once over gRPC, as fast as it answers.

    python benchmarks/service.py [--json]

Starts a service of its own, sends 480x360 raw RGB frames over loopback and prints throughput and
the time of a frame from arrival to answer, for 1, 4 and 8 sessions with one frame in flight each.
"""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from segstream.cli.local_server import local_server
from segstream.client import Client, FrameResult, ImageEncoding
from segstream.media.images import Image

HEIGHT, WIDTH = 360, 480
FRAMES_PER_SESSION = 40
NUM_WARM_UP = 5


def stream(address: str, frames: list[Image]) -> list[FrameResult]:
    with (
        Client(address) as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB) as session,
    ):
        return list(session.segment(frames, max_in_flight=1))


def measure(address: str, num_sessions: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    frames = [
        rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8) for _ in range(FRAMES_PER_SESSION)
    ]
    with ThreadPoolExecutor(num_sessions) as pool:
        started = time.perf_counter()
        sessions = list(pool.map(lambda _: stream(address, frames), range(num_sessions)))
        seconds = time.perf_counter() - started
    results = [result for session in sessions for result in session[NUM_WARM_UP:]]
    total = [result.timings.total_seconds for result in results]
    model = [
        r.timings.encode_seconds + r.timings.memory_read_seconds + r.timings.fuse_decode_seconds
        for r in results
    ]
    overhead = [
        t - m - r.timings.queue_seconds for t, m, r in zip(total, model, results, strict=True)
    ]
    p50, p95, p99 = (1000 * np.percentile(total, (50, 95, 99))).tolist()
    return {
        "size": f"{HEIGHT}x{WIDTH}",
        "encoding": ImageEncoding.RAW_RGB.value,
        "streams": num_sessions,
        "frames_per_second": num_sessions * FRAMES_PER_SESSION / seconds,
        "total_ms": {"p50": p50, "p95": p95, "p99": p99},
        "overhead_ms_median": 1000 * float(np.median(overhead)),
        "mean_batch_size": float(np.mean([result.timings.batch_size for result in results])),
    }


def main() -> None:
    with local_server() as address:
        results = [measure(address, num_sessions) for num_sessions in (1, 4, 8)]
    if "--json" in sys.argv[1:]:
        print(json.dumps(results, indent=2))
        return
    table = Table("sessions", "frames/s", "p50 ms", "p95 ms", "own ms", "batch")
    for result in results:
        table.add_row(
            str(result["streams"]),
            f"{result['frames_per_second']:.1f}",
            f"{result['total_ms']['p50']:.0f}",
            f"{result['total_ms']['p95']:.0f}",
            f"{result['overhead_ms_median']:.1f}",
            f"{result['mean_batch_size']:.1f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
