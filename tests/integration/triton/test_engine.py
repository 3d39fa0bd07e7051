"""Frames computed in a real Triton: the same bits as in process, from pages in place."""

import asyncio
from pathlib import Path

import httpx
import numpy as np
import pytest

from segstream.errors import NotFoundError, UnavailableError
from segstream.media.images import Image
from segstream.media.video import VideoReader
from segstream.memory.page_storage import DeviceStorage
from segstream.memory.shared_storage import SharedStorage
from segstream.models import LMANet
from segstream.triton.engine import TritonEngine
from segstream.triton.server import TritonServer
from segstream.triton.statistics import follow_statistics
from tests.integration.triton.conftest import MODEL
from tests.support.models import as_frames, digests, make_video, segment_alone
from tests.support.triton import service_in_triton, stream

DRIVE = Path(__file__).parents[3] / "../shared/clips/camvid_val_480x360_15fps.mp4"

pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.mark.parametrize(
    ("page_passing", "storage"), [("auto", SharedStorage), ("tensors", DeviceStorage)]
)
async def test_eight_interleaved_sessions_are_those_of_the_engine_in_process(
    triton: TritonServer, model: LMANet, page_passing: str, storage: type
) -> None:
    videos = [make_video(7, seed=seed) for seed in range(8)]
    async with service_in_triton(triton.address, [MODEL], page_passing=page_passing) as service:
        assert isinstance(service.engine.page_storage, storage)
        answers = await asyncio.gather(*(stream(service, video) for video in videos))
    for found, video in zip(answers, videos, strict=True):
        assert [result.digest for result in found] == digests(segment_alone(model, video))
        assert [result.num_memory_frames for result in found] == [0, 1, 2, 3, 3, 3, 3]


@pytest.mark.parametrize("page_passing", ["shared", "tensors"])
async def test_confidence_is_that_of_the_engine_in_process(
    triton: TritonServer, model: LMANet, page_passing: str
) -> None:
    video = make_video(3)
    async with service_in_triton(triton.address, [MODEL], page_passing=page_passing) as service:
        found = await stream(service, video, wants_confidence=True)
        plain = await stream(service, video)
    logits = model.stream()
    for result, without, image in zip(found, plain, video, strict=True):
        classes = logits.step(as_frames(image))[0, : model.config.label_set.num_classes]
        softmax = classes.softmax(dim=0).amax(dim=0).numpy()
        assert np.abs(result.confidence - 255 * softmax).max() < 0.6
        assert result.digest == without.digest


async def test_frames_of_several_sessions_and_services_share_a_batch(
    triton: TritonServer,
) -> None:
    videos = [make_video(6, 120, 160, seed=seed) for seed in range(4)]
    async with (
        service_in_triton(triton.address, [MODEL]) as one,
        service_in_triton(triton.address, [MODEL]) as other,
    ):
        before = (await one.engine.statistics())[MODEL]
        answers = await asyncio.gather(
            *(stream(service, video) for service in (one, other) for video in videos)
        )
        after = (await one.engine.statistics())[MODEL]
    assert max(result.timings.batch_size for found in answers for result in found) > 1
    num_frames = after.num_frames - before.num_frames
    assert num_frames >= 8 * 6
    assert after.num_batches - before.num_batches < num_frames


async def test_a_real_video_in_eight_sessions(triton: TritonServer, model: LMANet) -> None:
    if not DRIVE.exists():
        pytest.skip(f"no {DRIVE.name}: the data is not on this machine")
    with VideoReader(DRIVE) as reader:
        frames: list[Image] = [frame for frame, _ in zip(reader, range(20), strict=False)]
    videos = [[frame[::4, ::4].copy() for frame in frames[n : n + 12]] for n in range(8)]
    async with service_in_triton(triton.address, [MODEL]) as service:
        answers = await asyncio.gather(*(stream(service, video) for video in videos))
    for found, video in zip(answers, videos, strict=True):
        assert [result.digest for result in found] == digests(segment_alone(model, video))


async def test_memories_are_spilled_and_rebuilt_as_in_process(
    triton: TritonServer, model: LMANet
) -> None:
    """Room for one session's memory: every frame moves another one's out."""
    videos = [make_video(4, 192, 272, seed=seed) for seed in range(3)]
    async with service_in_triton(triton.address, [MODEL], max_memory_bytes=2**20) as service:
        answers = await asyncio.gather(*(stream(service, video) for video in videos))
        assert await service.metric("segstream_memory_moves_total", kind="restore") > 0
    for found, video in zip(answers, videos, strict=True):
        assert [result.digest for result in found] == digests(segment_alone(model, video))


async def test_single_images_and_models_over_http(triton: TritonServer, model: LMANet) -> None:
    async with service_in_triton(triton.address, [MODEL]) as service:
        [listed] = (await service.http.get("/v1/models")).json()["models"]
        assert (listed["name"], listed["memory_length"]) == (MODEL, model.config.memory_length)
        assert (await service.http.get("/readyz")).status_code == 200


async def test_what_triton_counted_is_among_the_metrics(triton: TritonServer) -> None:
    async with service_in_triton(triton.address, [MODEL]) as service:
        following = asyncio.create_task(
            follow_statistics(service.engine, service.service.metrics.registry)
        )
        await stream(service, make_video(2))
        async with asyncio.timeout(20):
            while not await service.metric("segstream_triton_frames_total", model=MODEL):
                continue  # the scrape has let the service go on
        assert await service.metric("segstream_triton_seconds_total", part="compute_infer") > 0
        following.cancel()


async def test_a_backend_tells_its_own_metrics_on_tritons_endpoint(triton: TritonServer) -> None:
    async with service_in_triton(triton.address, [MODEL]) as service:
        await stream(service, make_video(2))
    async with httpx.AsyncClient(trust_env=False) as http:
        text = (await http.get(f"http://{triton.host}:{triton.ports.metrics}/metrics")).text
    assert f'lmanet_frames_total{{model="{MODEL}"}}' in text
    assert "lmanet_encode_seconds_total" in text


async def test_a_model_that_is_not_in_the_repository(triton: TritonServer) -> None:
    engine = TritonEngine(triton.address, ["unheard-of"])
    with pytest.raises(NotFoundError, match=rf"\['unheard-of'\] are not in .* \['{MODEL}'\]"):
        await engine.start(10)
    await engine.stop()


async def test_nobody_at_the_address() -> None:
    engine = TritonEngine("127.0.0.1:1", [MODEL])
    with pytest.raises(
        UnavailableError, match=r"no Triton server at 127.0.0.1:1.*segstream triton"
    ):
        await engine.start(0.5)
    await engine.stop()
