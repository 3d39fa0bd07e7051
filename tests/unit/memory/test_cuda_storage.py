"""Pools in a GPU's memory; the calls to the driver are played, but for the tests marked gpu."""

import gc
import multiprocessing
import secrets
import sys

import pytest
import torch
from torch import Tensor

from segstream.cuda_driver import CudaError
from segstream.errors import ExhaustedError, InvalidInputError
from segstream.memory.cuda_memory import DeviceMemory
from segstream.memory.cuda_storage import CudaStorage, map_cuda_pool
from segstream.memory.pool_handle import PoolHandle
from segstream.memory.shared_storage import exists
from segstream.pages import PageGeometry
from segstream.triton.mapped_pools import MappedPools

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/shm")

GEOMETRY = PageGeometry(height=2, width=3, key_channels=4, value_channels=5)


class FakeCuda:
    """A device whose memory is the host's: what one maps is what the other allocated."""

    def __init__(self, room: int = 1 << 20) -> None:
        self._room = room
        self._blocks: dict[bytes, Tensor] = {}

    def allocate(self, num_bytes: int) -> tuple[Tensor, bytes]:
        if num_bytes > self._room:
            raise CudaError("cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY: out of memory")
        handle = secrets.token_bytes(64)
        self._blocks[handle] = torch.zeros(num_bytes, dtype=torch.uint8)
        return self._blocks[handle].view(-1), handle

    def map(self, handle: bytes, num_bytes: int) -> Tensor:
        if handle not in self._blocks:
            raise CudaError("cuIpcOpenMemHandle_v2 failed: CUDA_ERROR_INVALID_VALUE")
        return self._blocks[handle][:num_bytes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_mapped_pool_is_the_one_that_was_allocated(dtype: torch.dtype) -> None:
    cuda = FakeCuda()
    storage = CudaStorage(cuda, dtype)
    pages = storage.allocate(GEOMETRY, 3)
    pages.keys.copy_(torch.randn_like(pages.keys))
    mapped = map_cuda_pool(PoolHandle.decode(storage.handle(pages).encode()), cuda)
    assert torch.equal(mapped.keys, pages.keys)
    mapped.values.fill_(2)
    assert bool((pages.values == 2).all())


def test_a_device_without_room_says_so() -> None:
    with pytest.raises(ExhaustedError, match=r"bytes of the GPU's memory .* out of memory"):
        CudaStorage(FakeCuda(room=10)).allocate(GEOMETRY, 3)


def test_memory_outlives_its_pool_until_others_have_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    storage = CudaStorage(FakeCuda())
    pages = storage.allocate(GEOMETRY, 3)
    region = storage.handle(pages).region
    del pages
    gc.collect()
    assert not exists(region)
    assert len(storage._retired) == 1
    now += 9
    storage.allocate(GEOMETRY, 3)
    assert storage._retired[0][0] == 110.0
    now += 2
    gc.collect()
    storage._free_retired()
    assert all(due > now for due, _ in storage._retired)


def test_a_backend_forgets_a_pool_whose_service_gave_it_back() -> None:
    cuda = FakeCuda()
    storage, mapped = CudaStorage(cuda), MappedPools(cuda)
    pages = storage.allocate(GEOMETRY, 3)
    mapped.find(storage.handle(pages).encode())
    assert len(mapped) == 1
    del pages
    gc.collect()
    mapped.forget_the_gone()
    assert len(mapped) == 0


def test_memory_that_cannot_be_mapped_is_told() -> None:
    storage = CudaStorage(FakeCuda())
    pages = storage.allocate(GEOMETRY, 3)
    with pytest.raises(InvalidInputError, match="cannot be mapped on this GPU: cuIpcOpen"):
        map_cuda_pool(storage.handle(pages), FakeCuda())


def test_a_pool_is_for_models_on_its_own_side() -> None:
    storage = CudaStorage(FakeCuda())
    pages = storage.allocate(GEOMETRY, 3)
    with pytest.raises(InvalidInputError, match="is in a GPU, the model computes with the host's"):
        MappedPools().find(storage.handle(pages).encode())


def _negate(handle: str) -> None:
    pages = map_cuda_pool(PoolHandle.decode(handle), DeviceMemory("cuda:0"))
    pages.keys.neg_()
    torch.cuda.synchronize()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_another_process_works_on_the_same_gpu_pages() -> None:
    storage = CudaStorage(DeviceMemory("cuda:0"))
    pages = storage.allocate(GEOMETRY, 3)
    pages.keys.copy_(keys := torch.randn_like(pages.keys))
    other = multiprocessing.get_context("spawn").Process(
        target=_negate, args=(storage.handle(pages).encode(),)
    )
    other.start()
    other.join(120)
    assert other.exitcode == 0
    assert torch.equal(pages.keys, -keys)
