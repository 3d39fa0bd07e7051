import asyncio
import gc
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from tests.unit.streaming.fakes import Service, settle


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    with capture_logs() as events:
        yield events


@pytest.fixture(scope="package", autouse=True)
def _cheap_collections() -> Iterator[None]:
    """What is there before the tests need not be gone through after each of them."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
async def _nothing_is_left_behind() -> AsyncIterator[None]:
    """No task outlives the test, and no exception of one goes unseen."""
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    yield
    await settle()
    gc.collect()
    await settle()
    assert complaints == []
    assert asyncio.all_tasks() - {asyncio.current_task()} == set()


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    service = Service()
    yield service
    service.engine.gate.set()
    await settle()
    await service.forget_parked()
    await service.segmenter.drain(10)
    await settle()
    assert service.segmenter.num_streams == 0
    assert service.store.pools == ()
