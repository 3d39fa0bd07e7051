"""A Triton that dies, hangs or is not there yet costs time, never a frame or a session."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from segstream.client import FrameResult
from segstream.errors import UnavailableError
from segstream.media.images import Image
from segstream.models import LMANet
from segstream.triton.server import TritonServer
from tests.integration.triton.conftest import MODEL
from tests.support.models import digests, make_video, segment_alone
from tests.support.requests import frame_request
from tests.support.triton import (
    REPOSITORY,
    TritonService,
    free_ports,
    running_triton,
    service_in_triton,
    skip_without_triton,
    stream,
)

pytestmark = pytest.mark.usefixtures("nothing_is_left")

VIDEOS = [make_video(30, seed=seed) for seed in range(4)]


@asynccontextmanager
async def streaming(
    service: TritonService, num_answers: int
) -> AsyncIterator["asyncio.Future[list[list[FrameResult]]]"]:
    """Sessions on their way; the block begins when so many frames have been answered."""
    everything = asyncio.gather(*(stream(service, video) for video in VIDEOS))
    async with asyncio.timeout(30):
        while await service.metric("segstream_frames_total") < num_answers or await service.metric(
            "segstream_streams"
        ) < len(VIDEOS):
            continue  # the scrape has let the service go on
    yield everything
    await everything


def check(answers: list[list[FrameResult]], model: LMANet, videos: list[list[Image]]) -> None:
    """Every frame was answered once, with the label map of an undisturbed run."""
    for found, video in zip(answers, videos, strict=True):
        assert [result.frame_index for result in found] == list(range(len(video)))
        assert [result.error for result in found] == [None] * len(video)
        assert [result.digest for result in found] == digests(segment_alone(model, video))


async def health(service: TritonService) -> int:
    return (await service.http.get("/readyz")).status_code


async def wait_for_health(service: TritonService, status: int) -> None:
    async with asyncio.timeout(60):
        while await health(service) != status:
            continue  # the probe has let the service go on


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("harm", [kill, freeze])
async def test_a_stub_that_dies_or_hangs_under_load(
    harm: Callable[[int], None], model: LMANet
) -> None:
    with running_triton(REPOSITORY) as triton:
        async with service_in_triton(
            triton.address, [MODEL], triton_timeout_seconds=3.0 if harm is freeze else 60.0
        ) as service:
            served = service.engine.served(MODEL)
            async with streaming(service, 20) as everything:
                victim = served.description.pid
                harm(victim)
                await wait_for_health(service, 503)
                await wait_for_health(service, 200)
                assert served.description.pid != victim
            answers = await everything
    if harm is kill:
        check(answers, model, VIDEOS)
        return
    # What waited for too long was told so and left the session as it was, which goes on.
    for found, video in zip(answers, VIDEOS, strict=True):
        unanswered = [result for result in found if result.error is not None]
        assert all(isinstance(result.error, UnavailableError) for result in unanswered)
        assert found[-1].error is None
        kept = [video[result.frame_index] for result in found if result.error is None]
        assert [result.digest for result in found if result.error is None] == digests(
            segment_alone(model, kept)
        )


async def test_an_idle_stub_that_dies_is_replaced_before_anybody_asks() -> None:
    with running_triton(REPOSITORY) as triton:
        async with service_in_triton(triton.address, [MODEL]) as service:
            victim = service.engine.served(MODEL).description.pid
            kill(victim)
            await wait_for_health(service, 503)
            await wait_for_health(service, 200)
            assert service.engine.served(MODEL).description.pid != victim


async def test_a_server_that_dies_under_load_and_comes_back(model: LMANet) -> None:
    ports = free_ports()
    with running_triton(REPOSITORY, ports=ports) as first:
        async with service_in_triton(first.address, [MODEL]) as service:
            async with streaming(service, 20) as everything:
                kill(first.process.pid)
                await wait_for_health(service, 503)
                first.stop()
                with running_triton(REPOSITORY, ports=ports):
                    await everything
                    await wait_for_health(service, 200)
            check(await everything, model, VIDEOS)


async def test_a_server_that_stays_away_fails_frames_but_no_session(model: LMANet) -> None:
    ports = free_ports()
    video = make_video(5)
    with running_triton(REPOSITORY, ports=ports) as first:
        async with service_in_triton(first.address, [MODEL], triton_timeout_seconds=0.5) as service:
            call = service.call()
            await call.open()
            await call.send(frame_request(0, video[0]))
            found = [(await call.next_result()).label_map.digest]
            first.stop()
            await call.send(frame_request(1, video[0]))
            lost = await call.next_error()
            assert (lost.code, "does not answer" in lost.message) == (14, True)
            with running_triton(REPOSITORY, ports=ports):
                await wait_for_health(service, 200)
                for index in range(1, 5):
                    await call.send(frame_request(index + 1, video[index]))
                    found.append((await call.next_result()).label_map.digest)
            await call.close()
    assert found == digests(segment_alone(model, video))


async def test_a_server_that_comes_later(model: LMANet) -> None:
    skip_without_triton()
    ports = free_ports()
    video = make_video(2)

    async def start_late() -> TritonServer:
        await asyncio.sleep(1)
        server = TritonServer(REPOSITORY, ports=ports)
        server.start()
        return server

    starting = asyncio.create_task(start_late())
    async with service_in_triton(f"127.0.0.1:{ports.grpc}", [MODEL]) as service:
        found = await stream(service, video)
    check([found], model, [video])
    with await starting:
        pass
