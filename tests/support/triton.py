"""Real Triton servers, and services that compute in them."""

import gc
import os
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from segstream.api.service import Service
from segstream.bench.local_redis import free_port
from segstream.client import FrameResult, ImageEncoding
from segstream.errors import UnavailableError
from segstream.media.images import Image
from segstream.settings import Settings
from segstream.triton.engine import TritonEngine
from segstream.triton.installation import Installation
from segstream.triton.server import Ports, TritonServer
from tests.support.service import RunningService

ROOT = Path(__file__).parents[2]
REPOSITORY = ROOT / "model_repository"
BACKENDS = ROOT / "deploy/triton/backends"
START_SECONDS = 60.0


def free_ports() -> Ports:
    return Ports(free_port(), free_port(), free_port())


def skip_without_triton() -> None:
    try:
        Installation.find()
    except UnavailableError as error:
        pytest.skip(error.message)


@contextmanager
def running_triton(
    repository: Path, *, ports: Ports | None = None, options: Sequence[str] = ()
) -> Iterator[TritonServer]:
    """A server of its own; nothing of it may be left."""
    skip_without_triton()
    with TritonServer(
        repository, ports=ports or free_ports(), backends=BACKENDS, options=options
    ) as server:
        server.start()
        server.wait_until_ready()
        try:
            yield server
        finally:
            print(server.log_tail())


class TritonService(RunningService):
    """A service whose frames are computed in Triton."""

    engine: TritonEngine  # type: ignore[assignment]


@asynccontextmanager
async def service_in_triton(
    address: str, names: Sequence[str], *, page_passing: Any = "auto", **settings: Any
) -> AsyncIterator[TritonService]:
    engine = TritonEngine(
        address,
        names,
        page_passing=page_passing,
        timeout_seconds=settings.pop("triton_timeout_seconds", START_SECONDS),
    )
    await engine.start(START_SECONDS)
    ports = {"port": 0, "http_port": 0, "drain_seconds": 5.0}
    service = Service(Settings(**(ports | settings)), engine, engine.page_storage)
    async with service:
        running = TritonService(service, engine, {})  # type: ignore[arg-type]
        yield running
        await running.disconnect()


async def stream(
    service: RunningService, video: Sequence[Image], **options: Any
) -> list[FrameResult]:
    """The answers to a video, one frame in flight."""
    async with (
        service.client() as client,
        client.stream(frame_encoding=ImageEncoding.RAW_RGB, **options) as session,
    ):
        return [result async for result in session.segment(video, max_in_flight=1)]


def shared_regions() -> set[str]:
    """The names of the shared memory that this process made."""
    gc.collect()
    return {path.name for path in Path("/dev/shm").glob(f"segstream-*-{os.getpid()}-*")}
