"""Values that lie in blocks, in a real Triton."""

from pathlib import Path

import pytest

from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig, save
from segstream.triton.repository import write_repository
from tests.support.models import digests, make_video, segment_alone
from tests.support.triton import running_triton, service_in_triton, stream

pytestmark = pytest.mark.usefixtures("nothing_is_left")

MODEL = "blocks"


async def test_pages_in_blocks_are_mapped_and_travel(tmp_path: Path) -> None:
    config = LMANetConfig(CAMVID, 12, memory_length=2, window_size=3, fusion="sigmoid-down1")
    model = LMANet(config).eval()
    assert model.page_geometry(48, 64).value_shape == (2, 6, 8, 64)
    save(model, tmp_path / f"{MODEL}.safetensors")
    repository = tmp_path / "repository"
    write_repository(repository, [str(tmp_path / f"{MODEL}.safetensors")])
    video = make_video(4)
    with running_triton(repository) as server:
        for page_passing in ("shared", "tensors"):
            async with service_in_triton(
                server.address, [MODEL], page_passing=page_passing
            ) as service:
                answers = await stream(service, video)
            assert [a.digest for a in answers] == digests(segment_alone(model, video))
