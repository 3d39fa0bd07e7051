import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from segstream.media.video import VideoReader
from segstream.media.video_encoder import VideoEncoder, join_videos

RATE = Fraction(30000, 1001)
IMAGES = [np.full((47, 63, 3), 20 * index, np.uint8) for index in range(12)]


def part(start: int, end: int) -> io.BytesIO:
    target = io.BytesIO()
    encoder = VideoEncoder(target, 63, 47, RATE, is_part=True)
    for image in IMAGES[start:end]:
        encoder.write(image)
    encoder.finish()
    target.seek(0)
    return target


def test_parts_become_one_video_without_gaps(tmp_path: Path) -> None:
    path = tmp_path / "whole.mp4"
    parts = [part(0, 5), part(5, 6), part(6, 12)]
    join_videos(parts, path, RATE)
    with VideoReader(path) as video:
        assert (video.width, video.height, video.frames_per_second) == (64, 48, RATE)
        images = list(video)
    assert len(images) == 12
    for image, original in zip(images, IMAGES, strict=True):
        assert abs(image[:47, :63].astype(int) - original).mean() < 3
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert times == pytest.approx([float(index / RATE) for index in range(12)], abs=1e-3)


def test_the_index_is_in_front_for_browsers(tmp_path: Path) -> None:
    path = tmp_path / "whole.mp4"
    join_videos([part(0, 3)], path, RATE)
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def test_nothing_to_join(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one part"):
        join_videos([], tmp_path / "whole.mp4", RATE)
