"""A real receiver of OTLP over HTTP: it parses what it is sent, protobuf or JSON."""

import base64
import gzip
import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class ReceivedSpan:
    """A span as it came in; ids in hexadecimal, times in nanoseconds."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: Mapping[str, Any]
    resource: Mapping[str, Any]
    is_error: bool


@dataclass
class OtlpReceiver:
    """What came in so far. While ``gate`` is shut requests get no answer."""

    url: str = ""
    spans: list[ReceivedSpan] = field(default_factory=list)
    num_requests: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def wait_for(self, is_there: Callable[[list[ReceivedSpan]], object]) -> list[ReceivedSpan]:
        """The spans, as soon as they suffice."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not is_there(list(self.spans)):
            assert time.monotonic() < deadline, sorted({span.name for span in self.spans})
            time.sleep(0.02)
        return list(self.spans)

    def named(self, name: str) -> list[ReceivedSpan]:
        return [span for span in list(self.spans) if span.name == name]

    def take(self, body: bytes, content_type: str) -> None:
        if "json" in content_type:
            request = json.loads(body)
        else:
            request = MessageToDict(ExportTraceServiceRequest.FromString(body))
            for span in _spans(request):
                span["isBase64"] = True
        for part in request["resourceSpans"]:
            resource = _attributes(part["resource"])
            for scope in part["scopeSpans"]:
                self.spans += [_received(span, resource) for span in scope["spans"]]


@contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    receiver = OtlpReceiver()
    receiver.gate.set()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.num_requests += 1
            receiver.gate.wait(WAIT_SECONDS)
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            receiver.take(body, self.headers["content-type"])
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    receiver.url = f"http://127.0.0.1:{server.server_address[1]}"
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        yield receiver
    finally:
        receiver.gate.set()
        server.shutdown()
        serving.join()
        server.server_close()


def _spans(request: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for part in request["resourceSpans"]:
        for scope in part["scopeSpans"]:
            yield from scope["spans"]


def _received(span: dict[str, Any], resource: Mapping[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        span["name"],
        _hex(span, "traceId"),
        _hex(span, "spanId"),
        _hex(span, "parentSpanId"),
        int(span["startTimeUnixNano"]),
        int(span["endTimeUnixNano"]),
        _attributes(span),
        resource,
        span.get("status", {}).get("code") in (2, "STATUS_CODE_ERROR"),
    )


def _hex(span: dict[str, Any], name: str) -> str:
    """JSON of OTLP has ids in hexadecimal, protobuf's own JSON in base64."""
    text = span.get(name, "")
    return base64.b64decode(text).hex() if span.get("isBase64") else text


def _attributes(thing: dict[str, Any]) -> dict[str, Any]:
    return {
        item["key"]: next(iter(item["value"].values()), None)
        for item in thing.get("attributes", [])
    }
