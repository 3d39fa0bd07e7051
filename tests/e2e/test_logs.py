"""The log of ``segstream serve``: lines of a session tell its id and its trace."""

import json
from pathlib import Path
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from segstream.client import Client, ImageEncoding
from tests.support.models import make_video
from tests.support.otlp import otlp_receiver
from tests.support.process import run_segstream, serving

CALLER = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))


def events(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_json_lines_join_session_and_trace(checkpoint: Path, tmp_path: Path) -> None:
    with otlp_receiver() as collector:
        options = ("--model", checkpoint, "--log-format", "json")
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        with serving(tmp_path, *options, **environment) as service:
            with (
                trace.use_span(NonRecordingSpan(CALLER)),
                Client(service.grpc_address) as client,
                client.stream(frame_encoding=ImageEncoding.RAW_RGB, session_id="a") as session,
            ):
                assert len(list(session.segment(make_video(2)))) == 2
            service.process.terminate()
            assert service.end(60) == 0
            lines = events(service.log)
        spans = collector.wait_for(lambda spans: any(s.name.endswith("Segment") for s in spans))
    [call] = (span for span in spans if span.name.endswith("StreamSegment"))
    for event in ("stream began", "stream ended", "session ended"):
        [line] = (line for line in lines if line["event"] == event)
        assert line["session_id"] == "a"
        assert line["trace_id"] == call.trace_id == f"{CALLER.trace_id:032x}"
        assert line["span_id"] == call.span_id
    [serving_line] = (line for line in lines if line["event"] == "serving")
    assert "trace_id" not in serving_line


def test_the_command_line_says_what_runs() -> None:
    finished = run_segstream("--version")
    assert finished.exit_code == 0
    assert finished.out.startswith("segstream 0.")
    assert "revision" in finished.out
