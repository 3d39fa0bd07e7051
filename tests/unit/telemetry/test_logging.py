import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from segstream.telemetry.logging import LogFormat, configure_logging

SECRET = "a local variable that is nobody's business"


@pytest.fixture(autouse=True)
def _logging_is_left_as_it_was() -> Iterator[None]:
    root, access = logging.getLogger(), logging.getLogger("uvicorn.access")
    handlers, level, access_level = root.handlers[:], root.level, access.level
    root.handlers = []  # or else they would be closed
    yield
    root.handlers = handlers
    root.setLevel(level)
    access.setLevel(access_level)
    structlog.reset_defaults()


def fail() -> None:
    secret = SECRET
    raise ValueError(f"two\nlines, {len(secret)}")


def configure(log_format: LogFormat = "json", level: str = "info") -> None:
    configure_logging(log_format, level)


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_event_is_one_line_of_json_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    log = structlog.get_logger("segstream.test")
    log.info("session opened", session_id="a", num_frames=3, path=object)
    log.warning("two\nlines", name="grün")
    first, second = json_lines(capsys)
    assert first["event"] == "session opened"
    assert (first["session_id"], first["num_frames"]) == ("a", 3)
    assert (first["level"], first["logger"]) == ("info", "segstream.test")
    assert first["timestamp"].endswith("Z")
    assert (second["event"], second["name"], second["level"]) == ("two\nlines", "grün", "warning")


def test_records_of_the_standard_library_take_the_same_form(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure()
    logging.getLogger("uvicorn.error").error("port %d is taken", 80)
    (line,) = json_lines(capsys)
    assert line["event"] == "port 80 is taken"
    assert (line["level"], line["logger"]) == ("error", "uvicorn.error")
    assert "timestamp" in line


@pytest.mark.parametrize("is_structured", [True, False])
def test_exception_stays_on_the_line_of_its_event(
    capsys: pytest.CaptureFixture[str], is_structured: bool
) -> None:
    configure()
    log = structlog.get_logger("a") if is_structured else logging.getLogger("a")
    try:
        fail()
    except ValueError:
        log.exception("forward failed")
    (line,) = json_lines(capsys)
    assert line["event"] == "forward failed"
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("ValueError: two\nlines, 42")
    assert SECRET not in line["exception"]


def test_bound_context_is_part_of_the_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    with structlog.contextvars.bound_contextvars(session_id="a"):
        structlog.get_logger().bind(model="drive").info("one")
        logging.getLogger("library").info("two")
    one, two = json_lines(capsys)
    assert (one["session_id"], one["model"]) == ("a", "drive")
    assert two["session_id"] == "a"


def test_events_tell_the_span_in_which_they_happened(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    context = SpanContext(0xABC, 0xDEF, is_remote=False)
    with trace.use_span(NonRecordingSpan(context)):
        structlog.get_logger().info("one")
        logging.getLogger("library").info("two")
    structlog.get_logger().info("three")
    one, two, three = json_lines(capsys)
    for line in (one, two):
        assert line["trace_id"] == f"{'0' * 29}abc"
        assert line["span_id"] == f"{'0' * 13}def"
    assert not {"trace_id", "span_id"} & set(three)


@pytest.mark.parametrize(
    ("level", "events"),
    [("debug", ["d", "i", "w", "e"]), ("warning", ["w", "e"]), ("error", ["e"])],
)
def test_events_below_the_level_are_left_out(
    capsys: pytest.CaptureFixture[str], level: str, events: list[str]
) -> None:
    configure(level=level)
    for log in (structlog.get_logger("a"), logging.getLogger("b")):
        log.debug("d")
        log.info("i")
        log.warning("w")
        log.error("e")
    assert [line["event"] for line in json_lines(capsys)] == events * 2


def test_every_http_request_is_not_worth_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    logging.getLogger("uvicorn.access").info("GET /livez")
    assert json_lines(capsys) == []


def test_configuring_again_does_not_double_the_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure()
    configure()
    structlog.get_logger().info("once")
    assert len(json_lines(capsys)) == 1


def test_console_form_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    configure("console")
    structlog.get_logger().info("session opened", session_id="a")
    line = capsys.readouterr().err
    assert "session opened" in line
    assert "session_id=a" in line
    assert "\x1b" not in line, "no colours for a file"


@pytest.mark.parametrize("is_structured", [True, False])
def test_console_shows_tracebacks_without_local_variables(
    capsys: pytest.CaptureFixture[str], is_structured: bool
) -> None:
    configure("console")
    log = structlog.get_logger("a") if is_structured else logging.getLogger("a")
    try:
        fail()
    except ValueError:
        log.exception("forward failed")
    text = capsys.readouterr().err
    assert "Traceback" in text
    assert "ValueError: two\nlines, 42" in text
    assert SECRET not in text
