"""Measures a machine profile on a real replica of the service."""

import json
import math
import os
import tempfile
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import redis

from segstream.bench.local_redis import LocalRedis, server_binary
from segstream.bench.replicas import Replica
from segstream.client import Client, FrameResult
from segstream.media.images import Image, ImageEncoding, encode_image
from segstream.media.label_maps import IdSpace, LabelMapEncoding, encode_label_map
from segstream.planning.profile import MachineProfile

_NUM_SESSIONS = (1, 2, 4, 8)
_NUM_WARM_UP = 6
_MAX_BATCH_SIZE = 8
_NUM_IMAGES = 16
_DETAIL = 24  # pixels between the knots of a made-up image; a JPEG of it is as large as a photo's


def measure_profile(
    height: int,
    width: int,
    *,
    model: str = "",
    device: str = "cpu",
    threads: int = 1,
    frames_per_session: int = 40,
    progress: Callable[[str], None] = lambda _: None,
) -> MachineProfile:
    """Start a replica, and a Redis where there is one; stream to it; tell what frames cost.

    ``model``: a checkpoint's name or file; empty for the service's default one. ``threads``: the
    forward's, on CPU.
    """
    images = _images(height, width)
    environment = {
        "SEGSTREAM_NUM_THREADS": str(threads),
        "SEGSTREAM_DEVICE": device,
        "SEGSTREAM_MAX_BATCH_SIZE": str(_MAX_BATCH_SIZE),
    }
    if model:
        environment["SEGSTREAM_MODELS"] = model
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
        before = _redis_seconds(store)
        runs = []
        for num_sessions in _NUM_SESSIONS:
            progress(f"{height}x{width}: {num_sessions} sessions at once")
            runs.append(_stream(replica.address, images, num_sessions, frames_per_session))
        num_frames = sum(map(len, runs))
        redis_seconds = _redis_seconds(store) - before
        facts = _facts(replica, images)
    measured = [result for run in runs for result in run]
    fixed, per_frame, jitter = fit_forward(
        np.array([result.timings.batch_size for result in measured]),
        np.array([_model_seconds(result) for result in measured]),
    )
    return MachineProfile(
        size=f"{height}x{width}",
        device=device,
        threads=threads,
        forward_fixed_ms=1000 * fixed,
        forward_frame_ms=1000 * per_frame,
        forward_jitter=jitter,
        overhead_ms=1000 * float(np.median([_overhead_seconds(result) for result in runs[0]])),
        redis_frame_ms=1000 * redis_seconds / num_frames,
        max_batch_size=_MAX_BATCH_SIZE,
        base_bytes=base_bytes,
        **facts,
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


def _stream(
    address: str, images: list[Image], num_sessions: int, num_frames: int
) -> list[FrameResult]:
    """What sessions got that each keep two frames on the way, without the first ones."""

    def one(number: int) -> list[FrameResult]:
        frames = (images[(number + i) % len(images)] for i in range(num_frames))
        with Client(address) as client, client.stream() as session:
            return list(session.segment(frames, max_in_flight=2))[_NUM_WARM_UP:]

    with ThreadPoolExecutor(num_sessions) as pool:
        return [result for run in pool.map(one, range(num_sessions)) for result in run]


def _facts(replica: Replica, images: list[Image]) -> dict[str, Any]:
    """What does not depend on time: sizes, names and limits, as one session shows them."""
    with Client(replica.address) as client, client.stream() as session:
        results = list(session.segment(images))
        status = _get(replica, f"/v1/sessions/{session.ready.session_id}")
        ready = session.ready
        label_maps = [
            encode_label_map(
                result.label_map, LabelMapEncoding.ZSTD, IdSpace.TRAIN_ID, ready.label_set
            )
            for result in results
        ]
    frames = [encode_image(image, ImageEncoding.JPEG) for image in images]
    return {
        "model": ready.model,
        "memory_length": ready.memory_length,
        "frame_bytes": math.ceil(np.mean([len(frame) for frame in frames])),
        "label_map_bytes": math.ceil(np.mean([len(label_map) for label_map in label_maps])),
        "page_bytes": status["device_bytes"] // len(status["page_age_seconds"]),
    }


def _get(replica: Replica, path: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{replica.http_port}{path}") as answer:
        return json.load(answer)


def _model_seconds(result: FrameResult) -> float:
    timings = result.timings
    return timings.encode_seconds + timings.memory_read_seconds + timings.fuse_decode_seconds


def _overhead_seconds(result: FrameResult) -> float:
    """Everything but the network and waiting for it, from the client and back to it."""
    return result.round_trip_seconds - result.timings.queue_seconds - _model_seconds(result)


def _redis_seconds(store: LocalRedis | None) -> float:
    """What the Redis has computed since its start."""
    if store is None:
        return 0.0
    with redis.Redis.from_url(store.url) as client:
        used = client.info("cpu")
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


def _resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def _images(height: int, width: int) -> list[Image]:
    """A made-up drive: a smooth picture that moves sideways."""
    rng = np.random.default_rng(0)
    knots = rng.integers(0, 256, (height // _DETAIL + 2, width // _DETAIL + 4, 3), dtype=np.uint8)
    scene = cv2.resize(knots, (width + 4 * _NUM_IMAGES, height), interpolation=cv2.INTER_CUBIC)
    return [np.ascontiguousarray(scene[:, 4 * i : 4 * i + width]) for i in range(_NUM_IMAGES)]
