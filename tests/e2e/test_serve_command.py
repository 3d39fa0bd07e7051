"""``segstream serve`` that cannot start: one line tells why, and the exit code is not 0."""

import socket
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from typer.testing import CliRunner

from segstream.cli import app
from tests.support.process import Finished, run_segstream


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> "ServeHere":
    monkeypatch.setattr(import_module("segstream.cli.serve"), "configure_logging", lambda *_: None)
    return ServeHere()


class ServeHere:
    """Runs ``segstream serve`` in this process, for what goes wrong before it listens."""

    def __call__(self, *options: str | Path, **environment: str) -> Finished:
        result = CliRunner().invoke(app, ["serve", *map(str, options)], env=environment)
        return Finished(result.exit_code, result.stdout, result.stderr)


def test_a_checkpoint_that_is_not_there(serve: ServeHere) -> None:
    finished = serve("--model", "nowhere.safetensors")
    assert "no checkpoint 'nowhere.safetensors'" in finished.error_line


def test_a_checkpoint_that_is_broken(checkpoint: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(checkpoint.read_bytes()[:10_000])
    finished = run_segstream("serve", SEGSTREAM_MODELS=f'["{broken}"]')
    assert f"{broken}: not a safetensors file" in finished.error_line


def test_two_models_of_one_name(serve: ServeHere, checkpoint: Path) -> None:
    finished = serve("--model", checkpoint, "--model", checkpoint)
    assert "two are named 'street'" in finished.error_line


@pytest.mark.parametrize("option", ["--port", "--http-port"])
def test_a_port_in_use(option: str, taken_port: int, checkpoint: Path, tmp_path: Path) -> None:
    ready_file = tmp_path / "ready.json"
    finished = run_segstream(
        *("serve", "--model", checkpoint, "--port", "0", "--http-port", "0"),
        *("--ready-file", ready_file, option, str(taken_port)),
    )
    assert str(taken_port) in finished.error_line
    assert "in use" in finished.error_line
    assert not ready_file.exists()


def test_a_ready_file_that_cannot_be_written(checkpoint: Path, tmp_path: Path) -> None:
    finished = run_segstream(
        *("serve", "--model", checkpoint, "--port", "0", "--http-port", "0"),
        *("--ready-file", tmp_path / "nowhere" / "ready.json"),
    )
    assert "nowhere/ready.json cannot be written: No such file" in finished.error_line
    assert "shutting down" in finished.err


@pytest.mark.parametrize(
    ("options", "environment", "told"),
    [
        (("--port", "70000"), {}, ("port", "70000", "65535")),
        ((), {"SEGSTREAM_MAX_BATCH_SIZE": "many"}, ("max_batch_size", "'many'", "integer")),
        ((), {"SEGSTREAM_MODELS": '["street"'}, ("models", "street")),
        (("--device", "abacus"), {}, ("device", "'abacus'")),
    ],
    ids=["option", "environment", "json", "device"],
)
def test_a_bad_setting(
    serve: ServeHere,
    options: tuple[str, ...],
    environment: dict[str, str],
    told: tuple[str, ...],
) -> None:
    line = serve(*options, **environment).error_line
    for part in told:
        assert part in line
