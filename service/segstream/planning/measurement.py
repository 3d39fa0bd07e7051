"""Measures a machine profile on a real replica of the service."""

import asyncio
import json
import math
import os
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import redis

from segstream.bench.load import Load, Measurement, Sample, run_load
from segstream.bench.local_redis import LocalRedis, server_binary
from segstream.bench.replicas import Replica
from segstream.bench.service import MODEL_STAGES, make_frames
from segstream.bench.wires import FrameFormat, Wire, connecting
from segstream.media.images import ImageEncoding
from segstream.planning.profile import MachineProfile

_NUM_STREAMS = (1, 2, 4, 8)
_MAX_BATCH_SIZE = 8


def measure_profile(
    height: int,
    width: int,
    *,
    model: str = "",
    device: str = "cpu",
    threads: int = 1,
    seconds: float = 6.0,
    progress: Callable[[str], None] = lambda _: None,
) -> MachineProfile:
    """Start a replica, and a Redis where there is one; stream to it; tell what frames cost.

    ``model``: a checkpoint's name or file; empty for the service's default one. ``threads``: the
    forward's, on CPU. ``seconds`` for each number of sessions.
    """
    environment = {
        "SEGSTREAM_NUM_THREADS": str(threads),
        "SEGSTREAM_DEVICE": device,
        "SEGSTREAM_MAX_BATCH_SIZE": str(_MAX_BATCH_SIZE),
    }
    if model:
        environment["SEGSTREAM_MODELS"] = model
    frames = FrameFormat(height, width, ImageEncoding.JPEG)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="segstream-plan-")))
        store = stack.enter_context(LocalRedis()) if server_binary() else None
        if store is not None:
            environment["SEGSTREAM_REDIS_URL"] = store.url
        progress("starting a replica")
        replica = Replica("plan", folder, environment)
        stack.callback(replica.stop)
        replica.wait_until_ready()
        base_bytes = _resident_bytes(replica.pid)
        [served] = _get(replica, "/v1/models")["models"]
        before = _redis_seconds(store)
        runs = []
        for num_streams in _NUM_STREAMS:
            progress(f"{height}x{width}: {num_streams} sessions at once")
            load = Load(num_streams, warm_up_seconds=seconds / 3, seconds=seconds)
            runs.append(asyncio.run(_run(replica.address, frames, load)))
        redis_share = (_redis_seconds(store) - before) / (len(runs) * 4 / 3 * seconds)
    samples = [sample for run in runs for sample in run.samples]
    batch_sizes = np.array([sample.answer.batch_size for sample in samples])
    fixed, per_frame, jitter = fit_forward(
        batch_sizes, np.array([_model_seconds(sample) for sample in samples])
    )
    return MachineProfile(
        model=served["name"],
        size=f"{height}x{width}",
        device=device,
        threads=threads,
        memory_length=served["memory_length"],
        forward_fixed_ms=1000 * fixed,
        forward_frame_ms=1000 * per_frame,
        forward_jitter=jitter,
        overhead_ms=1000 * float(np.median([_overhead_seconds(s) for s in runs[0].samples])),
        redis_frame_ms=1000 * redis_share * len(runs) * seconds / len(samples),
        max_batch_size=int(batch_sizes.max()),
        frame_bytes=_mean_bytes(make_frames(frames)),
        label_map_bytes=_mean_bytes([sample.answer.data for sample in samples]),
        session_bytes=max(runs[-1].memory_bytes),
        base_bytes=base_bytes,
    )


def fit_forward(batch_sizes: np.ndarray, seconds: np.ndarray) -> tuple[float, float, float]:
    """Fixed seconds, seconds per frame, and the standard deviation of the logarithm around them.

    Medians by batch size are fitted, so that a forward which the machine held up counts once;
    the deviation comes from the median absolute one for the same reason.
    """
    sizes = np.unique(batch_sizes)
    medians = np.array([np.median(seconds[batch_sizes == size]) for size in sizes])
    if len(sizes) == 1:
        fixed, per_frame = 0.0, float(medians[0] / sizes[0])
    else:
        weights = np.sqrt([np.count_nonzero(batch_sizes == size) for size in sizes])
        per_frame, fixed = (float(x) for x in np.polyfit(sizes, medians, 1, w=weights))
        if fixed < 0:
            fixed, per_frame = 0.0, float(np.sum(medians * sizes) / np.sum(sizes**2))
    residual = np.abs(np.log(seconds / (fixed + per_frame * batch_sizes)))
    return fixed, per_frame, min(1.0, 1.4826 * float(np.median(residual)))


async def _run(address: str, frames: FrameFormat, load: Load) -> Measurement:
    async with connecting(Wire.GRPC, address, frames) as connection:
        return await run_load(connection, make_frames(frames), load)


def _model_seconds(sample: Sample) -> float:
    return sum(sample.answer.stage_seconds[stage] for stage in MODEL_STAGES)


def _overhead_seconds(sample: Sample) -> float:
    """Everything but the network and waiting for it, from the client and back to it."""
    queue_seconds = sample.answer.stage_seconds["queue"]
    return sample.latency_seconds - queue_seconds - _model_seconds(sample)


def _mean_bytes(packed: Sequence[bytes]) -> int:
    return math.ceil(np.mean([len(data) for data in packed]))


def _get(replica: Replica, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{replica.http_port}{path}") as answer:
        return json.load(answer)


def _redis_seconds(store: LocalRedis | None) -> float:
    """What the Redis has computed since its start."""
    if store is None:
        return 0.0
    with redis.Redis.from_url(store.url) as client:
        used: Any = client.info("cpu")
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
