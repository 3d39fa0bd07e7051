"""How a model in Triton is looked after; the server is played."""

import asyncio
import sys
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from segstream.errors import EngineError
from segstream.triton import served_model
from segstream.triton.client import TroubleError
from segstream.triton.contract import CONTRACT_VERSION, Description
from segstream.triton.served_model import ServedModel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs pidfd")


class FakeClient:
    """Answers with what it is told to, and with a model in order where that is nothing."""

    address = "triton:8001"

    def __init__(self) -> None:
        self.faults: list[Exception] = []
        self.is_past_faults = asyncio.Event()
        self.num_revived = 0

    async def fail(self, *faults: Exception) -> None:
        """Fail so often; returns when that has been heard."""
        self.is_past_faults.clear()
        self.faults = list(faults)
        async with asyncio.timeout(10):
            await self.is_past_faults.wait()

    async def describe(self, model: str, *, timeout_seconds: float) -> Description:
        if self.faults:
            raise self.faults.pop()
        self.is_past_faults.set()
        return Description(CONTRACT_VERSION, model, "camvid", 3, 7, "digest", 8, 16, 64, 0, 0)

    async def revive(self, model: str) -> None:
        self.num_revived += 1


async def nothing() -> None:
    pass


@pytest_asyncio.fixture
async def client() -> FakeClient:
    return FakeClient()


@pytest_asyncio.fixture
async def served(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ServedModel]:
    monkeypatch.setattr(served_model, "_CANARY_PERIOD_SECONDS", 0.01)
    served = ServedModel("net", client, nothing)  # type: ignore[arg-type]
    yield served
    await served.close()


async def wait_until_serving(served: ServedModel) -> None:
    await served.wait_until_serving(asyncio.get_running_loop().time() + 10)


@pytest.mark.parametrize(
    "fault", [TroubleError("no word"), EngineError("version 0 of the contract, this service 1")]
)
async def test_a_model_that_fails_while_nobody_asks_is_looked_after_until_it_answers(
    client: FakeClient, served: ServedModel, fault: Exception
) -> None:
    await wait_until_serving(served)
    for _ in range(2):
        await client.fail(fault)
        await wait_until_serving(served)
    assert served.fault == ""
    assert client.num_revived == 0


async def test_a_model_that_does_not_answer_twice_is_loaded_anew(
    client: FakeClient, served: ServedModel
) -> None:
    await wait_until_serving(served)
    await client.fail(TroubleError("no word"), TroubleError("no word"))
    await wait_until_serving(served)
    assert client.num_revived == 1
