"""``segstream bench service``: what a service carries, and where the time of a frame goes.

The load comes from ``load``; stages are what the service says of each frame. Everything but the
network's own stages is overhead.
"""

import asyncio
import statistics
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import NotRequired, TypedDict

import cv2
import numpy as np

from segstream.bench.load import Load, Measurement, run_load
from segstream.bench.wires import ENCODING_NAMES, Answer, FrameFormat, Wire, connecting
from segstream.errors import EngineError, UnavailableError
from segstream.media.images import Image, encode_image
from segstream.telemetry.metrics import STAGES

MODEL_STAGES = ("encode", "memory_read", "fuse_decode")
NUM_FRAMES = 12
JPEG_QUALITY = 90

_TOTAL = "total"
Progress = Callable[[str], None]


class Percentiles(TypedDict):
    """Milliseconds."""

    p50: float
    p95: float
    p99: float


class Trial(TypedDict):
    """How many sessions fared how, as an objective was sought."""

    streams: int
    latency_ms: Percentiles
    frames_per_second: float
    drops: int


class Objective(TypedDict):
    """The largest number of sessions whose latency stayed below ``p95_ms``; 0: not even one."""

    p95_ms: float
    streams: int
    trials: list[Trial]


class Comparison(TypedDict, total=False):
    """What ``--compare`` adds; ratios are medians of ratios within a round.

    ``label_map_agreement``: the share of a frame's pixels that another one labels as the service.
    """

    engine_only_frames_per_second: float
    throughput_ratio: float
    speedup_vs_litserve: float
    speedup_vs_fastapi: float
    frames_per_second_by_contender: dict[str, float]
    label_map_agreement: dict[str, float]


class ServiceResult(Comparison):
    """What ``run`` found.

    ``total_ms`` and ``stage_ms`` by the service's clock, from a frame's arrival to its answer;
    ``latency_ms`` by the client's, from when the frame was due. ``overhead_ms_median`` of what is
    left of the total without the model's stages. ``drops``: frames of an open loop that were not
    sent. ``memory_bytes_per_session`` on the device; it and the batch size are None over REST,
    which does not tell.
    """

    size: str
    encoding: str
    wire: str
    streams: int
    frames_per_second: float
    total_ms: Percentiles
    stage_ms: dict[str, Percentiles]
    overhead_ms_median: float
    latency_ms: Percentiles
    drops: int
    mean_batch_size: float | None
    frame_bytes_mean: float
    memory_bytes_per_session: float | None
    objective: NotRequired[Objective]


def make_frames(frames: FrameFormat, num_frames: int = NUM_FRAMES) -> list[bytes]:
    """A scene of soft patches with a camera's noise that moves from frame to frame, encoded."""
    return [encode(image, frames) for image in make_video(frames, num_frames)]


