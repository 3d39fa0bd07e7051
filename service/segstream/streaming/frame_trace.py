"""The trace of a frame: one span, and one for each stage of its way."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanContext,
    Status,
    StatusCode,
)

from segstream.errors import SegstreamError
from segstream.streaming.messages import Frame, FrameResult, Skipped
from segstream.telemetry.tracing import Tracing
from segstream.trace_context import context_of

_ENGINE_STAGES = ("queue", "encode", "memory_read", "fuse_decode")


class FrameTrace:
    """Tells of one frame; of one that is not traced it tells nothing, at no cost."""

    __slots__ = ("_context", "_tracing", "span")

    def __init__(self, tracing: Tracing, span: Span) -> None:
        self._tracing = tracing
        self.span = span
        self._context = trace.set_span_in_context(span, Context())

    def stage(
        self,
        name: str,
        seconds: float,
        *,
        ended_ns: int | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> None:
        """A stage took so long, and ended now or at ``ended_ns``, nanoseconds of the epoch."""
        if not self.span.is_recording():
            return
        ended_ns = time.time_ns() if ended_ns is None else ended_ns
        started_ns = ended_ns - round(1e9 * seconds)
        span = self._tracing.tracer.start_span(
            name, self._context, attributes=attributes, start_time=started_ns
        )
        span.end(ended_ns)

    @contextmanager
    def is_current(self) -> Iterator[None]:
        """Whatever is traced or logged in the block belongs to the frame."""
        with trace.use_span(self.span, record_exception=False, set_status_on_exception=False):
            yield

    def end(self, result: FrameResult) -> None:
        """The frame is answered."""
        span = self.span
        if not span.is_recording():
            return
        span.set_attribute("segstream.num_memory_frames", result.num_memory_frames)
        span.set_attribute("segstream.batch_size", result.batch_size)
        outcome = result.outcome
        if isinstance(outcome, SegstreamError):
            span.set_attribute("error.type", type(outcome).__name__)
            span.set_status(Status(StatusCode.ERROR, outcome.message))
        elif isinstance(outcome, Skipped):
            span.set_attribute("segstream.skip_reason", outcome.reason.value)
        span.end()


class StreamTrace:
    """Which frames of a stream are traced: as many as ``tracing`` allows, evenly over time.

    A frame belongs to the trace that it names, else to that of the span under which the stream was
    opened.
    """

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._parent = trace.get_current_span()
        self._untraced = FrameTrace(tracing, _unsampled(self._parent))
        self._pause_seconds = 1 / tracing.max_frames_per_second
        self._next_at = 0.0

    def begin(self, frame: Frame) -> FrameTrace:
        """The trace of a frame that has arrived."""
        if not self._tracing.is_on:
            return self._untraced
        parent = trace.set_span_in_context(self._parent, Context())
        if frame.traceparent:
            parent = context_of({"traceparent": frame.traceparent}) or parent
        if not trace.get_current_span(parent).get_span_context().trace_flags.sampled:
            return self._untraced
        now = time.monotonic()
        if now < self._next_at:
            return self._untraced
        self._next_at = now + self._pause_seconds
        span = self._tracing.tracer.start_span(
            "frame",
            parent,
            attributes={
                "segstream.frame_index": str(frame.index),  # OTLP has no unsigned numbers
                "segstream.frame_bytes": len(frame.data),
            },
        )
        return FrameTrace(self._tracing, span)


def trace_engine_stages(
    tracing: Tracing, span: Span, started_ns: int, stage_seconds: Mapping[str, float]
) -> None:
    """The stages that an engine timed, end to end under the span of its step."""
    if not span.is_recording():
        return
    context = trace.set_span_in_context(span, Context())
    for stage in _ENGINE_STAGES:
        if stage in stage_seconds:
            ended_ns = started_ns + round(1e9 * stage_seconds[stage])
            tracing.tracer.start_span(stage, context, start_time=started_ns).end(ended_ns)
            started_ns = ended_ns


def _unsampled(span: Span) -> Span:
    """A span in whose name nothing is recorded."""
    context = span.get_span_context()
    if not context.is_valid:
        return INVALID_SPAN
    return NonRecordingSpan(SpanContext(context.trace_id, context.span_id, is_remote=False))
