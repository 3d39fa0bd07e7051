"""The threads of the CPU kernels, seen through a layer that uses them."""

import os
import threading

import pytest
import torch
from torch import Tensor

from segstream.models.native.library import Kind, Layer, best_isa
from tests.unit.models.native_steps import random, run

pytestmark = pytest.mark.skipif(best_isa() is None, reason="the kernel was not built")

CHANNELS = 64


@pytest.fixture(scope="module")
def layer() -> Layer:
    weights = [random(CHANNELS, CHANNELS, 3, seed=n) / 8 for n in (1, 2)]
    return Layer(Kind.PAIR, CHANNELS, CHANNELS, weights, [torch.zeros(CHANNELS)] * 2)


def output(layer: Layer, num_threads: int) -> Tensor:
    """Of a map with work for eight threads."""
    x = random(64, 64, CHANNELS, seed=3)
    return run(layer, x, torch.full_like(x, torch.nan), num_threads=num_threads)


def test_every_task_is_done_once_however_many_threads_there_are(layer: Layer) -> None:
    alone = output(layer, 1)
    assert alone.isfinite().all()
    for num_threads in (2, 3, 8, 5, 2):
        for _ in range(20):
            assert torch.equal(output(layer, num_threads), alone)


def test_callers_side_by_side_do_not_mix(layer: Layer) -> None:
    alone = output(layer, 1)
    found: list[bool] = []

    def call() -> None:
        found.extend(torch.equal(output(layer, 4), alone) for _ in range(20))

    callers = [threading.Thread(target=call) for _ in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert found == [True] * 80


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning")
def test_a_forked_process_has_threads_of_its_own(layer: Layer) -> None:
    x = random(64, 64, CHANNELS, seed=3)
    alone, again = (torch.full_like(x, torch.nan) for _ in range(2))
    run(layer, x, alone, num_threads=4)
    again.share_memory_()
    child = os.fork()
    if child == 0:
        run(layer, x, again, num_threads=4)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert torch.equal(again, alone)
