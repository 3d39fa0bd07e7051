"""Pages in POSIX shared memory, which engines in other processes read and write in place."""

import mmap
import os
import re
import secrets
import weakref
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import torch
from torch import Tensor

from segstream.errors import ExhaustedError, InvalidInputError
from segstream.memory.pool_handle import PoolHandle
from segstream.pages import PageGeometry, Pages

REGION_PREFIX = "segstream-"
"""How the names of all shared regions of the service begin."""

_FOLDER = Path("/dev/shm")
_REGION_NAME = re.compile(rf"{REGION_PREFIX}[a-z0-9-]+")


class SharedStorage:
    """See ``PageStorage``. Linux only.

    The name of a pool's region goes with the last reference to its pages, or with this process,
    however that ends.
    """

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.dtype = dtype
        self._handles: weakref.WeakKeyDictionary[Pages, PoolHandle] = weakref.WeakKeyDictionary()

    def allocate(self, geometry: PageGeometry, num_pages: int) -> Pages:
        """See ``PageStorage``."""
        handle = PoolHandle(region_name("pages"), geometry, num_pages, self.dtype)
        region = create_region(handle.region, handle.num_bytes)
        try:
            memory = map_region(handle.region, handle.num_bytes)
        finally:
            region.close()
        handle.mark(memory)
        pages = handle.pages(memory)
        weakref.finalize(pages, region.unlink)
        self._handles[pages] = handle
        return pages

    def handle(self, pages: Pages) -> PoolHandle:
        """By which ``map_pool`` finds pages allocated here, in any process of this machine."""
        return self._handles[pages]


def map_pool(handle: PoolHandle) -> Pages:
    """The pages of another process's pool.

    Raises InvalidInputError where there is no such region on this machine, or where it is not the
    pool that the handle means.
    """
    memory = map_region(handle.region, handle.num_bytes)
    handle.check(memory)
    return handle.pages(memory)


def region_name(purpose: str) -> str:
    """A name for a new region that no other has."""
    return f"{REGION_PREFIX}{purpose}-{os.getpid()}-{secrets.token_hex(4)}"


def create_region(name: str, num_bytes: int) -> SharedMemory:
    """A region of this process. Raises ExhaustedError where there is no room for it."""
    region = SharedMemory(name, create=True, size=num_bytes)
    try:
        # Asks for all of it now: a page that cannot be had later would end the process.
        with (_FOLDER / name).open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
    except OSError as error:
        region.close()
        region.unlink()
        raise ExhaustedError(
            f"{num_bytes} bytes of shared memory cannot be had: {error.strerror}"
        ) from error
    return region


def map_region(name: str, num_bytes: int) -> Tensor:
    """The bytes of a region, ``(num_bytes,)`` uint8. Raises InvalidInputError where it is not."""
    if not _REGION_NAME.fullmatch(name):
        raise InvalidInputError(f"pool.region is {name!r}: no region's name", field="pool.region")
    try:
        with (_FOLDER / name).open("r+b") as file:
            found = os.fstat(file.fileno()).st_size
            if found != num_bytes:
                raise InvalidInputError(
                    f"pool.region {name!r} has {found} bytes, must have {num_bytes}",
                    field="pool.region",
                )
            memory = mmap.mmap(file.fileno(), num_bytes)
    except OSError as error:
        raise InvalidInputError(
            f"pool.region {name!r} cannot be mapped on this machine: {error.strerror}",
            field="pool.region",
        ) from error
    return torch.frombuffer(memory, dtype=torch.uint8)


def exists(name: str) -> bool:
    """Whether a region of this name is on this machine now."""
    return bool(_REGION_NAME.fullmatch(name)) and (_FOLDER / name).exists()
