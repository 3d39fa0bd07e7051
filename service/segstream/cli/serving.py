"""Puts the service together with its engine, and runs it until told to stop."""

import asyncio
import signal

import torch
import uvloop

from segstream.api.service import Service
from segstream.cli.networks import networks_of
from segstream.engine import InProcessEngine
from segstream.errors import InvalidInputError
from segstream.model_names import by_name
from segstream.models import load
from segstream.settings import Settings
from segstream.triton.engine import TritonEngine
from segstream.triton.statistics import follow_statistics


def run_service(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT. Raises InvalidInputError for settings that cannot be met."""
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    if settings.engine == "triton":
        await _serve_with_triton(settings, stop)
    else:
        async with Service(settings, _in_process_engine(settings)):
            await stop.wait()


def _in_process_engine(settings: Settings) -> InProcessEngine:
    if settings.num_threads:
        torch.set_num_threads(settings.num_threads)
    _check_device(settings.device)
    networks = networks_of(settings.networks)
    engine = InProcessEngine(
        {
            name: load(checkpoint, networks=networks)
            for name, checkpoint in by_name(settings.models).items()
        },
        max_batch_size=settings.max_batch_size,
        device=settings.device,
        runtime=settings.runtime,
        precision=settings.precision,
    )
    engine.start()
    return engine


async def _serve_with_triton(settings: Settings, stop: asyncio.Event) -> None:
    _check_device(settings.device)
    engine = TritonEngine(
        settings.triton,
        list(by_name(settings.models)),
        dtype=getattr(torch, settings.page_dtype),
        device=settings.device,
        timeout_seconds=settings.triton_timeout_seconds,
        page_passing=settings.triton_pages,
    )
    starting = asyncio.create_task(engine.start(settings.triton_start_seconds))
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    try:
        if not starting.done():
            starting.cancel()
            return
        await starting
        async with Service(settings, engine, engine.page_storage) as service:
            following = asyncio.create_task(follow_statistics(engine, service.metrics.registry))
            await stopping
            following.cancel()
    finally:
        stopping.cancel()
        await engine.stop()


def _check_device(device: str) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter: torch was built without it
        raise InvalidInputError(f"device is {device!r}: {error}", field="device") from error
