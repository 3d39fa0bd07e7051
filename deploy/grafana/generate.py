"""Writes dashboards/segstream.json: python deploy/grafana/generate.py

A panel is a line of the table below: title, unit, and its queries with their legends.
"""

import json
from pathlib import Path
from typing import Any

TARGET = Path(__file__).parent / "dashboards" / "segstream.json"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT, NUM_COLUMNS = 8, 8, 24
HERE = 'instance=~"$instance"'
FRAMES = f'{HERE}, model=~"$model"'
RANGE = "[$__rate_interval]"


def quantile(share: float, metric: str, selector: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    buckets = f"rate({metric}_bucket{{{selector}}}{RANGE})"
    return f"histogram_quantile({share}, sum by ({labels}) ({buckets}))"


def total(metric: str, by: str, selector: str = HERE) -> str:
    return f"sum by ({by}) ({metric}{{{selector}}})"


def rate(metric: str, by: str, selector: str = HERE) -> str:
    return f"sum by ({by}) (rate({metric}{{{selector}}}{RANGE}))"


BATCH_SIZE = " / ".join(
    rate(f"segstream_batch_size_{part}", "instance", FRAMES) for part in ("sum", "count")
)
POOL_SHARE = " / ".join(
    total(f"segstream_{part}_bytes", "instance") for part in ("memory", "max_memory")
)
STAGE = "segstream_stage_seconds"
TOTAL = f'{FRAMES}, stage="total"'
LATE = (
    f'1 - sum(rate({STAGE}_bucket{{{TOTAL}, le="0.5"}}{RANGE}))'
    f" / sum(rate({STAGE}_count{{{TOTAL}}}{RANGE}))"
)
ROWS: dict[str, list[tuple[str, str, dict[str, str]]]] = {
    "Frames": [
        (
            "Frames answered",
            "reqps",
            {"{{outcome}}": rate("segstream_frames_total", "outcome", FRAMES)},
        ),
        (
            "Arrival to answer",
            "s",
            {f"p{round(100 * q)}": quantile(q, STAGE, TOTAL) for q in (0.5, 0.95, 0.99)},
        ),
        ("Late: more than half a second", "percentunit", {"late": LATE}),
        ("Stages, p95", "s", {"{{stage}}": quantile(0.95, STAGE, FRAMES, "stage")}),
        (
            "Waiting in the queue, p95",
            "s",
            {"{{instance}}": quantile(0.95, STAGE, f'{FRAMES}, stage="queue"', "instance")},
        ),
        (
            "Frames that share a forward",
            "short",
            {"{{instance}}": BATCH_SIZE},
        ),
    ],
    "Sessions": [
        ("Streams", "short", {"{{instance}}": total("segstream_streams", "instance")}),
        (
            "Sessions, by where their memory is",
            "short",
            {"{{tier}}": total("segstream_sessions", "tier")},
        ),
        (
            "Ends of streams",
            "reqps",
            {"{{reason}}": rate("segstream_streams_ended_total", "reason")},
        ),
        (
            "Temporal consistency, median and worst tenth",
            "percentunit",
            {
                "median {{model}}": quantile(
                    0.5, "segstream_temporal_consistency_ratio", FRAMES, "model"
                ),
                "worst tenth {{model}}": quantile(
                    0.1, "segstream_temporal_consistency_ratio", FRAMES, "model"
                ),
            },
        ),
    ],
    "Memory": [
        (
            "Page pools, of what they may have",
            "percentunit",
            {"{{instance}}": POOL_SHARE},
        ),
        ("Pages in use", "short", {"{{instance}}": total("segstream_pages_used", "instance")}),
        (
            "Moves",
            "reqps",
            {"{{kind}} {{tier}}": rate("segstream_memory_moves_total", "kind, tier")},
        ),
        (
            "Time of a move, p95",
            "s",
            {
                "{{kind}} {{tier}}": quantile(
                    0.95, "segstream_memory_move_seconds", HERE, "kind, tier"
                )
            },
        ),
        (
            "Bytes moved",
            "Bps",
            {"{{kind}} {{tier}}": rate("segstream_memory_moved_bytes_total", "kind, tier")},
        ),
        ("Bytes of sessions", "bytes", {"{{tier}}": total("segstream_session_bytes", "tier")}),
    ],
    "Replicas and clips": [
        ("Replicas that answer", "short", {"{{instance}}": f'up{{job="segstream", {HERE}}}'}),
        (
            "Redis degraded",
            "short",
            {"{{instance}}": total("segstream_redis_degraded", "instance")},
        ),
        (
            "What runs",
            "short",
            {
                "{{instance}} {{version}} {{revision}}": f"segstream_build_info{{{HERE}}}",
            },
        ),
        (
            "Clips worked on",
            "short",
            {"{{instance}}": total("segstream_clips_running", "instance")},
        ),
        ("Clips ended", "short", {"{{outcome}}": total("segstream_clips_ended_total", "outcome")}),
    ],
}


def panel(
    number: int, title: str, unit: str, queries: dict[str, str], x: int, y: int
) -> dict[str, Any]:
    return {
        "id": number,
        "type": "timeseries",
        "title": title,
        "datasource": DATASOURCE,
        "gridPos": {"x": x, "y": y, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + index), "expr": query, "legendFormat": legend}
            for index, (legend, query) in enumerate(queries.items())
        ],
    }


def variable(name: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    y = 0
    for row, lines in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": y, "w": NUM_COLUMNS, "h": 1},
            }
        )
        y += 1
        per_line = NUM_COLUMNS // WIDTH
        for index, (title, unit, queries) in enumerate(lines):
            x, line = WIDTH * (index % per_line), index // per_line
            panels.append(panel(len(panels) + 1, title, unit, queries, x, y + HEIGHT * line))
        y += HEIGHT * -(-len(lines) // per_line)
    return {
        "uid": "segstream",
        "title": "segstream",
        "tags": ["segstream"],
        "schemaVersion": 39,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {
            "list": [
                variable("instance", "segstream_streams"),
                variable("model", "segstream_frames_total"),
            ]
        },
        "panels": panels,
    }


def text() -> str:
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    TARGET.write_text(text())
