"""Pools that other processes can map, and that are told from all others."""

import gc
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segstream.errors import ExhaustedError, InvalidInputError
from segstream.memory.page_storage import DeviceStorage
from segstream.memory.pool_handle import PoolHandle
from segstream.memory.shared_storage import SharedStorage, exists, map_pool
from segstream.pages import PageGeometry

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/shm")

GEOMETRY = PageGeometry(height=2, width=3, key_channels=4, value_channels=5)
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


@given(
    dtype=DTYPES,
    num_pages=st.integers(1, 9),
    height=st.integers(1, 5),
    value_channels=st.sampled_from([5, 64, 192]),
)
@settings(max_examples=20, deadline=None)
def test_shared_pages_are_laid_out_as_a_devices_own(
    dtype: torch.dtype, num_pages: int, height: int, value_channels: int
) -> None:
    geometry = PageGeometry(height, 3, 4, value_channels)
    own = DeviceStorage(dtype).allocate(geometry, num_pages)
    shared = SharedStorage(dtype).allocate(geometry, num_pages)
    for one, other in ((own.keys, shared.keys), (own.values, shared.values)):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


@given(dtype=DTYPES, num_pages=st.integers(1, 99), height=st.integers(1, 5))
def test_a_handle_comes_back_from_its_text(dtype: torch.dtype, num_pages: int, height: int) -> None:
    handle = PoolHandle("segstream-pages-1", PageGeometry(height, 3, 4, 5), num_pages, dtype)
    assert PoolHandle.decode(handle.encode()) == handle


def _negate(handle: str) -> None:
    pages = map_pool(PoolHandle.decode(handle))
    pages.keys.neg_()
    pages.values.neg_()


def test_another_process_works_on_the_same_pages() -> None:
    storage = SharedStorage()
    pages = storage.allocate(GEOMETRY, 3)
    pages.keys.copy_(keys := torch.randn_like(pages.keys))
    pages.values.copy_(values := torch.randn_like(pages.values))
    other = multiprocessing.get_context("spawn").Process(
        target=_negate, args=(storage.handle(pages).encode(),)
    )
    other.start()
    other.join(60)
    assert other.exitcode == 0
    assert torch.equal(pages.keys, -keys)
    assert torch.equal(pages.values, -values)


def test_the_region_goes_with_its_pages() -> None:
    storage = SharedStorage()
    pages = storage.allocate(GEOMETRY, 3)
    name = storage.handle(pages).region
    assert exists(name)
    del pages
    gc.collect()
    assert not exists(name)
    with pytest.raises(FileNotFoundError):
        SharedMemory(name)


def test_a_region_that_does_not_fit_is_refused_at_once() -> None:
    huge = PageGeometry(height=1 << 20, width=1 << 20, key_channels=4, value_channels=5)
    with pytest.raises(ExhaustedError, match="bytes of shared memory cannot be had"):
        SharedStorage().allocate(huge, 1)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda handle: replace(handle, token="0" * 16), "is not the one that is meant"),
        (lambda handle: replace(handle, num_pages=4), r"has \d+ bytes, must have \d+"),
        (lambda handle: replace(handle, dtype=torch.float16), r"has \d+ bytes, must have \d+"),
        (
            lambda handle: replace(handle, geometry=PageGeometry(3, 2, 4, 5)),
            "is not the one that is meant",
        ),
        (lambda handle: replace(handle, region="segstream-pages-none"), "cannot be mapped"),
        (lambda handle: replace(handle, region="../etc/passwd"), "no region's name"),
    ],
    ids=["token", "pages", "dtype", "geometry", "gone", "path"],
)
def test_another_pool_than_the_one_that_is_meant_is_refused(
    change: Callable[[PoolHandle], PoolHandle], complaint: str
) -> None:
    storage = SharedStorage()
    pages = storage.allocate(GEOMETRY, 3)
    with pytest.raises(InvalidInputError, match=complaint):
        map_pool(change(storage.handle(pages)))


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"region": 1}', PoolHandle("r", GEOMETRY, 0, torch.float32).encode()],
)
def test_what_is_no_handle_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="no pool's handle"):
        PoolHandle.decode(text)
