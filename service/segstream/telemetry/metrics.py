"""Prometheus metrics. Times in seconds, sizes in bytes; a session id is never a label."""

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

STAGES = (
    "queue",
    "image_decode",
    "encode",
    "memory_read",
    "fuse_decode",
    "label_map_encode",
    "total",
)
_WAITING = ("queue", "total")
_STAGE_BUCKETS = (
    *(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.033, 0.05),
    *(0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1.0, 2.0, 5.0, 10.0),
)
# Counted from 0: Prometheus takes no notice of a counter that first appears at 1.
_MISHAPS = (("fail", "redis"), ("fail", "directory"), ("lose", "frames"), ("rebuild", "frames"))
_SHARE_BUCKETS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1.0)


class Metrics:
    """All metrics of one service, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._stage_seconds = Histogram(
            "segstream_stage_seconds",
            "Time a frame spent in a stage.",
            ["model", "stage"],
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self._frames = Counter(
            "segstream_frames_total",
            "Frames answered, by outcome.",
            ["model", "outcome"],
            registry=self.registry,
        )
        self._batch_size = Histogram(
            "segstream_batch_size",
            "Frames that shared a forward.",
            ["model"],
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32),
            registry=self.registry,
        )
        self._consistency = Histogram(
            "segstream_temporal_consistency_ratio",
            "Of the pixels that stood still, the share that kept its class since the last frame.",
            ["model"],
            buckets=_SHARE_BUCKETS,
            registry=self.registry,
        )
        self._sessions_ended = Counter(
            "segstream_sessions_ended_total",
            "Sessions ended, by reason.",
            ["reason"],
            registry=self.registry,
        )

        self._streams_ended = Counter(
            "segstream_streams_ended_total",
            "Streams ended, by reason.",
            ["reason"],
            registry=self.registry,
        )
        self._moves = Counter(
            "segstream_memory_moves_total",
            "Moves of a session's memory and what befell the tiers, by kind and tier.",
            ["kind", "tier"],
            registry=self.registry,
        )
        for kind_and_tier in _MISHAPS:
            self._moves.labels(*kind_and_tier)
        self._moved_bytes = Counter(
            "segstream_memory_moved_bytes_total",
            "Bytes of memory moved.",
            ["kind", "tier"],
            registry=self.registry,
        )
        self._move_seconds = Histogram(
            "segstream_memory_move_seconds",
            "Time that a move of a session's memory took.",
            ["kind", "tier"],
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )

        self._clips_ended = Counter(
            "segstream_clips_ended_total",
            "Clips whose job ended, by outcome.",
            ["outcome"],
            registry=self.registry,
        )

        self._refused = Counter(
            "segstream_refused_total",
            "What was turned away at the door, by wire and reason.",
            ["wire", "reason"],
            registry=self.registry,
        )
        self._quotas_reached = Counter(
            "segstream_quotas_reached_total",
            "Sessions, frames and clips that a key's quota held back or refused.",
            ["quota"],
            registry=self.registry,
        )

    def build_info(self, facts: Mapping[str, str]) -> None:
        """Show what runs here as the labels of ``segstream_build_info``, whose value is 1."""
        Info("segstream_build", "What runs here.", registry=self.registry).info(dict(facts))

    def gauge(self, name: str, help_text: str, value: Callable[[], float]) -> None:
        """Show ``segstream_<name>`` as ``value()`` at the time of each scrape."""
        Gauge(f"segstream_{name}", help_text, registry=self.registry).set_function(value)

    def gauges(
        self, name: str, help_text: str, label: str, values: Mapping[str, Callable[[], float]]
    ) -> None:
        """As ``gauge``, one for each value of a label."""
        family = Gauge(f"segstream_{name}", help_text, [label], registry=self.registry)
        for label_value, value in values.items():
            family.labels(label_value).set_function(value)

    def frame_answered(
        self,
        model: str,
        stage_seconds: Mapping[str, float],
        batch_size: int,
        *,
        is_offline: bool = False,
    ) -> None:
        """One frame got its label map.

        is_offline: nobody waited for it; how long it did then says nothing of the service.
        """
        self._frames.labels(model, "ok").inc()
        self._batch_size.labels(model).observe(batch_size)
        for stage in STAGES:
            if is_offline and stage in _WAITING:
                continue
            self._stage_seconds.labels(model, stage).observe(stage_seconds.get(stage, 0.0))

    def label_maps_compared(self, model: str, consistency: float) -> None:
        """Two neighbouring label maps of a stream were compared."""
        self._consistency.labels(model).observe(consistency)

    def frame_failed(self, model: str, error: Exception) -> None:
        """One frame got an error instead."""
        self._frames.labels(model, type(error).__name__).inc()

    def frame_skipped(self, model: str, reason: str) -> None:
        """One frame got no label map, as was asked for."""
        self._frames.labels(model, reason).inc()

    def memory_moved(self, kind: str, tier: str, seconds: float, num_bytes: int) -> None:
        """A memory was spilled, restored, rebuilt, ... in so many seconds."""
        self._moves.labels(kind, tier).inc()
        self._moved_bytes.labels(kind, tier).inc(num_bytes)
        self._move_seconds.labels(kind, tier).observe(seconds)

    def stream_ended(self, reason: str) -> None:
        """One stream ended; its session may go on."""
        self._streams_ended.labels(reason).inc()

    def session_ended(self, reason: str) -> None:
        """One session ended, or left this replica."""
        self._sessions_ended.labels(reason).inc()

    def clip_ended(self, outcome: str) -> None:
        """The job of one clip ended."""
        self._clips_ended.labels(outcome).inc()

    def refused(self, wire: str, reason: str) -> None:
        """Somebody was not let in."""
        self._refused.labels(wire, reason).inc()

    def quota_reached(self, quota: str) -> None:
        """A key has used up what it may have."""
        self._quotas_reached.labels(quota).inc()