def make_video(frames: FrameFormat, num_frames: int) -> list[Image]:
    """The pixels of ``make_frames`` before they are encoded."""
    rng = np.random.default_rng(0)
    size = (frames.width, frames.height)
    coarse = rng.integers(0, 256, (-(-frames.height // 64), -(-frames.width // 64), 3), np.uint8)
    scene = cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    noisy = scene + rng.normal(0, 4, scene.shape)
    image = np.clip(noisy, 0, 255).astype(np.uint8)
    return [np.roll(image, 8 * n, axis=1) for n in range(num_frames)]


def encode(image: Image, frames: FrameFormat) -> bytes:
    """A frame as it travels."""
    return encode_image(image, frames.encoding, quality=JPEG_QUALITY)


async def run(
    address: str,
    wire: Wire,
    frames: FrameFormat,
    load: Load,
    *,
    objective_ms: float | None = None,
    max_streams: int = 64,
    progress: Progress = lambda _: None,
) -> ServiceResult:
    """Put the load on the service at ``address``; ``progress`` hears what is being done.

    With ``objective_ms`` the number of sessions is sought, at most ``max_streams``: the result is
    that of the largest number whose p95 latency was no higher and of which no frame was dropped.
    Raises what a session is refused with, EngineError for a frame that failed.
    """
    encoded = await asyncio.to_thread(make_frames, frames)
    async with connecting(wire, address, frames) as connection:

        async def measure(num_streams: int) -> ServiceResult:
            progress(f"{num_streams} sessions over {wire.value}")
            measurement = await run_load(
                connection, encoded, replace(load, num_streams=num_streams)
            )
            return sum_up(measurement, wire, frames, encoded, num_streams)

        if objective_ms is None:
            return await measure(load.num_streams)
        return await find_largest(measure, objective_ms, max_streams)


async def find_largest(
    measure: Callable[[int], Awaitable[ServiceResult]], objective_ms: float, max_streams: int
) -> ServiceResult:
    """Double the sessions until the objective is missed, then halve the range that is left.

    Where one session misses it already, the result is that session's.
    """
    results: dict[int, ServiceResult] = {}

    async def holds(num_streams: int) -> bool:
        result = results[num_streams] = await measure(num_streams)
        return result["latency_ms"]["p95"] <= objective_ms and not result["drops"]

    good, tried = 0, 1
    while tried <= max_streams and await holds(tried):
        good, tried = tried, 2 * tried
    bad = min(tried, max_streams + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if await holds(middle) else (good, middle)
    objective: Objective = {
        "p95_ms": objective_ms,
        "streams": good,
        "trials": [_trial(results[number]) for number in sorted(results)],
    }
    return {**results[max(good, 1)], "objective": objective}


def sum_up(
    measurement: Measurement,
    wire: Wire,
    frames: FrameFormat,
    encoded: Sequence[bytes],
    num_streams: int,
) -> ServiceResult:
    """The figures of a measurement.

    Raises EngineError for a frame that failed, UnavailableError if none was answered.
    """
    answers = [sample.answer for sample in measurement.samples]
    for answer in answers:
        if answer.error:
            raise EngineError(f"a frame failed: {answer.error}")
    if not answers:
        raise UnavailableError(
            f"no frame was answered in {measurement.seconds:g} seconds: measure for longer"
        )
    seconds = {stage: [a.stage_seconds[stage] for a in answers] for stage in _stages(answers)}
    totals = seconds.pop(_TOTAL)
    model = zip(*(seconds[stage] for stage in MODEL_STAGES), strict=True)
    overheads = [total - sum(parts) for total, parts in zip(totals, model, strict=True)]
    return {
        "size": f"{frames.height}x{frames.width}",
        "encoding": ENCODING_NAMES[frames.encoding],
        "wire": wire.value,
        "streams": num_streams,
        "frames_per_second": len(answers) / measurement.seconds,
        "total_ms": percentiles_ms(totals),
        "stage_ms": {stage: percentiles_ms(values) for stage, values in seconds.items()},
        "overhead_ms_median": 1000 * statistics.median(overheads),
        "latency_ms": percentiles_ms(sample.latency_seconds for sample in measurement.samples),
        "drops": measurement.num_dropped,
        "mean_batch_size": statistics.fmean(answer.batch_size for answer in answers) or None,
        "frame_bytes_mean": statistics.fmean(map(len, encoded)),
        "memory_bytes_per_session": (
            statistics.fmean(measurement.memory_bytes) if measurement.memory_bytes else None
        ),
    }


def _trial(result: ServiceResult) -> Trial:
    return {
        "streams": result["streams"],
        "latency_ms": result["latency_ms"],
        "frames_per_second": result["frames_per_second"],
        "drops": result["drops"],
    }


def _stages(answers: Sequence[Answer]) -> list[str]:
    return [stage for stage in STAGES if stage in answers[0].stage_seconds]


def percentiles_ms(seconds: Iterable[float]) -> Percentiles:
    """Of at least one value; between two neighbours the percentile lies on the line."""
    p50, p95, p99 = np.percentile(list(seconds), (50, 95, 99)).tolist()
    return {"p50": 1000 * p50, "p95": 1000 * p95, "p99": 1000 * p99}
