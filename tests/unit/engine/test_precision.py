"""Fewer bits, and who watches over them."""

from contextlib import nullcontext
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from segstream.engine import InProcessEngine, Step, in_process, precision_guard
from segstream.engine.cuda_executor import CudaExecutor
from segstream.engine.precision_guard import guarded, pictures, usable_precision
from segstream.engine.runtimes import memory_digest, runtime_of
from segstream.errors import InvalidInputError
from segstream.models import load
from segstream.models.precision import Precision, autocast, in_precision
from segstream.pages import empty_pages
from tests.unit.engine.networks import make_plain_network
from tests.unit.engine.taped_graphs import TapedGraphs

CPU = torch.device("cpu")
REDUCED: tuple[Precision, ...] = ("bfloat16", "float16")


@pytest.mark.parametrize("precision", REDUCED)
@torch.inference_mode()
def test_weights_cast_ahead_give_the_bits_that_autocast_gives(precision: Precision) -> None:
    model = make_plain_network()
    slots = torch.tensor([[0, 1]], dtype=torch.int32)
    logits = []
    for each in (model, in_precision(model, precision)):
        pages = empty_pages(model.page_geometry(40, 48), 2)
        pages.keys.fill_(0.1), pages.values.fill_(0.2)
        with autocast(CPU, precision):
            found, *_ = each.segment(pictures(1)[:, :, :40, :48], (pages, slots))
        logits.append(found)
    assert logits[0].dtype == getattr(torch, precision)
    assert torch.equal(*logits)


def test_the_model_itself_stays_as_it_is() -> None:
    model = make_plain_network()
    assert in_precision(model, "float32") is model
    assert in_precision(model, "float16").dtype == torch.float16
    assert model.dtype == torch.float32


def test_the_executor_computes_in_its_precision() -> None:
    model = make_plain_network()
    pages = [empty_pages(model.page_geometry(40, 48), 1) for _ in REDUCED]
    image = np.random.default_rng(0).integers(0, 256, (40, 48, 3), dtype=np.uint8)
    for own, precision in zip(pages, REDUCED, strict=True):
        executor = CudaExecutor(model, TapedGraphs(), precision)
        for _ in range(3):
            executor([Step("net", image, own, (), 0, wants_confidence=True)], lambda _: None)
        assert torch.equal(own.keys, own.keys.to(getattr(torch, precision)).float())
    assert torch.allclose(pages[0].keys, pages[1].keys, atol=0.05)
    assert not torch.equal(pages[0].keys, pages[1].keys)


@pytest.mark.parametrize(
    ("least", "expected"), [(precision_guard.MIN_AGREEMENT, "float16"), (1.0, "float32")]
)
def test_what_the_label_maps_do_not_bear_is_not_used(
    monkeypatch: pytest.MonkeyPatch, least: float, expected: Precision
) -> None:
    monkeypatch.setattr(precision_guard, "MIN_AGREEMENT", least)
    with capture_logs() as logs:
        assert guarded(load("lmanet-erfnet-camvid"), "float16", CPU) == expected
    [line] = logs
    assert line["log_level"] == ("info" if expected == "float16" else "warning")
    assert precision_guard.MIN_AGREEMENT - 0.01 < line["agreement"] < 1


def test_precisions_other_than_float32_are_for_cuda_devices() -> None:
    engine = InProcessEngine({"net": make_plain_network()}, precision="float16")
    with pytest.raises(InvalidInputError, match="for CUDA devices, not 'cpu'") as error:
        engine.start()
    assert error.value.field == "precision"
    assert usable_precision(make_plain_network(), "float32", "cpu") == "float32"


@pytest.mark.parametrize("has_bfloat16", [True, False])
def test_float16_stands_in_on_a_gpu_without_bfloat16(
    has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision_guard, "has_cuda_graphs", lambda _: True)
    monkeypatch.setattr(precision_guard, "guarded", lambda model, precision, device: precision)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has_bfloat16)
    model = make_plain_network()
    expected = "bfloat16" if has_bfloat16 else "float16"
    assert usable_precision(model, "bfloat16", "cpu") == expected
    assert usable_precision(model, "float16", "cpu") == "float16"


def test_an_engine_tells_the_precision_that_its_network_bears(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(in_process, "usable_precision", lambda model, precision, device: "float32")
    engine = InProcessEngine({"net": make_plain_network()}, runtime="torch", precision="bfloat16")
    monkeypatch.setattr(engine, "_thread", Mock())
    assert runtime_of(engine.models["net"].digest) == "torch.bfloat16"
    engine.start()
    assert runtime_of(engine.models["net"].digest) == "torch"


def test_memories_of_another_precision_are_those_of_another_model() -> None:
    model = make_plain_network()
    digests = [
        memory_digest(model, "abc", runtime="torch", device="cpu", precision=precision)
        for precision in ("float32", *REDUCED)
    ]
    assert [runtime_of(digest) for digest in digests] == [
        *("torch", "torch.bfloat16", "torch.float16")
    ]


def test_the_guards_pictures_are_the_same_each_time() -> None:
    assert torch.equal(pictures(3), pictures(3))
    assert not torch.equal(*pictures(2))
