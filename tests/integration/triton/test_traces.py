"""Triton's own spans, in the trace of the frame."""

import asyncio

from segstream.triton.server import trace_options
from tests.integration.triton.conftest import MODEL
from tests.support.models import make_video
from tests.support.otlp import OtlpReceiver, otlp_receiver
from tests.support.triton import REPOSITORY, running_triton, service_in_triton, stream


def num_of_triton(collector: OtlpReceiver) -> int:
    return len(collector.named(MODEL))


async def test_tritons_spans_are_under_the_step_of_their_frame() -> None:
    with (
        otlp_receiver() as collector,
        running_triton(REPOSITORY, options=trace_options(f"{collector.url}/v1/traces")) as triton,
    ):
        async with service_in_triton(
            triton.address,
            [MODEL],
            otlp_endpoint=collector.url,
            trace_ratio=1.0,
            max_traced_frames_per_second=1e-4,  # the first of the stream
        ) as service:
            await stream(service, make_video(3))
        spans = await asyncio.to_thread(
            collector.wait_for,
            lambda _: collector.named("engine_step") and num_of_triton(collector),
        )
    [step] = (span for span in spans if span.name == "engine_step")
    [request] = (
        span for span in spans if span.parent_id == step.span_id and span.name == "InferRequest"
    )
    assert request.trace_id == step.trace_id
    # Frames that are not traced bring nothing along.
    assert len([span for span in spans if span.name == "InferRequest"]) == 1
