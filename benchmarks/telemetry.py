"""What telemetry costs a frame.

    python benchmarks/telemetry.py [--json]

Streams small frames through one engine under three settings of tracing, in turns: off, as by
default, and every frame of every stream; a collector in a process of its own takes the spans. The
service's own time is what remains of a frame without the network and the queue. Beside it the time
that comparing two label maps of 512x1024 takes.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from segstream.api.service import Service
from segstream.bench.local_redis import free_port
from segstream.checkpoints import DEFAULT
from segstream.client import AsyncClient, FrameResult
from segstream.engine import InProcessEngine
from segstream.media.images import Image
from segstream.media.temporal_consistency import View, grey_of, temporal_consistency
from segstream.models import load
from segstream.settings import Settings
from segstream.telemetry.logging import configure_logging

HEIGHT, WIDTH = 128, 256
NUM_ROUNDS = 20
FRAMES_PER_ROUND = 20
COMPARED_SIZE = 512, 1024
COLLECTOR = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
EVERY_FRAME = {"trace_ratio": 1.0, "max_traced_frames_per_second": 1e6}


@contextmanager
def collector() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", COLLECTOR, str(port)])
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


def own_ms(result: FrameResult) -> float:
    timings = result.timings
    model = timings.encode_seconds + timings.memory_read_seconds + timings.fuse_decode_seconds
    return 1000 * (timings.total_seconds - model - timings.queue_seconds)


async def round_of(service: Service, frames: list[Image]) -> list[float]:
    async with AsyncClient(service.addresses["grpc"]) as client, client.stream() as session:
        results = [result async for result in session.segment(frames, max_in_flight=1)]
    return [own_ms(result) for result in results[1:]]


async def tracing_costs() -> dict[str, float]:
    rng = np.random.default_rng(0)
    scene = rng.integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    frames = [scene.repeat(16, 0).repeat(16, 1)] * FRAMES_PER_ROUND
    engine = InProcessEngine({DEFAULT: load(DEFAULT)})
    engine.start()
    found: dict[str, list[float]] = {}
    with collector() as url, tempfile.TemporaryDirectory() as folder:
        cases: dict[str, dict[str, Any]] = {
            "off": {},
            "default": {"otlp_endpoint": url},
            "every frame": {"otlp_endpoint": url, **EVERY_FRAME},
        }
        async with AsyncExitStack() as stack:
            services = {}
            for name, options in cases.items():
                common = {"port": 0, "http_port": 0, "clip_storage": folder, "clip_workers": 0}
                settings = Settings(**common, **options)  # type: ignore[arg-type]
                services[name] = await stack.enter_async_context(Service(settings, engine))
            for _ in range(NUM_ROUNDS + 1):
                for name, service in services.items():
                    found.setdefault(name, []).append(
                        float(np.median(await round_of(service, frames)))
                    )
    return {name: float(np.median(values[1:])) for name, values in found.items()}


def comparison_ms() -> float:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (*COMPARED_SIZE, 3), np.uint8) for _ in range(2)]
    label_maps = [rng.integers(0, 11, COMPARED_SIZE, np.uint8) for _ in range(2)]
    before = View(grey_of(images[0]), label_maps[0])
    seconds = []
    for _ in range(200):
        started = time.perf_counter()
        temporal_consistency(before, View(grey_of(images[1]), label_maps[1]))
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def main() -> None:
    configure_logging("console", "warning")
    costs = asyncio.run(tracing_costs())
    result = {
        "size": f"{HEIGHT}x{WIDTH}",
        "own_ms_median": costs,
        "consistency_ms_median": comparison_ms(),
    }
    if "--json" in sys.argv[1:]:
        print(json.dumps(result, indent=2))
        return
    table = Table("tracing", "own ms a frame", title=f"JPEG frames of {result['size']}")
    for name, value in costs.items():
        table.add_row(name, f"{value:.2f}")
    console = Console()
    console.print(table)
    console.print(f"temporal consistency: {result['consistency_ms_median']:.2f} ms a frame")


if __name__ == "__main__":
    main()
