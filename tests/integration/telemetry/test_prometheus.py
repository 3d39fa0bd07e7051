"""A real Prometheus scrapes a real service: every panel shows data, every rule can be evaluated."""

import asyncio
import json
import re
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from segstream.client import ImageEncoding
from tests.integration.conftest import StartService
from tests.support.clips import write_clip
from tests.support.models import make_video
from tests.support.prometheus import DEPLOY, RULES, Prometheus, scraping
from tests.support.service import TIMEOUT_SECONDS, RunningService

WAIT_SECONDS = 90.0
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "segstream.json"
VIDEO = make_video(4)
for image in VIDEO:
    image[:, :32] = VIDEO[0][:, :32]  # something must stand still to be compared


async def submit_clip(service: RunningService, body: bytes) -> None:
    answer = await service.http.post("/v1/clips", content=body)
    async with asyncio.timeout(3 * TIMEOUT_SECONDS):
        while (await service.http.get(answer.headers["location"])).json()["state"] != "done":
            continue  # the request has let the service go on


async def keep_streaming(service: RunningService) -> None:
    """Sessions whose memory leaves the device between two of their frames, and comes back."""
    async with service.client() as client:
        for num_spills in count():
            async with client.stream(frame_encoding=ImageEncoding.RAW_RGB) as session:
                async for result in session.segment(VIDEO[:2]):
                    assert result.error is None
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    while await num_moves(service, "spill") <= num_spills:
                        continue  # the scrape has let the service go on
                async for result in session.segment(VIDEO[2:]):
                    assert result.error is None


async def num_moves(service: RunningService, kind: str) -> float:
    return await service.metric("segstream_memory_moves_total", kind=kind)


def expressions() -> dict[str, str]:
    """Of every panel, as Grafana would ask."""
    told = {}
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", ()):
            text = target["expr"].replace("$__rate_interval", "1m")
            told[f"{panel['title']} {target['refId']}"] = re.sub(r"\$(instance|model)", ".*", text)
    return told


def empty_panels(prometheus: Prometheus) -> list[str]:
    """Panels without a series, or with none that is a number."""
    return [
        title
        for title, expression in expressions().items()
        if not any(is_figure(series) for series in prometheus.query(expression))
    ]


def is_figure(series: dict[str, Any]) -> bool:
    return series["value"][1] not in ("NaN", "+Inf", "-Inf")


def rules_in_trouble(prometheus: Prometheus) -> list[str]:
    """Rules that failed, or were not evaluated yet."""
    return [rule["name"] for rule in prometheus.rules() if rule["health"] != "ok"]


def wait_for_none(find: Callable[[], list[str]]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while found := find():
        assert time.monotonic() < deadline, found
        time.sleep(0.5)


def check(prometheus: Prometheus) -> None:
    wait_for_none(lambda: empty_panels(prometheus))
    wait_for_none(lambda: rules_in_trouble(prometheus))


async def test_every_panel_shows_data_and_every_rule_can_be_evaluated(
    start_service: StartService, tmp_path: Path
) -> None:
    service = await start_service(spill_after_seconds=0.1)
    target = service.service.addresses["http"].removeprefix("http://")
    with scraping(tmp_path, [target]) as prometheus:
        streaming = asyncio.create_task(keep_streaming(service))
        await submit_clip(service, write_clip(tmp_path / "ride.mp4", 3).read_bytes())
        checking = asyncio.create_task(asyncio.to_thread(check, prometheus))
        await asyncio.wait([streaming, checking], return_when=asyncio.FIRST_COMPLETED)
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
        await checking
        firing = {alert["metric"]["alertname"] for alert in prometheus.query("ALERTS")}
    # An alert may only be under way for what a busy test machine does to a frame's time.
    assert firing <= {
        "SegstreamLatencyBurnsFast",
        "SegstreamLatencyBurnsSlowly",
        "SegstreamQueueLong",
    }
    assert len(expressions()) > 20


async def test_rules_speak_of_metrics_and_labels_that_there_are(
    start_service: StartService,
) -> None:
    service = await start_service()
    exposed = (await service.http.get("/metrics")).text
    there = set(re.findall(r"^# TYPE (\w+) ", exposed, re.MULTILINE))
    named = set(re.findall(r"\bsegstream_\w+", RULES.read_text()))
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} <= there
    for kind, tier in re.findall(r'kind="(\w+)", tier="(\w+)"', RULES.read_text()):
        assert f'segstream_memory_moves_total{{kind="{kind}",tier="{tier}"}} 0.0' in exposed
