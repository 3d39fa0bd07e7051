import os
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from segstream.cli import app, serving
from segstream.settings import Settings

OPTIONS: list[tuple[str, str, str, Any]] = [
    ("--host", "0.0.0.0", "host", "0.0.0.0"),
    ("--port", "0", "port", 0),
    ("--device", "cuda:1", "device", "cuda:1"),
    ("--max-batch-size", "3", "max_batch_size", 3),
    ("--max-memory-bytes", "2000000", "max_memory_bytes", 2_000_000),
    ("--idle-seconds", "1.5", "idle_seconds", 1.5),
    ("--drain-seconds", "0", "drain_seconds", 0.0),
    ("--log-level", "warning", "log_level", "warning"),
    ("--ready-file", "ready.json", "ready_file", Path("ready.json")),
    ("--model", "a, b", "models", ["a, b"]),
]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings that services were started with."""
    for name in os.environ:
        if name.upper().startswith("SEGSTREAM_"):
            monkeypatch.delenv(name)
    settings: list[Settings] = []
    monkeypatch.setattr(serving, "run_service", settings.append)
    monkeypatch.setattr(import_module("segstream.cli.serve"), "configure_logging", lambda *_: None)
    return settings


def serve(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "300"}).invoke(app, ["serve", *arguments])


def test_without_options_the_settings_decide(served: list[Settings]) -> None:
    serve()
    assert served == [Settings()]


@pytest.mark.parametrize(("option", "text", "name", "value"), OPTIONS)
def test_an_option_sets_what_it_is_named_after(
    served: list[Settings], option: str, text: str, name: str, value: object
) -> None:
    result = serve(option, text)
    assert result.exit_code == 0, result.output
    assert served == [Settings().model_copy(update={name: value})]


def test_several_models(served: list[Settings]) -> None:
    serve("--model", "a", "--model", "b")
    assert served[0].models == ["a", "b"]


def test_an_option_goes_before_the_environment(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGSTREAM_PORT", "1")
    monkeypatch.setenv("SEGSTREAM_HTTP_PORT", "2")
    serve("--port", "3")
    assert (served[0].port, served[0].http_port) == (3, 2)


@pytest.mark.parametrize("name", Settings.model_fields)
def test_help_tells_what_a_setting_is_for_and_where_it_comes_from(name: str) -> None:
    text = serve("--help").output
    assert str(Settings.model_fields[name].description) in text
    assert f"env: SEGSTREAM_{name.upper()}]" in text


def test_help_tells_defaults() -> None:
    text = serve("--help").output
    assert "Default: host and process. [env: SEGSTREAM_REPLICA_NAME]" in text
    assert "Undefined" not in text
    assert "[default: 50051; env: SEGSTREAM_PORT]" in text
    assert "[default: lmanet-erfnet-camvid; env: SEGSTREAM_MODELS]" in text


def test_settings_that_do_not_go_together_are_one_line(served: list[Settings]) -> None:
    result = serve(
        *("--engine", "triton", "--device", "mps", "--redis-url", "redis://:secret@host")
    )
    assert (result.exit_code, served) == (1, [])
    assert result.stderr.startswith("Error: engine is 'triton', which takes pages on device cpu")
    assert "secret" not in result.stderr


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("MAX_MESSAGE_BYTES", "3000000000", "max_message_bytes is '3000000000'"),
        ("MODELS", "[1", "models is '[1': Expecting"),
        ("MODELS", ",", "models is []"),
    ],
)
def test_a_bad_setting_is_one_line(
    served: list[Settings], monkeypatch: pytest.MonkeyPatch, name: str, value: str, told: str
) -> None:
    monkeypatch.setenv(f"SEGSTREAM_{name}", value)
    result = serve()
    assert (result.exit_code, result.stdout, served) == (1, "", [])
    assert result.stderr.startswith(f"Error: {told}")
    assert result.stderr.count("\n") == 1
