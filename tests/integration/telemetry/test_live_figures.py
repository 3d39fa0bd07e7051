"""What the service tells of itself: temporal consistency, build info."""

import asyncio
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from segstream import __version__
from segstream.client import ImageEncoding
from segstream.clips.figures import ConsistencyMeter
from segstream.media.images import Image
from tests.integration.conftest import StartService
from tests.support.clips import write_clip
from tests.support.models import STREET, make_video, segment_alone
from tests.support.service import TIMEOUT_SECONDS, RunningService

DOCUMENT = Path(__file__).parents[3] / "docs/observability.md"
METRIC = "segstream_temporal_consistency_ratio"


def still_video() -> list[Image]:
    """Half of the picture stands still while the other half moves."""
    video = make_video(6, seed=3)
    for image in video:
        image[:, :32] = video[0][:, :32]
    return video


async def test_consistency_is_that_of_the_label_maps(service: RunningService) -> None:
    video = still_video()
    meter = ConsistencyMeter()
    label_maps = segment_alone(service.models[STREET], video)
    measured = [meter.measure(*pair) for pair in zip(video, label_maps, strict=True)]
    expected = [value for value in measured if value is not None]
    assert len(expected) == 5
    assert 0 < min(expected) < 1
    async with (
        service.client() as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB, session_id="a") as session,
    ):
        async for _ in session.segment(video[:1]):
            status = (await service.http.get("/v1/sessions/a")).json()
            assert status["temporal_consistency"] is None
        async for _ in session.segment(video[1:]):
            pass
        status = (await service.http.get("/v1/sessions/a")).json()
        assert min(expected) <= status["temporal_consistency"] <= max(expected)
    assert await service.metric(f"{METRIC}_count", model=STREET) == 5
    assert await service.metric(f"{METRIC}_sum", model=STREET) == pytest.approx(sum(expected))


async def test_consistency_can_be_switched_off(start_service: StartService) -> None:
    service = await start_service(temporal_consistency="off")
    async with (
        service.client() as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB, session_id="a") as session,
    ):
        async for _ in session.segment(still_video()):
            pass
        status = (await service.http.get("/v1/sessions/a")).json()
        assert status["temporal_consistency"] is None
    assert await service.metric(f"{METRIC}_count") == 0


async def test_a_stream_that_comes_back_is_compared_anew(service: RunningService) -> None:
    video = still_video()
    for resume_from in (0, 3):
        async with (
            service.client() as client,
            client.stream(
                frame_encoding=ImageEncoding.RAW_RGB, session_id="a", resume_from=resume_from
            ) as session,
        ):
            async for _ in session.segment(video[resume_from : resume_from + 3]):
                pass
    assert await service.metric(f"{METRIC}_count") == 4


async def test_build_info_is_a_metric_and_a_document(service: RunningService) -> None:
    info = (await service.http.get("/v1/info")).json()
    assert info["version"] == __version__
    assert re.fullmatch(r"unknown|[0-9a-f]{40}", info["revision"])
    assert info["runtime"] in ("native", "onnx")
    families = text_string_to_metric_families((await service.http.get("/metrics")).text)
    [sample] = (s for family in families for s in family.samples if s.name.endswith("build_info"))
    assert sample.name == "segstream_build_info"
    assert sample.value == 1
    del info["replica"]
    assert sample.labels == info


async def test_every_metric_is_documented(service: RunningService) -> None:
    text = DOCUMENT.read_text()
    exposed = (await service.http.get("/metrics")).text
    names = set(re.findall(r"^# TYPE (segstream_\w+) ", exposed, re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    assert len(names) > 15
    assert sorted(name for name in names if f"`{name}`" not in text) == []


async def test_a_clip_does_not_spoil_the_latency(service: RunningService, tmp_path: Path) -> None:
    body = write_clip(tmp_path / "ride.mp4", 3).read_bytes()
    answer = await service.http.post("/v1/clips", content=body)
    async with asyncio.timeout(3 * TIMEOUT_SECONDS):
        while (await service.http.get(answer.headers["location"])).json()["state"] != "done":
            continue  # the request has let the service go on
    assert await service.metric("segstream_stage_seconds_count", stage="encode") == 3
    assert await service.metric("segstream_stage_seconds_count", stage="total") == 0
