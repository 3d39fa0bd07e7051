"""Clips as clients send them, and what must become of them."""

import io
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import zstandard
from numpy.typing import NDArray

from segstream.media.video import VideoReader, VideoWriter
from segstream.models import LMANet
from tests.support.models import make_video, segment_alone

FRAMES_PER_SECOND = Fraction(25)
WAIT_SECONDS = 60.0


def write_clip(
    path: Path, num_frames: int, height: int = 48, width: int = 64, *, seed: int = 0
) -> Path:
    with VideoWriter(path, width, height, FRAMES_PER_SECOND) as video:
        for image in make_video(num_frames, height, width, seed=seed):
            video.write(image)
    return path


def expected_label_maps(model: LMANet, clip: Path) -> NDArray[np.uint8]:
    """(frames, height, width), of a stream that nothing interrupts."""
    with VideoReader(clip) as video:
        return np.stack(segment_alone(model, video))


def label_maps(packed: bytes) -> NDArray[np.uint8]:
    """What ``format=npy_zst`` holds."""
    array = zstandard.ZstdDecompressor().decompressobj().decompress(packed)
    loaded: NDArray[np.uint8] = np.load(io.BytesIO(array))
    return loaded


class ClipApi:
    """The clip routes of one service, in the words of a client that waits."""

    def __init__(self, http_url: str) -> None:
        self.http = httpx.Client(base_url=http_url, timeout=20.0, trust_env=False)

    def submit(self, clip: Path, **parameters: Any) -> str:
        """The clip's own URL."""
        with clip.open("rb") as body:
            answer = self.http.post("/v1/clips", content=body, params=parameters)
        assert answer.status_code == 202, answer.text
        return answer.headers["location"]

    def get(self, url: str) -> dict[str, Any]:
        answer = self.http.get(url)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json()
        return told

    def wait(self, url: str, *, state: str = "done", num_frames: int = 0) -> dict[str, Any]:
        """Until the clip has come so far; it may not end in another way."""
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            clip = self.get(url)
            if clip["state"] == state and clip["num_frames_done"] >= num_frames:
                return clip
            assert clip["ended_at"] is None, clip
            assert time.monotonic() < deadline, clip
            time.sleep(0.05)

    def label_maps(self, url: str, **parameters: Any) -> NDArray[np.uint8]:
        answer = self.http.get(f"{url}/label_maps", params={"format": "npy_zst", **parameters})
        assert answer.status_code == 200, answer.text
        return label_maps(answer.content)

    def metric(self, name: str) -> float:
        """The sum of a metric's samples."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(name))

    def close(self) -> None:
        self.http.close()

    def __enter__(self) -> "ClipApi":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
