"""Triton's own account of a frame's time, beside that of the service."""

import asyncio
from collections.abc import Iterable

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from segstream.triton.client import Statistics
from segstream.triton.engine import TritonEngine

_PERIOD_SECONDS = 2.0


async def follow_statistics(engine: TritonEngine, registry: CollectorRegistry) -> None:
    """Show what Triton counted for the engine's models, until cancelled."""
    collector = _StatisticsCollector()
    registry.register(collector)
    try:
        while True:
            collector.found |= await engine.statistics()
            await asyncio.sleep(_PERIOD_SECONDS)
    finally:
        registry.unregister(collector)


class _StatisticsCollector(Collector):
    def __init__(self) -> None:
        self.found: dict[str, Statistics] = {}

    def collect(self) -> Iterable[Metric]:
        seconds = CounterMetricFamily(
            "segstream_triton_seconds",
            "Time of frames in Triton, by part: its queue, copies in, the backend, copies out.",
            labels=["model", "part"],
        )
        frames = CounterMetricFamily(
            "segstream_triton_frames", "Frames that Triton computed.", labels=["model"]
        )
        batches = CounterMetricFamily(
            "segstream_triton_batches", "Batches that it made of them.", labels=["model"]
        )
        for model, statistics in self.found.items():
            frames.add_metric([model], statistics.num_frames)
            batches.add_metric([model], statistics.num_batches)
            for part, value in statistics.seconds:
                seconds.add_metric([model, part], value)
        return seconds, frames, batches
