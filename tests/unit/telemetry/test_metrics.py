from collections.abc import Iterator

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from segstream.errors import EngineError
from segstream.telemetry.metrics import STAGES, Metrics


def exposed(metrics: Metrics) -> Iterator[tuple[str, dict[str, str], float]]:
    text = generate_latest(metrics.registry).decode()
    for family in text_string_to_metric_families(text):
        assert family.documentation.endswith(".")
        for sample in family.samples:
            if not sample.name.endswith("_created"):
                yield sample.name, sample.labels, sample.value


def values(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """Samples of one name by the values of their labels."""
    return {
        tuple(labels.values()): value for found, labels, value in exposed(metrics) if found == name
    }


def used_metrics() -> Metrics:
    metrics = Metrics()
    metrics.frame_answered("drive", {"queue": 0.5, "total": 1.5}, batch_size=3)
    metrics.frame_answered("drive", {"queue": 0.25}, batch_size=1)
    metrics.frame_failed("drive", EngineError("lost"))
    metrics.session_ended("idle")
    return metrics


def test_names_carry_the_package_and_the_unit() -> None:
    metrics = used_metrics()
    metrics.gauge("memory_bytes", "Bytes of all page pools.", lambda: 7)
    names = {name for name, _, _ in exposed(metrics)}
    assert names == {
        "segstream_stage_seconds_bucket",
        "segstream_stage_seconds_count",
        "segstream_stage_seconds_sum",
        "segstream_frames_total",
        "segstream_batch_size_bucket",
        "segstream_batch_size_count",
        "segstream_batch_size_sum",
        "segstream_sessions_ended_total",
        "segstream_memory_bytes",
        "segstream_memory_moves_total",
    }


def test_every_stage_counts_every_answered_frame() -> None:
    metrics = used_metrics()
    counts = values(metrics, "segstream_stage_seconds_count")
    assert counts == {("drive", stage): 2.0 for stage in STAGES}
    seconds = values(metrics, "segstream_stage_seconds_sum")
    assert seconds["drive", "queue"] == 0.75
    assert seconds["drive", "total"] == 1.5
    assert seconds["drive", "memory_read"] == 0.0


def test_stages_of_a_millisecond_and_of_seconds_are_told_apart() -> None:
    metrics = Metrics()
    for seconds in (0.001, 0.004, 0.02, 0.09, 0.4, 1.8):
        metrics.frame_answered("drive", {"total": seconds}, batch_size=1)
    buckets = [
        value
        for name, labels, value in exposed(metrics)
        if name == "segstream_stage_seconds_bucket" and labels["stage"] == "total"
    ]
    assert set(buckets) >= {0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0}


def test_frames_are_told_apart_by_outcome() -> None:
    assert values(used_metrics(), "segstream_frames_total") == {
        ("drive", "ok"): 2.0,
        ("drive", "EngineError"): 1.0,
    }


def test_frames_that_shared_a_forward_are_counted() -> None:
    metrics = used_metrics()
    assert values(metrics, "segstream_batch_size_sum") == {("drive",): 4.0}
    assert values(metrics, "segstream_batch_size_count") == {("drive",): 2.0}


def test_ends_of_sessions_are_told_apart_by_reason() -> None:
    assert values(used_metrics(), "segstream_sessions_ended_total") == {("idle",): 1.0}


def test_no_metric_knows_sessions_or_frames_by_name() -> None:
    labels = {name for _, labels, _ in exposed(used_metrics()) for name in labels}
    assert labels == {"model", "stage", "outcome", "reason", "le", "kind", "tier"}


def test_mishaps_are_counted_from_nought() -> None:
    counts = values(Metrics(), "segstream_memory_moves_total")
    assert counts["lose", "frames"] == counts["fail", "directory"] == 0


def test_gauge_is_read_at_each_scrape() -> None:
    metrics = Metrics()
    numbers = iter([3.0, 5.0])
    metrics.gauge("sessions", "Sessions open now.", lambda: next(numbers))
    assert values(metrics, "segstream_sessions") == {(): 3.0}
    assert values(metrics, "segstream_sessions") == {(): 5.0}


def test_services_in_one_process_count_for_themselves() -> None:
    used_metrics()
    assert values(Metrics(), "segstream_frames_total") == {}


def test_how_long_the_frames_of_a_clip_waited_is_not_told() -> None:
    metrics = Metrics()
    metrics.frame_answered("drive", {"total": 9.0, "encode": 0.5}, batch_size=1, is_offline=True)
    counts = values(metrics, "segstream_stage_seconds_count")
    assert {stage for _, stage in counts} == set(STAGES) - {"queue", "total"}
    assert values(metrics, "segstream_frames_total") == {("drive", "ok"): 1.0}
