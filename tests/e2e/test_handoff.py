"""What clients notice when replicas drain, die or freeze, and when Redis is lost: nothing."""

import json
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

from segstream.media.video import VideoWriter
from tests.support.models import make_video

BENCHMARK = Path(__file__).parents[2] / "benchmarks/handoff.py"
DRILLS = ["drain", "kill", "freeze", "redis_restart", "redis_wipe"]
NUM_SESSIONS, NUM_FRAMES = 8, 24


@pytest.fixture(scope="module")
def drills(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, float]]:
    folder = tmp_path_factory.mktemp("handoff")
    with VideoWriter(folder / "ride.mp4", 128, 96, Fraction(15)) as video:
        for image in make_video(60, 96, 128):
            video.write(image)
    command = [sys.executable, str(BENCHMARK), "--json", "--clip", str(folder / "ride.mp4")]
    size = ["--sessions", str(NUM_SESSIONS), "--frames", str(NUM_FRAMES)]
    finished = subprocess.run(
        [*command, *size], capture_output=True, text=True, timeout=240, check=False
    )
    assert finished.returncode in (0, 1), finished.stderr
    return {drill["name"]: drill for drill in json.loads(finished.stdout)["drills"]}


@pytest.mark.parametrize("name", DRILLS)
def test_nothing_is_lost_and_nothing_differs(
    drills: dict[str, dict[str, float]], name: str
) -> None:
    drill = drills[name]
    assert drill["frames_sent"] == drill["frames_answered"] == NUM_SESSIONS * NUM_FRAMES
    for count in ("frames_lost", "frames_twice", "label_maps_differing", "sessions_lost"):
        assert drill[count] == 0, drill
    if not name.startswith("redis"):
        assert drill["sessions_resumed"] > 0, "the drill disturbed nobody"
