"""What a backend will not compute: pools and slots that are not the ones that are meant."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch
import tritonclient.grpc.aio as grpc_client

from segstream.errors import EngineError, InvalidInputError, ModelChangedError, SegstreamError
from segstream.memory.pool_handle import PoolHandle
from segstream.memory.shared_storage import SharedStorage
from segstream.models import LMANet
from segstream.pages import PageGeometry, Pages
from segstream.triton import contract
from segstream.triton.client import TritonClient, TroubleError, array_input
from segstream.triton.server import TritonServer
from tests.integration.triton.conftest import MODEL

HEIGHT, WIDTH = 32, 40
NUM_PAGES = 3

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Asker:
    """Asks with parameters that a service would not send."""

    def __init__(self, client: TritonClient, model: LMANet, digest: str) -> None:
        self.client = client
        self.storage = SharedStorage()
        geometry = model.page_geometry(HEIGHT, WIDTH)
        self.pages: Pages = self.storage.allocate(geometry, NUM_PAGES)
        self.pages.keys.fill_(3)
        self.digest = digest

    @property
    def handle(self) -> PoolHandle:
        return self.storage.handle(self.pages)

    async def ask(self, **changes: Any) -> Any:
        parameters = {
            contract.DIGEST: self.digest,
            contract.POOL: self.handle.encode(),
            contract.READ_SLOTS: "0",
            contract.WRITE_SLOT: 1,
        }
        parameters |= changes
        frame = array_input(contract.FRAME, np.zeros((1, HEIGHT, WIDTH, 3), np.uint8))
        outputs = [
            grpc_client.InferRequestedOutput(name) for name in (contract.REPORT, contract.LABEL_MAP)
        ]
        return await self.client.infer(
            MODEL, [frame], outputs, {k: v for k, v in parameters.items() if v is not None}
        )


@pytest_asyncio.fixture
async def asker(triton: TritonServer, model: LMANet) -> AsyncIterator[Asker]:
    client = TritonClient(triton.address)
    described = await client.describe(MODEL, timeout_seconds=10)
    asker = Asker(client, model, described.digest)
    yield asker
    await asker.client.close()
    del asker.pages


async def test_the_pool_that_is_meant_is_written_in_place(asker: Asker) -> None:
    answer = await asker.ask()
    assert answer.as_numpy(contract.LABEL_MAP).shape == (1, HEIGHT, WIDTH)
    is_old = [bool((key == 3).all()) for key in asker.pages.keys]
    assert is_old == [True, False, True]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"token": "0" * 16}, "is not the one that is meant"),
        ({"region": "segstream-pages-1-none"}, "cannot be mapped on this machine"),
        ({"region": "../../etc/passwd"}, "no region's name"),
        ({"dtype": torch.float16}, r"has \d+ bytes, must have \d+"),
        ({"num_pages": NUM_PAGES + 1}, r"has \d+ bytes, must have \d+"),
        ({"geometry": PageGeometry(5, 4, 16, 64)}, "is not the one that is meant"),
    ],
    ids=["token", "gone", "path", "dtype", "pages", "geometry"],
)
async def test_a_pool_that_is_not_the_one_that_is_meant(
    asker: Asker, change: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(InvalidInputError, match=complaint):
        await asker.ask(pool=replace(asker.handle, **change).encode())
    assert bool((asker.pages.keys == 3).all())
    await asker.ask()


async def test_a_pool_for_frames_of_another_size(asker: Asker, model: LMANet) -> None:
    other = asker.storage.allocate(model.page_geometry(2 * HEIGHT, WIDTH), NUM_PAGES)
    with pytest.raises(InvalidInputError, match="the frame needs PageGeometry"):
        await asker.ask(pool=asker.storage.handle(other).encode())


@pytest.mark.parametrize(
    ("read_slots", "write_slot"), [("0", 0), ("3", 1), ("-1", 1), ("0", 3), ("0 0", 1), ("0", -1)]
)
async def test_slots_that_the_pool_does_not_have(
    asker: Asker, read_slots: str, write_slot: int
) -> None:
    with pytest.raises(InvalidInputError, match=r"they must differ and be in 0\.\.2"):
        await asker.ask(read_slots=read_slots, write_slot=write_slot)
    assert bool((asker.pages.keys == 3).all())


async def test_memory_of_another_model(asker: Asker) -> None:
    with pytest.raises(ModelChangedError, match=f"digest {asker.digest}.*that of 'other'"):
        await asker.ask(digest="other")


@pytest.mark.parametrize(
    "changes",
    [
        {"pool": "no handle"},
        {"pool": None},
        {"read_slots": "one two"},
        {"digest": None},
        {"write_slot": "x"},
    ],
)
async def test_requests_that_are_no_steps(asker: Asker, changes: dict[str, Any]) -> None:
    with pytest.raises((SegstreamError, TroubleError)):
        await asker.ask(**changes)
    await asker.ask()


async def test_a_pool_that_is_gone_is_let_go(
    asker: Asker, triton: TritonServer, model: LMANet
) -> None:
    old = asker.handle.encode()
    asker.pages = asker.storage.allocate(model.page_geometry(HEIGHT, WIDTH), NUM_PAGES)
    await asker.ask()
    with pytest.raises(InvalidInputError, match="cannot be mapped"):
        await asker.ask(pool=old)


def test_a_backend_of_another_version_is_told() -> None:
    report = b'{"contract_version": 0}'
    ours = contract.CONTRACT_VERSION
    with pytest.raises(EngineError, match=f"version 0 of the contract, this service {ours}"):
        contract.Description.decode(report)
