"""Steps of the engine on a session's bank: each writes to a slot that is reserved for it."""

import asyncio
import time
from collections.abc import Sequence

from opentelemetry.trace import SpanKind, get_current_span

from segstream.engine import ModelInfo, Step, StepResult
from segstream.media.images import Image
from segstream.memory.memory_bank import MemoryBank
from segstream.streaming.frame_trace import trace_engine_stages
from segstream.streaming.resources import Resources
from segstream.trace_context import sampled_traceparent


async def step_into(
    bank: MemoryBank,
    image: Image,
    model: ModelInfo,
    resources: Resources,
    *,
    read_slots: tuple[int, ...],
    wants_label_map: bool,
    wants_confidence: bool,
) -> StepResult:
    """One step, which is yet to be committed; where it fails the slot goes back.

    Raises what the engine raises.
    """
    with resources.tracing.span("engine_step", SpanKind.CLIENT) as span:
        started_ns = time.time_ns()
        step = _reserved(
            bank,
            image,
            model,
            read_slots,
            wants_label_map=wants_label_map,
            wants_confidence=wants_label_map and wants_confidence,
        )
        try:
            result = await resources.engine.step(step)
        except BaseException:
            bank.rollback()
            raise
        trace_engine_stages(resources.tracing, span, started_ns, result.stage_seconds)
    return result


async def memorise(
    bank: MemoryBank, images: Sequence[Image], model: ModelInfo, resources: Resources
) -> None:
    """Append frames to the bank, all at once: none needs the memory of another.

    Raises what the engine raises.
    """
    steps = [
        asyncio.ensure_future(resources.engine.step(_reserved(bank, image, model)))
        for image in images
    ]
    try:
        await asyncio.gather(*steps)
    finally:
        await asyncio.wait(steps)  # nobody may write to a page that is given back
    for _ in steps:
        bank.commit()


def _reserved(
    bank: MemoryBank,
    image: Image,
    model: ModelInfo,
    read_slots: tuple[int, ...] = (),
    *,
    wants_label_map: bool = False,
    wants_confidence: bool = False,
) -> Step:
    return Step(
        model.name,
        image,
        bank.pages,
        read_slots,
        bank.reserve(),
        wants_label_map,
        model_digest=model.digest,
        traceparent=sampled_traceparent(get_current_span()),
        wants_confidence=wants_confidence,
    )
