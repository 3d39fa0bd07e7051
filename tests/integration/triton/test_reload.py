"""A checkpoint that is replaced under traffic: no frame fails, sessions go on with new weights."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import torch

from segstream.client import FrameResult, ImageEncoding
from segstream.label_sets import CAMVID
from segstream.media.images import Image
from segstream.models import LMANet, LMANetConfig, load
from segstream.models.checkpoint import save
from segstream.triton.repository import write_repository
from segstream.triton.server import TritonServer
from tests.support.models import digests, make_video, segment_alone
from tests.support.requests import frame_request
from tests.support.triton import running_triton, service_in_triton, stream

MODEL = "net"
MEMORY_LENGTH = 2

pytestmark = pytest.mark.usefixtures("nothing_is_left")


def write_checkpoint(path: Path, seed: int, memory_length: int = MEMORY_LENGTH) -> Path:
    torch.manual_seed(seed)
    config = LMANetConfig(CAMVID, CAMVID.num_classes, memory_length, window_size=3)
    save(LMANet(config), path)
    return path


@pytest.fixture
def checkpoints(tmp_path: Path) -> tuple[Path, Path]:
    return write_checkpoint(tmp_path / "old.safetensors", 1), write_checkpoint(
        tmp_path / "new.safetensors", 2
    )


@pytest.fixture
def triton(checkpoints: tuple[Path, Path], tmp_path: Path) -> Iterator[TritonServer]:
    served = shutil.copy(checkpoints[0], tmp_path / f"{MODEL}.safetensors")
    repository = tmp_path / "repository"
    write_repository(repository, [str(served)])
    with running_triton(repository) as server:
        yield server


async def replace(triton: TritonServer, served: Path, checkpoint: Path) -> None:
    shutil.copy(checkpoint, served)
    await asyncio.to_thread(triton.load, MODEL)


async def test_a_session_goes_on_with_the_new_weights_over_its_last_frames(
    triton: TritonServer, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    old, new = map(load, checkpoints)
    video = make_video(8)
    async with service_in_triton(triton.address, [MODEL]) as service:
        call = service.call()
        await call.open()
        results = []
        for index, image in enumerate(video):
            if index == 4:
                await replace(triton, tmp_path / f"{MODEL}.safetensors", checkpoints[1])
            await call.send(frame_request(index, image))
            results.append(await call.next_result())
        await call.close()
        assert await service.metric("segstream_memory_moves_total", kind="rebuild") == 1
    found = [result.label_map.digest for result in results]
    assert found[:4] == digests(segment_alone(old, video[:4]))
    # As if the new weights had seen the memory's frames themselves.
    assert found[4:] == digests(segment_alone(new, video[4 - MEMORY_LENGTH :]))[MEMORY_LENGTH:]
    assert [result.is_model_changed for result in results] == [False] * 4 + [True] + [False] * 3


async def test_no_frame_fails_while_checkpoints_are_replaced_under_traffic(
    triton: TritonServer, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    """Sessions stream for as long as it takes, and ten frames longer."""
    is_replaced = asyncio.Event()
    loops = [make_video(10, seed=seed) for seed in range(3)]

    async def frames(loop: list[Image]) -> AsyncIterator[Image]:
        index = left = 0
        while left < 10:
            yield loop[index % len(loop)]
            index += 1
            left += is_replaced.is_set()

    async def segment(loop: list[Image]) -> list[FrameResult]:
        async with (
            service.client() as client,
            client.stream(frame_encoding=ImageEncoding.RAW_RGB) as session,
        ):
            return [r async for r in session.segment(frames(loop), max_in_flight=1)]

    async with service_in_triton(triton.address, [MODEL]) as service:
        streaming = asyncio.gather(*map(segment, loops))
        while await service.metric("segstream_frames_total") < 9:
            continue  # the scrape has let the service go on
        await replace(triton, tmp_path / f"{MODEL}.safetensors", checkpoints[1])
        is_replaced.set()
        answers = await streaming
    new = load(checkpoints[1])
    for found, loop in zip(answers, loops, strict=True):
        assert not [result.error for result in found if result.error is not None]
        assert sum(result.is_model_changed for result in found) == 1
        video = [loop[result.frame_index % len(loop)] for result in found]
        last = digests(segment_alone(new, video[-1 - MEMORY_LENGTH :]))[-1]
        assert found[-1].digest == last


async def test_a_model_with_another_memory_asks_for_new_sessions(
    triton: TritonServer, tmp_path: Path
) -> None:
    longer = write_checkpoint(tmp_path / "longer.safetensors", 3, MEMORY_LENGTH + 1)
    video = make_video(3)
    async with service_in_triton(triton.address, [MODEL]) as service:
        call = service.call()
        await call.open()
        await call.send(frame_request(0, video[0]))
        await call.next_result()
        await replace(triton, tmp_path / f"{MODEL}.safetensors", longer)
        await call.send(frame_request(1, video[1]))
        error = await call.next_error()
        assert "begin a new session" in error.message
        await call.close()
        found = await stream(service, video)
    assert [result.digest for result in found] == digests(segment_alone(load(longer), video))


async def test_a_checkpoint_that_is_broken_leaves_the_old_one_at_work(
    triton: TritonServer, checkpoints: tuple[Path, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no checkpoint")
    video = make_video(3)
    async with service_in_triton(triton.address, [MODEL]) as service:
        with pytest.raises(Exception, match="could not load 'net'"):
            await replace(triton, tmp_path / f"{MODEL}.safetensors", broken)
        found = await stream(service, video)
    assert [result.digest for result in found] == digests(
        segment_alone(load(checkpoints[0]), video)
    )
