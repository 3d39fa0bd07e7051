"""Triton's own spans, in the trace of the frame."""

import asyncio
from contextlib import suppress

from segstream.triton.server import trace_options
from tests.integration.triton.conftest import MODEL
from tests.support.models import make_video
from tests.support.otlp import otlp_receiver
from tests.support.triton import REPOSITORY, running_triton, service_in_triton, stream


async def test_tritons_spans_are_under_the_step_of_their_frame() -> None:
    def are_there(_: object) -> bool:
        return bool(collector.named("engine_step") and collector.named(MODEL))

    with (
        otlp_receiver() as collector,
        running_triton(REPOSITORY, options=trace_options(f"{collector.url}/v1/traces")) as triton,
    ):
        for seconds in (20, 60):
            async with service_in_triton(
                triton.address,
                [MODEL],
                otlp_endpoint=collector.url,
                trace_ratio=1.0,
                max_traced_frames_per_second=1e-4,  # the first of the stream
            ) as service:
                await stream(service, make_video(3))
            # Triton was seen, rarely, to send nothing of a request that came as it started.
            with suppress(AssertionError):
                await asyncio.to_thread(collector.wait_for, are_there, seconds)
                break
    [request] = collector.named("InferRequest")  # frames that are not traced bring nothing along
    [step] = (step for step in collector.named("engine_step") if step.span_id == request.parent_id)
    assert request.trace_id == step.trace_id
