"""A real Triton server with the repository of the tree."""

from collections.abc import Iterator

import pytest

from segstream.models import LMANet, load
from segstream.triton.server import TritonServer
from tests.support.triton import REPOSITORY, running_triton, shared_regions

MODEL = "lmanet-erfnet-camvid"


@pytest.fixture(scope="package")
def triton() -> Iterator[TritonServer]:
    with running_triton(REPOSITORY) as server:
        yield server


@pytest.fixture(scope="package")
def model() -> LMANet:
    return load(MODEL)


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """No shared memory outlives what a test starts."""
    before = shared_regions()
    yield
    assert not shared_regions() - before
