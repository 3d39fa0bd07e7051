"""Whether a service's memory stays flat: thousands of frames of sessions that come and go.

    python benchmarks/soak.py [--json] [--frames N] [--plot docs/images/soak.png]

A replica with room for 4 sessions serves 12 at a time through a real Redis. Every session ends
after 100 frames and another begins. Prints the resident memory after a tenth of the frames and at
the end. Linux only.
"""

import argparse
import json
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress

from segstream.bench.local_redis import LocalRedis
from segstream.bench.replicas import Replica
from segstream.client import Client
from segstream.media.images import Image

NUM_SESSIONS = 12
SESSION_FRAMES = 100
HEIGHT, WIDTH = 96, 136  # 4 memories of this size fill the smallest budget, 1 MiB
_MIB = 2**20
_PERIOD_SECONDS = 0.5


class Soak:
    """Streams until ``num_frames`` are answered, and watches the service meanwhile."""

    def __init__(self, replica: Replica, num_frames: int) -> None:
        self.samples: list[tuple[int, float]] = []
        self._replica = replica
        self._num_frames = num_frames
        self._num_answered = 0
        self._counting = threading.Lock()

    @property
    def is_done(self) -> bool:
        return self._num_answered >= self._num_frames

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._stream, args=(number,), daemon=True)
            for number in range(NUM_SESSIONS)
        ]
        for thread in threads:
            thread.start()
        with Progress(console=Console(stderr=True)) as progress:
            task = progress.add_task("frames", total=self._num_frames)
            while any(thread.is_alive() for thread in threads):
                self.samples.append((self._num_answered, resident_mib(self._replica.pid)))
                progress.update(task, completed=self._num_answered)
                time.sleep(_PERIOD_SECONDS)

    def _stream(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        frames: list[Image] = [
            rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for _ in range(SESSION_FRAMES)
        ]
        with Client(self._replica.address, connect_timeout_seconds=60) as client:
            while not self.is_done:
                with client.stream() as session:
                    for _ in session.segment(frames):
                        with self._counting:
                            self._num_answered += 1


def resident_mib(pid: int) -> float:
    num_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return num_pages * resource.getpagesize() / _MIB


def sum_up(samples: list[tuple[int, float]]) -> dict[str, Any]:
    frames, resident = (np.array(column) for column in zip(*samples, strict=True))
    settled = frames >= frames[-1] / 10
    slope, _ = np.polyfit(frames[settled], resident[settled], 1)
    return {
        "frames": int(frames[-1]),
        "resident_mib_at_a_tenth": float(resident[settled][0]),
        "resident_mib_at_the_end": float(resident[-1]),
        "resident_mib_peak": float(resident.max()),
        "growth_bytes_per_frame": float(slope * _MIB),
        "samples": samples,
    }


def plot(result: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    frames, resident = zip(*result["samples"], strict=True)
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(frames, resident, color="#4477aa")
    axes.set_ylim(0, 1.2 * max(resident))
    axes.set_xlabel("frames answered")
    axes.set_ylabel("resident memory, MiB")
    axes.set_title(f"{NUM_SESSIONS} sessions at a time, room for 4 on the device", fontsize=10)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--plot", type=Path, help="image file for the curve")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, LocalRedis() as redis:
        environment = {
            "SEGSTREAM_REDIS_URL": redis.url,
            "SEGSTREAM_MAX_MEMORY_BYTES": str(_MIB),
            "SEGSTREAM_LOG_LEVEL": "warning",
        }
        replica = Replica("replica", Path(folder), environment)
        try:
            replica.wait_until_ready()
            soak = Soak(replica, options.frames)
            soak.run()
        finally:
            replica.stop()
    result = sum_up(soak.samples)
    if options.plot is not None:
        plot(result, options.plot)
    if options.json:
        print(json.dumps(result))
        return
    Console().print(
        f"{result['frames']} frames; resident {result['resident_mib_at_a_tenth']:.0f} MiB after a "
        f"tenth of them, {result['resident_mib_at_the_end']:.0f} MiB at the end, "
        f"peak {result['resident_mib_peak']:.0f} MiB; "
        f"{result['growth_bytes_per_frame']:.0f} bytes per frame"
    )


if __name__ == "__main__":
    main()
