"""A network of one's own in the service, with values that lie in blocks."""

import asyncio

import pytest

from segstream.client import ImageEncoding
from tests.support.models import digests, make_video, segment_alone
from tests.support.networks import PATCHES, make_patches_lmanet
from tests.support.service import RunningService, running_service


async def stream(service: RunningService, seed: int) -> list[bytes]:
    async with (
        service.client() as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB) as session,
    ):
        video = make_video(4, 120, 200, seed=seed)
        return [result.digest async for result in session.segment(video, max_in_flight=1)]


@pytest.mark.parametrize("has_memory", [True, False])
async def test_memories_are_spilled_and_come_back_bit_for_bit(has_memory: bool) -> None:
    """Room for one session's memory: every frame moves another one's out."""
    model = make_patches_lmanet(has_memory=has_memory)
    async with running_service({PATCHES: model}, max_memory_bytes=2**20) as service:
        found = await asyncio.gather(*(stream(service, seed) for seed in range(3)))
        if has_memory:
            assert await service.metric("segstream_memory_moves_total", kind="restore") > 0
    for seed, answers in enumerate(found):
        alone = segment_alone(model, make_video(4, 120, 200, seed=seed))
        assert answers == digests(alone)
