"""Two versions side by side: what one cannot read of the other's, it makes anew."""

from collections.abc import Mapping

import pytest
from structlog.testing import capture_logs

from segstream.bench.local_redis import LocalRedis
from segstream.memory import frame_log, redis_keys, snapshot
from segstream.models import LMANet
from segstream.v1 import segmentation_pb2 as pb
from tests.support.models import make_video
from tests.support.requests import frame_request
from tests.support.service import RunningService, running_service

VIDEO = make_video(8, 48, 64)
HALF = len(VIDEO) // 2
MEMORY = 3


async def label_maps(
    service: RunningService, first: int, end: int, *, again: int = 0
) -> tuple[int, list[bytes]]:
    """The session's origin, and the digests of frames ``first`` to ``end`` of it.

    ``again``: so many frames before them are sent for the memory alone.
    """
    resume = pb.Resume(next_frame_index=first) if first else None
    call = service.call()
    ready = await call.open(session_id="moving", resume=resume)
    for index in range(max(first - again, ready.next_frame_index), first):
        request = frame_request(index, VIDEO[index])
        request.frame.is_memorise_only = True
        await call.send(request)
        await call.next_result()
    digests = []
    for index in range(first, end):
        await call.send(frame_request(index, VIDEO[index]))
        digests.append((await call.next_result()).label_map.digest)
    call.cancel()
    return ready.origin, digests


@pytest.fixture
async def undisturbed(models: Mapping[str, LMANet]) -> list[bytes]:
    async with running_service(models) as service:
        _, digests = await label_maps(service, 0, len(VIDEO))
    return digests


@pytest.mark.parametrize(
    ("module", "name", "other", "origin"),
    [
        (snapshot, "_MAGIC", b"SSN0", pb.SESSION_ORIGIN_REBUILT),
        (redis_keys, "_PREFIX", "segstream:0", pb.SESSION_ORIGIN_NEW),
    ],
    ids=["snapshot", "keys"],
)
async def test_a_session_goes_on_with_a_service_that_stores_otherwise(
    models: Mapping[str, LMANet],
    redis: LocalRedis,
    undisturbed: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
    module: object,
    name: str,
    other: object,
    origin: int,
) -> None:
    with monkeypatch.context() as old_version:
        old_version.setattr(module, name, other)
        async with running_service(models, redis_url=redis.url) as service:
            _, before = await label_maps(service, 0, HALF)
            await service.stop()
    async with running_service(models, redis_url=redis.url) as service:
        found, after = await label_maps(service, HALF, len(VIDEO), again=MEMORY)
    assert found == origin
    assert before + after == undisturbed


async def test_within_one_version_the_memory_itself_is_handed_over(
    models: Mapping[str, LMANet], redis: LocalRedis, undisturbed: list[bytes]
) -> None:
    async with running_service(models, redis_url=redis.url) as service:
        _, before = await label_maps(service, 0, HALF)
        await service.stop()
    async with running_service(models, redis_url=redis.url) as service:
        found, after = await label_maps(service, HALF, len(VIDEO))
    assert found == pb.SESSION_ORIGIN_RESTORED
    assert before + after == undisturbed


async def test_neither_snapshot_nor_frames_of_another_version_are_taken_for_a_memory(
    models: Mapping[str, LMANet],
    redis: LocalRedis,
    undisturbed: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as old_version:
        old_version.setattr(snapshot, "_MAGIC", b"SSN0")
        old_version.setattr(frame_log, "_MAGIC", b"SFL0")
        async with running_service(models, redis_url=redis.url) as service:
            _, before = await label_maps(service, 0, HALF)
            await service.stop()
    with capture_logs() as logs:
        async with running_service(models, redis_url=redis.url) as service:
            _, after = await label_maps(service, HALF, len(VIDEO), again=MEMORY)
    assert before + after == undisturbed
    assert any("SSN0" in str(line) or "SFL0" in str(line) for line in logs), logs
