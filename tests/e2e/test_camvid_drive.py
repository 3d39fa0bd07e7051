"""The CamVid drive through all three paths: client, command and stream object agree."""

import os
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from segstream.client import Client, ImageEncoding
from segstream.media.images import Image
from segstream.media.video import VideoReader
from segstream.models import LMANet
from tests.e2e.test_segment_command import label_maps_in, report_of
from tests.support.models import segment_alone
from tests.support.process import ServeProcess, run_segstream

NUM_FRAMES = 12
CLIP = "clips/camvid_val_480x360_15fps.mp4"


@pytest.fixture(scope="module")
def drive() -> Path:
    beside_the_project = Path(__file__).resolve().parents[2].parent / "shared"
    path = Path(os.environ.get("SEGSTREAM_SHARED", beside_the_project)) / CLIP
    if not path.is_file():
        pytest.skip(f"{CLIP} is neither under SEGSTREAM_SHARED nor in ../shared")
    return path


@pytest.fixture(scope="module")
def images(drive: Path) -> list[Image]:
    with VideoReader(drive) as video:
        return list(islice(video, NUM_FRAMES))


def test_client_command_and_stream_object_give_the_same_label_maps(
    drive: Path, images: list[Image], server: ServeProcess, model: LMANet, tmp_path: Path
) -> None:
    expected = np.array(segment_alone(model, images))
    assert expected.shape == (NUM_FRAMES, 360, 480)

    with (
        Client(server.grpc_address) as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB, verify_digests=True) as session,
    ):
        from_client = [result.label_map for result in session.segment(images)]
    np.testing.assert_array_equal(from_client, expected)

    labels = tmp_path / "labels"
    finished = run_segstream(
        *("segment", drive, "-o", tmp_path / "out.mp4", "--labels", labels, "--json"),
        *("--server", server.grpc_address, "--frame-encoding", "raw_rgb"),
        *("--max-frames", str(NUM_FRAMES)),
    )
    assert report_of(finished)["num_frames"] == NUM_FRAMES
    np.testing.assert_array_equal(label_maps_in(labels), expected)
