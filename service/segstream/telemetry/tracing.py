"""Traces: OpenTelemetry spans, sent in batches by OTLP over HTTP.

Off unless there is an endpoint; then spans are the API's own that do nothing, and the SDK is not
imported.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NoOpTracerProvider,
    Span,
    SpanKind,
    Tracer,
    TracerProvider,
)

from segstream.errors import InvalidInputError

_FLUSH_SECONDS = 2.0
_SCOPE = "segstream"
_QUERY = "url.query"


@dataclass(frozen=True, slots=True)
class Tracing:
    """Starts spans. Of each stream at most ``max_frames_per_second`` are traced."""

    provider: TracerProvider
    tracer: Tracer
    is_on: bool = True
    max_frames_per_second: float = 1.0
    close: Callable[[], None] = lambda: None
    """Sends what is left, if it can be had in a moment. Blocks."""

    @contextmanager
    def span(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> Iterator[Span]:
        """A child of the current span for the time of the block, if that one is recorded."""
        if not trace.get_current_span().is_recording():
            yield INVALID_SPAN
            return
        with self.tracer.start_as_current_span(name, kind=kind) as span:
            yield span


def no_tracing() -> Tracing:
    """Nothing is traced."""
    provider = NoOpTracerProvider()
    return Tracing(provider, provider.get_tracer(_SCOPE), is_on=False)


def start_tracing(
    endpoint: str,
    *,
    ratio: float,
    max_frames_per_second: float,
    service_name: str,
    version: str,
    instance: str,
) -> Tracing:
    """Spans go to ``endpoint``, the full URL, from a thread of their own; when the collector does
    not keep up they are dropped.

    ``ratio`` of the traces that begin here are recorded; for those that began elsewhere the caller
    has decided. Raises InvalidInputError where the SDK is not installed.
    """
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk import trace as sdk
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ImportError as error:
        raise InvalidInputError(
            f"otlp_endpoint is {endpoint!r}, but nothing can send traces: "
            f"pip install 'segstream[otel]' ({error})",
            field="otlp_endpoint",
        ) from error
    attributes = {
        "service.name": service_name,
        "service.version": version,
        "service.instance.id": instance,
    }
    provider = sdk.TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(ratio)),
        resource=Resource.create(attributes),
        shutdown_on_exit=False,
    )

    class WithoutQueries(sdk.SpanProcessor):
        """What stands in a URL behind the path may be secret."""

        def on_start(self, span: sdk.Span, parent_context: Context | None = None) -> None:
            if _QUERY in (span.attributes or {}):
                span.set_attribute(_QUERY, "REDACTED")

    exporter = OTLPSpanExporter(endpoint)
    provider.add_span_processor(WithoutQueries())
    provider.add_span_processor(BatchSpanProcessor(exporter))

    def close() -> None:
        # On its own the shutdown waits half a minute for a collector that does not answer.
        flushing = threading.Thread(target=provider.shutdown, name="trace-flush", daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)
        if flushing.is_alive():
            exporter.shutdown()  # type: ignore[no-untyped-call]

    tracer = provider.get_tracer(_SCOPE, version)
    return Tracing(provider, tracer, max_frames_per_second=max_frames_per_second, close=close)
