"""Triton's own spans, in the traces of the frames."""

import asyncio

from segstream.triton.server import trace_options
from tests.integration.triton.conftest import MODEL
from tests.support.models import make_video
from tests.support.otlp import otlp_receiver
from tests.support.triton import REPOSITORY, running_triton, service_in_triton, stream

NUM_FRAMES = 9


async def test_tritons_spans_are_under_the_steps_of_their_frames() -> None:
    """Of nearly all frames: Triton 2.51 reads some bytes past the end of a traceparent at times.

    It then takes the header for none, and records nothing (see docs/triton.md).
    """
    with (
        otlp_receiver() as collector,
        running_triton(REPOSITORY, options=trace_options(f"{collector.url}/v1/traces")) as triton,
    ):
        for trace_ratio in (0.0, 1.0):
            async with service_in_triton(
                triton.address,
                [MODEL],
                otlp_endpoint=collector.url,
                trace_ratio=trace_ratio,
                max_traced_frames_per_second=1000.0,
            ) as service:
                await stream(service, make_video(NUM_FRAMES))
        await asyncio.to_thread(
            collector.wait_for,
            lambda _: len(collector.named("engine_step")) == NUM_FRAMES and collector.named(MODEL),
        )
    steps = {span.span_id: span for span in collector.named("engine_step")}
    requests = collector.named("InferRequest")
    assert 0 < len(requests) <= NUM_FRAMES, "frames that are not traced bring nothing along"
    assert len({request.parent_id for request in requests}) == len(requests)
    for request in requests:
        assert request.trace_id == steps[request.parent_id].trace_id
