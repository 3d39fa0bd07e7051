"""The W3C trace context as it crosses processes: ``traceparent`` and ``tracestate``."""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_PROPAGATOR = TraceContextTextMapPropagator()


def context_of(headers: Mapping[str, str]) -> Context:
    """The context that headers in lower case tell of; an empty one if they tell of none."""
    return _PROPAGATOR.extract(headers, Context())


def current_headers() -> dict[str, str]:
    """The headers that tell others of the current span; none where nothing is traced."""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers)
    return headers


def sampled_traceparent(span: Span) -> str:
    """The ``traceparent`` of a span that is recorded, else empty."""
    if not span.get_span_context().trace_flags.sampled:
        return ""
    headers: dict[str, str] = {}
    _PROPAGATOR.inject(headers, trace.set_span_in_context(span))
    return headers.get("traceparent", "")
