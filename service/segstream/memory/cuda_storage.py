"""Pages in a CUDA device's memory, which engines in other processes read and write in place."""

import time
import weakref
from collections import deque
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import torch
from torch import Tensor

from segstream.cuda_driver import IPC_HANDLE_BYTES, CudaError
from segstream.errors import ExhaustedError, InvalidInputError
from segstream.memory.cuda_memory import CudaMemory
from segstream.memory.pool_handle import PoolHandle
from segstream.memory.shared_storage import create_region, map_region, region_name
from segstream.pages import PageGeometry, Pages

# CUDA leaves open what happens to mapped memory that is freed. By then everyone who had mapped it
# has seen that its region is gone, and let go of it.
_RETIREMENT_SECONDS = 10.0


class CudaStorage:
    """See ``PageStorage``. Linux only.

    A small region of POSIX shared memory carries the handle by which a pool is mapped: as long as
    the region is there, so is the pool.
    """

    def __init__(self, memory: CudaMemory, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self._memory = memory
        self._handles: weakref.WeakKeyDictionary[Pages, PoolHandle] = weakref.WeakKeyDictionary()
        self._retired: deque[tuple[float, Tensor]] = deque()

    def allocate(self, geometry: PageGeometry, num_pages: int) -> Pages:
        """See ``PageStorage``."""
        self._free_retired()
        handle = PoolHandle(region_name("gpu"), geometry, num_pages, self.dtype, is_on_gpu=True)
        try:
            memory, ipc_handle = self._memory.allocate(handle.num_bytes)
        except CudaError as error:
            raise ExhaustedError(
                f"{handle.num_bytes} bytes of the GPU's memory cannot be had: {error.message}"
            ) from error
        handle.mark(memory)
        region = create_region(handle.region, IPC_HANDLE_BYTES)
        region.close()  # this process looks at it through mappings that end by themselves
        map_region(handle.region, IPC_HANDLE_BYTES).numpy()[:] = np.frombuffer(ipc_handle, np.uint8)
        pages = handle.pages(memory)
        weakref.finalize(pages, self._retire, region, memory)
        self._handles[pages] = handle
        return pages

    def handle(self, pages: Pages) -> PoolHandle:
        """By which ``map_cuda_pool`` finds pages allocated here, in any process of this machine."""
        return self._handles[pages]

    def _retire(self, region: SharedMemory, memory: Tensor) -> None:
        region.unlink()
        self._retired.append((time.monotonic() + _RETIREMENT_SECONDS, memory))

    def _free_retired(self) -> None:
        while self._retired and self._retired[0][0] <= time.monotonic():
            self._retired.popleft()


def map_cuda_pool(handle: PoolHandle, memory: CudaMemory) -> Pages:
    """The pages of another process's pool on this device.

    Raises InvalidInputError where there is no such region on this machine, where its memory cannot
    be mapped, or where it is not the pool that the handle means.
    """
    ipc_handle = map_region(handle.region, IPC_HANDLE_BYTES).numpy().tobytes()
    try:
        mapped = memory.map(ipc_handle, handle.num_bytes)
    except CudaError as error:
        raise InvalidInputError(
            f"pool.region {handle.region!r} cannot be mapped on this GPU: {error.message}",
            field="pool.region",
        ) from error
    handle.check(mapped)
    return handle.pages(mapped)
