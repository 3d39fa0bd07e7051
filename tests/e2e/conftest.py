from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest

from segstream.media.images import Image
from segstream.media.video import VideoReader, VideoWriter
from segstream.models import LMANet, load
from tests.support.models import make_video, write_street_checkpoint
from tests.support.process import ServeProcess, serving

NUM_FRAMES = 8
WIDTH, HEIGHT = 96, 64
FRAMES_PER_SECOND = Fraction(6)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_street_checkpoint(tmp_path_factory.mktemp("street"))


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> LMANet:
    return load(checkpoint)


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "ride.mp4"
    with VideoWriter(path, WIDTH, HEIGHT, FRAMES_PER_SECOND) as video:
        for image in make_video(NUM_FRAMES, HEIGHT, WIDTH):
            video.write(image)
    return path


@pytest.fixture(scope="session")
def clip_images(clip: Path) -> list[Image]:
    """The frames as a decoder sees them: H.264 has changed the pixels."""
    with VideoReader(clip) as video:
        return list(video)


@pytest.fixture(scope="session")
def server(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServeProcess]:
    with serving(tmp_path_factory.mktemp("server"), "--model", checkpoint) as served:
        yield served
