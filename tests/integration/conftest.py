from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from segstream.models import LMANet, load
from tests.support.models import DRIVE, STREET, write_drive_checkpoint, write_street_checkpoint
from tests.support.service import RunningService, running_service

StartService = Callable[..., Awaitable[RunningService]]


@pytest.fixture(scope="session")
def street_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_street_checkpoint(tmp_path_factory.mktemp("street"))


@pytest.fixture(scope="session")
def models(
    street_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Mapping[str, LMANet]:
    drive_checkpoint = write_drive_checkpoint(tmp_path_factory.mktemp("drive"))
    return {STREET: load(street_checkpoint), DRIVE: load(drive_checkpoint)}


@pytest_asyncio.fixture
async def start_service(models: Mapping[str, LMANet]) -> AsyncIterator[StartService]:
    """Starts services with the settings given; all of them stop when the test ends."""
    async with AsyncExitStack() as running:

        async def start(**settings: Any) -> RunningService:
            return await running.enter_async_context(running_service(models, **settings))

        yield start


@pytest_asyncio.fixture
async def service(start_service: StartService) -> RunningService:
    return await start_service()
