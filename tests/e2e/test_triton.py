"""What an operator does: a supervised Triton, services beside it, and mishaps on the way."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from segstream.client import Client, ImageEncoding
from segstream.media.images import Image
from segstream.models import LMANet
from tests.support.models import digests, make_video, segment_alone
from tests.support.process import Finished, command, run_segstream, serving
from tests.support.triton import free_ports, skip_without_triton

START_SECONDS = 60.0


class Supervised:
    """A running ``segstream triton``."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path, address: str) -> None:
        self.process = process
        self.log = log
        self.address = address

    def wait_for_log(self, text: str, count: int = 1) -> None:
        deadline = time.monotonic() + START_SECONDS
        while self.log.read_text().count(text) < count:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)

    def server_pid(self) -> int:
        [pid] = (
            Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        )
        return int(pid)


@pytest.fixture
def triton(checkpoint: Path, tmp_path: Path) -> Iterator[Supervised]:
    skip_without_triton()
    ports = free_ports()
    log = tmp_path / "triton.log"
    flags = (f"--port={ports.grpc}", f"--http-port={ports.http}", f"--metrics-port={ports.metrics}")
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command("triton", "--model", checkpoint, "--num-threads", "1", *flags),
            stdout=sink,
            stderr=subprocess.STDOUT,
        )
    supervised = Supervised(process, log, f"127.0.0.1:{ports.grpc}")
    try:
        supervised.wait_for_log("triton serves")
        yield supervised
    finally:
        process.terminate()
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


def left_regions(pid: int) -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"segstream-*-{pid}-*")]


def segment(address: str, video: list[Image]) -> list[bytes]:
    with (
        Client(address) as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB) as session,
    ):
        return [result.digest for result in session.segment(video, max_in_flight=1)]


def test_a_server_that_is_killed_is_started_anew_and_nothing_is_lost(
    triton: Supervised, checkpoint: Path, model: LMANet, tmp_path: Path
) -> None:
    video = make_video(40)
    options = ("--engine", "triton", "--triton", triton.address, "--model", checkpoint)
    with serving(tmp_path, *options) as service:
        with (
            Client(service.grpc_address) as client,
            client.stream(frame_encoding=ImageEncoding.RAW_RGB) as session,
        ):
            found = []
            for result in session.segment(video, max_in_flight=2):
                found.append(result.digest)
                if len(found) == 10:
                    os.kill(triton.server_pid(), signal.SIGKILL)
        assert found == digests(segment_alone(model, video))
        triton.wait_for_log("triton serves", 2)
        service.process.terminate()
        assert service.end(20) == 0
        assert not left_regions(service.process.pid)
    triton.process.terminate()
    assert triton.process.wait(30) == 0
    assert not left_regions(triton.process.pid)


def test_hangup_loads_a_checkpoint_that_was_replaced(
    triton: Supervised, checkpoint: Path, model: LMANet, tmp_path: Path
) -> None:
    video = make_video(3)
    options = ("--engine", "triton", "--triton", triton.address, "--model", checkpoint)
    with serving(tmp_path, *options) as service:
        before = segment(service.grpc_address, video)
        triton.process.send_signal(signal.SIGHUP)
        triton.wait_for_log("loaded ")
        assert segment(service.grpc_address, video) == before
    assert before == digests(segment_alone(model, video))


def test_a_service_without_its_triton_says_where_to_get_one(tmp_path: Path) -> None:
    finished: Finished = run_segstream(
        *("serve", "--engine", "triton", "--triton", "127.0.0.1:1"),
        *("--triton-start-seconds", "0.5", "--port", "0", "--http-port", "0"),
    )
    assert "no Triton server at 127.0.0.1:1" in finished.error_line
    assert "segstream triton" in finished.error_line


def test_a_repository_that_is_not_there(tmp_path: Path) -> None:
    finished = run_segstream("triton", "--model-repository", tmp_path / "none")
    assert finished.exit_code != 0
    assert "does not exist" in finished.err
