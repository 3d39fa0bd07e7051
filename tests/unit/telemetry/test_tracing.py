import subprocess
import sys

import pytest

from segstream.errors import InvalidInputError
from segstream.telemetry.tracing import no_tracing, start_tracing

PROGRAM = """
import sys
import segstream.client, segstream.engine, segstream.streaming.frame_trace
from segstream.telemetry.tracing import no_tracing
with no_tracing().span("frame") as span:
    assert not span.is_recording()
print(*(name for name in sys.modules if name.startswith("opentelemetry.sdk")))
"""


def test_without_tracing_the_sdk_is_not_imported() -> None:
    program = [sys.executable, "-c", PROGRAM]
    result = subprocess.run(program, capture_output=True, text=True, timeout=240, check=True)
    assert result.stdout.split() == []


def test_closing_what_is_off_does_nothing() -> None:
    no_tracing().close()


def test_an_endpoint_without_the_sdk_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(InvalidInputError, match=r"segstream\[otel\]") as error:
        start_tracing(
            "http://c/v1/traces",
            ratio=1,
            max_frames_per_second=1,
            service_name="a",
            version="1",
            instance="b",
        )
    assert error.value.field == "otlp_endpoint"
