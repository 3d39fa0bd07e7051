from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from segstream.label_sets import CAMVID
from segstream.media.video import VideoWriter
from segstream.models import LMANet, LMANetConfig
from segstream.models.checkpoint import save
from tests.unit.client.fake_service import FakeService, serving_in_thread
from tests.unit.training.conftest import camvid as camvid

NUM_FRAMES = 12
WIDTH, HEIGHT = 64, 48


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Two seconds of vertical bars that change their brightness."""
    path = tmp_path / "clip.mp4"
    bars = np.repeat(np.arange(WIDTH, dtype=np.uint8)[None, :, None], HEIGHT, axis=0)
    with VideoWriter(path, WIDTH, HEIGHT, Fraction(6)) as video:
        for index in range(NUM_FRAMES):
            video.write(np.repeat(bars * 2 + np.uint8(10 * index), 3, axis=2))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """An untrained network for CamVid."""
    torch.manual_seed(0)
    path = tmp_path / "net.safetensors"
    save(LMANet(LMANetConfig(CAMVID, 12, memory_length=2, window_size=3)), path)
    return path


@pytest.fixture
def fake() -> FakeService:
    return FakeService()


@pytest.fixture
def address(fake: FakeService) -> Iterator[str]:
    with serving_in_thread(fake) as served:
        yield served.address
