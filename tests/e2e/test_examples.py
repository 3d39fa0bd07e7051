"""The programs in examples/ run as they stand there."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

from segstream.media.images import Image, ImageEncoding, decode_image, encode_image
from segstream.models import LMANet
from tests.support.models import segment_alone
from tests.support.process import ServeProcess

EXAMPLE = Path(__file__).parents[2] / "examples" / "opencv_stream.py"
MAX_LINES = 20


def as_sent(bgr: Image) -> Image:
    """RGB as it comes out of the JPEG that the client makes of it."""
    rgb = np.ascontiguousarray(bgr[:, :, ::-1])
    return decode_image(encode_image(rgb, ImageEncoding.JPEG), ImageEncoding.JPEG)


def test_opencv_s_frames_are_streamed(server: ServeProcess, clip: Path, model: LMANet) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= MAX_LINES
    ran = subprocess.run(
        [sys.executable, EXAMPLE, clip, server.grpc_address],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    capture, images = cv2.VideoCapture(str(clip)), []
    while (read := capture.read())[0]:
        images.append(as_sent(np.asarray(read[1], np.uint8)))
    assert images
    counts = [np.bincount(each.ravel()) for each in segment_alone(model, images)]
    assert ran.stdout == "".join(f"{index} {each}\n" for index, each in enumerate(counts))
