import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path

import grpc
import pytest
import typer
from typer.testing import CliRunner

from segstream.cli.clip_segmentation import ROUND_TRIP, STAGES
from segstream.cli.local_server import LocalServer
from segstream.cli.segment import segment
from segstream.v1 import segmentation_pb2 as pb
from tests.unit.cli.conftest import NUM_FRAMES
from tests.unit.client.fake_service import FakeService

# As an attribute of the package, that name is the command.
module = import_module("segstream.cli.segment")

app = typer.Typer()
app.command()(segment)


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_table_names_outputs_classes_and_stages(
    clip: Path, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(
        clip, "-o", "o.mp4", "--labels", "maps", "--contact-sheet", "s.png", "--server", address
    )
    assert code == 0
    for text in ("o.mp4", "maps", "s.png", "sky", "%", "p99", *STAGES, ROUND_TRIP):
        assert text in out
    assert (tmp_path / "o.mp4").exists()


def test_json_is_all_there_is_on_stdout(clip: Path, address: str, tmp_path: Path) -> None:
    output = tmp_path / "o.mp4"
    code, out, err = run(clip, "-o", output, "--server", address, "--json")
    report = json.loads(out)
    assert code == 0
    assert report["num_frames"] == NUM_FRAMES
    assert report["output"] == str(output)
    assert report["labels"] is None
    assert set(report["stages"]["total"]) == {"p50_seconds", "p95_seconds", "p99_seconds"}
    assert report["classes"][0]["share"] > 0
    assert "Segmenting" in err


def test_to_a_server_frames_go_as_jpeg(
    clip: Path, address: str, tmp_path: Path, fake: FakeService
) -> None:
    run(clip, "-o", tmp_path / "o.mp4", "--server", address, "--max-frames", "2")
    assert [frame.encoding for frame in fake.frames] == 2 * [pb.IMAGE_ENCODING_JPEG]


def test_without_a_server_one_is_started_and_gets_exact_pixels(
    clip: Path,
    address: str,
    tmp_path: Path,
    fake: FakeService,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running: list[str] = []

    @contextmanager
    def local_server() -> Iterator[LocalServer]:
        running.append(address)
        yield LocalServer(address, "", 0)
        running.pop()

    monkeypatch.setattr(module, "local_server", local_server)
    code, _, _ = run(clip, "-o", tmp_path / "o.mp4")
    assert code == 0
    assert not running
    assert {frame.encoding for frame in fake.frames} == {pb.IMAGE_ENCODING_RAW_RGB}


def test_nobody_is_waited_for_when_the_service_started_here_is_gone(
    clip: Path, address: str, tmp_path: Path, fake: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "local_server", lambda: nullcontext(LocalServer(address, "", 0)))
    fake.fail_at = {2: (grpc.StatusCode.UNAVAILABLE, "killed")}
    code, _, err = run(clip, "-o", tmp_path / "o.mp4")
    assert code == 1
    assert "killed" in err.splitlines()[-1]
    assert len(fake.configs) == 1


def test_a_server_that_comes_back_goes_on_with_the_clip(
    clip: Path, address: str, tmp_path: Path, fake: FakeService
) -> None:
    fake.fail_at, fake.fails_once = {2: (grpc.StatusCode.UNAVAILABLE, "restarting")}, True
    code, _, _ = run(clip, "-o", tmp_path / "o.mp4", "--server", address)
    assert code == 0
    assert len(fake.configs) == 2


def test_an_error_is_one_line_and_an_exit_code(
    clip: Path, address: str, tmp_path: Path, fake: FakeService
) -> None:
    fake.refuse_session = (grpc.StatusCode.NOT_FOUND, "model is 'x';\nthere is none")
    code, out, err = run(clip, "-o", tmp_path / "o.mp4", "--server", address, "--model", "x")
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "Error: model is 'x'; there is none"
    assert not (tmp_path / "o.mp4").exists()


def test_a_bad_clip_is_told_before_a_service_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(module, "local_server")
    code, out, err = run(tmp_path / "none.mp4", "-o", tmp_path / "o.mp4")
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert "none.mp4 is not a file" in err


def test_a_file_in_the_place_of_the_label_folder(clip: Path, address: str, tmp_path: Path) -> None:
    (tmp_path / "maps").touch()
    code, _, err = run(
        clip, "-o", tmp_path / "o.mp4", "--labels", tmp_path / "maps", "--server", address
    )
    assert code == 1
    assert "Error: " in err
    assert "maps" in err
    assert not (tmp_path / "o.mp4").exists()


def test_nobody_at_the_server(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONNECT_TIMEOUT_SECONDS", 0.2)
    code, _, err = run(clip, "-o", tmp_path / "o.mp4", "--server", "127.0.0.1:1")
    assert code == 1
    assert err.splitlines()[-1] == "Error: no segstream service at 127.0.0.1:1"
