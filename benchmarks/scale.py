"""Whether two replicas carry twice as much, and whether the planner's simulation is right.

    python benchmarks/scale.py [--json] [--size 120x160]

Throughput: as many sessions as fast as they are answered, through Envoy, first with one replica on
one core, then with two on a core each. Prediction: 1 to 4 replicas share the machine's cores and
get frames at a given rate; the p95 latency that clients see stands beside the one that the
simulation of `segstream plan` gives for the same load, from a profile measured just before.
"""

import argparse
import asyncio
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from rich.console import Console
from rich.table import Table

from segstream.bench.load import Load, Measurement, run_load
from segstream.bench.local_envoy import LocalEnvoy
from segstream.bench.replicas import Replica
from segstream.bench.service import make_frames
from segstream.bench.wires import FrameFormat, Wire, connecting
from segstream.cli.frame_size import parse_size
from segstream.media.images import ImageEncoding
from segstream.planning.measurement import measure_profile
from segstream.planning.profile import MachineProfile
from segstream.planning.simulation import Load as SimulatedLoad
from segstream.planning.simulation import Site, simulate

ENVOY = Path(__file__).parent.parent / "deploy/envoy/envoy.yaml"
NUM_STREAMS = 12
ROUNDS = 3
ENVIRONMENT = {"SEGSTREAM_NUM_THREADS": "1"}
# Sessions by replicas, at a rate of which the machine has about half to spare.
PREDICTED = {1: 4, 2: 6, 3: 6, 4: 8}
SHARE = 0.5


class Prediction(TypedDict):
    """Milliseconds from when a frame was due to its answer."""

    replicas: int
    sessions: int
    frames_per_second: float
    measured_p95_ms: float
    predicted_p95_ms: float
    error: float


@contextmanager
def running(num_replicas: int, cores: list[set[int]] | None = None) -> Iterator[list[Replica]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segstream-scale-")))
        replicas = []
        for number in range(num_replicas):
            replica = Replica(f"replica-{number}", folder, ENVIRONMENT)
            stack.callback(replica.stop)
            replicas.append(replica)
        for replica in replicas:
            replica.wait_until_ready()
        for replica, allowed in zip(replicas, cores or [], strict=False):
            pin(replica.pid, allowed)
        yield replicas


def pin(pid: int, cores: set[int]) -> None:
    """All threads that the process has by now; those to come inherit it."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


async def stream(addresses: list[str], frames: FrameFormat, load: Load) -> list[Measurement]:
    """The same load on each address; the addresses' frames are out of step, like the sessions'."""
    encoded = make_frames(frames)
    rate = load.num_streams * (load.frames_per_second or math.inf)

    async def one(number: int, address: str) -> Measurement:
        async with connecting(Wire.GRPC, address, frames) as connection:
            await asyncio.sleep(number / len(addresses) / rate)
            return await run_load(connection, encoded, load)

    return await asyncio.gather(*map(one, range(len(addresses)), addresses))


def throughput(num_replicas: int, frames: FrameFormat, seconds: float) -> float:
    cores = [{core} for core in sorted(os.sched_getaffinity(0))[:num_replicas]]
    load = Load(NUM_STREAMS, warm_up_seconds=seconds / 3, seconds=seconds)
    with running(num_replicas, cores) as replicas, tempfile.TemporaryDirectory() as folder:
        envoy = LocalEnvoy(ENVOY, Path(folder))
        envoy.set_replicas((replica.port, replica.http_port) for replica in replicas)
        with envoy:
            while envoy.num_healthy() < num_replicas:
                time.sleep(0.1)
            [measurement] = asyncio.run(stream([envoy.grpc_address], frames, load))
    return len(measurement.samples) / seconds


def predict(
    profile: MachineProfile, num_replicas: int, frames: FrameFormat, seconds: float
) -> Prediction:
    num_cores = len(os.sched_getaffinity(0))
    num_sessions = PREDICTED[num_replicas]
    frame_seconds = profile.forward_seconds(1) + profile.overhead_ms / 1000
    rate = SHARE * min(num_cores, num_replicas) / frame_seconds / num_sessions
    load = Load(num_sessions // num_replicas, rate, warm_up_seconds=seconds / 3, seconds=seconds)
    with running(num_replicas) as replicas:
        addresses = [replica.address for replica in replicas]
        measurements = asyncio.run(stream(addresses, frames, load))
    latencies = [s.latency_seconds for each in measurements for s in each.samples]
    measured = 1000 * float(np.percentile(latencies, 95))
    site = Site(num_replicas, num_cores, replicas_per_host=num_replicas, assignment="even")
    total = load.num_streams * num_replicas
    outcome = simulate(profile, site, SimulatedLoad(total, rate, duration_seconds=60.0))
    predicted = outcome.percentile_ms(95)
    return {
        "replicas": num_replicas,
        "sessions": total,
        "frames_per_second": rate,
        "measured_p95_ms": measured,
        "predicted_p95_ms": predicted,
        "error": predicted / measured - 1,
    }


def run(frames: FrameFormat, seconds: float, console: Console) -> dict[str, Any]:
    ratios = []
    for number in range(ROUNDS):
        with console.status(f"throughput, round {number + 1} of {ROUNDS}"):
            one, two = (throughput(count, frames, seconds) for count in (1, 2))
        ratios.append(two / one)
        console.print(f"{one:.1f} frames per second with one replica, {two:.1f} with two")
    predictions = []
    for num_replicas in PREDICTED:
        with console.status(f"{num_replicas} replicas at a given rate") as status:
            profile = measure_profile(frames.height, frames.width, progress=status.update)
            predictions.append(predict(profile, num_replicas, frames, seconds))
    return {"speedup_two_replicas": float(np.median(ratios)), "prediction": predictions}


def show(result: dict[str, Any]) -> None:
    console = Console()
    console.print(f"two replicas carry {result['speedup_two_replicas']:.2f} x as much as one")
    table = Table("replicas", "sessions", "fps each", "p95 ms", "predicted", "error")
    for each in result["prediction"]:
        table.add_row(
            *(str(each[key]) for key in ("replicas", "sessions")),
            f"{each['frames_per_second']:.2f}",
            *(f"{each[key]:.0f}" for key in ("measured_p95_ms", "predicted_p95_ms")),
            f"{100 * each['error']:+.0f} %",
        )
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--size", default="180x240", help="HxW of the frames")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each measurement")
    options = parser.parse_args()
    frames = FrameFormat(*parse_size(options.size), ImageEncoding.JPEG)
    result = run(frames, options.seconds, Console(stderr=True))
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
