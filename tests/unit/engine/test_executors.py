"""What all runtimes promise: a step's bits are its own, whatever is around it."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import platformdirs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segstream.engine import InProcessEngine, Step
from segstream.engine.executor import Executor
from segstream.engine.native_executor import NativeExecutor
from segstream.engine.onnx_executor import OnnxExecutor
from segstream.engine.torch_executor import TorchExecutor
from segstream.errors import InvalidInputError
from segstream.label_sets import CAMVID
from segstream.media.label_maps import LabelMap
from segstream.models import (
    LMANet,
    NativeLMANet,
    OnnxLMANet,
    Runtime,
    load,
    model_digest,
    onnx_cache,
)
from segstream.models.native import library
from segstream.models.onnx_cache import exported
from segstream.models.onnx_export import Graphs, export
from segstream.pages import Pages, empty_pages
from tests.unit.engine.networks import make_network

HEIGHT, WIDTH = 36, 44
NUM_OLD, NUM_STEPS = 6, 5
# Cold, warm to different depths, and one that is only memorised.
READ_SLOTS: tuple[tuple[int, ...], ...] = ((), (0, 1), (2,), (), (3, 4))
MEMORISED_ONLY = 3
DTYPES = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])


needs_library = pytest.mark.skipif(library.library() is None, reason="the kernel was not built")
CPU_RUNTIMES = [pytest.param("native", marks=needs_library), "onnx"]


@cache
def executor(runtime: str, num_threads: int = 1) -> Executor:
    network = make_network(0)
    if runtime == "torch":
        return TorchExecutor(network, "cpu")
    if runtime == "native":
        return NativeExecutor(NativeLMANet(network))
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        return OnnxExecutor(OnnxLMANet(network))
    finally:
        torch.set_num_threads(before)


def run(
    execute: Executor, batches: Sequence[Sequence[int]], dtype: torch.dtype = torch.float32
) -> tuple[dict[int, LabelMap | None], Pages]:
    """The five steps, in these batches, over equal memory."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_STEPS, HEIGHT, WIDTH, 3), dtype=np.uint8)
    pages = empty_pages(make_network(0).page_geometry(HEIGHT, WIDTH), 16, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    for pool in (pages.keys, pages.values):
        pool.zero_()
        pool[:NUM_OLD] = torch.randn(pool[:NUM_OLD].shape, generator=generator).to(dtype)
    found: dict[int, LabelMap | None] = {}
    for batch in batches:
        steps = [
            Step("net", images[i], pages, READ_SLOTS[i], NUM_OLD + i, i != MEMORISED_ONLY)
            for i in batch
        ]
        predictions = execute(steps, lambda _: None)
        found.update(zip(batch, (each.label_map for each in predictions), strict=True))
    return found, pages


ALONE = [[number] for number in range(NUM_STEPS)]


@st.composite
def batchings(draw: st.DrawFn) -> list[list[int]]:
    order = draw(st.permutations(range(NUM_STEPS)))
    cuts = sorted(draw(st.sets(st.integers(1, NUM_STEPS - 1))))
    return [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, NUM_STEPS], strict=True)]


def assert_same(
    one: tuple[dict[int, LabelMap | None], Pages], other: tuple[dict[int, LabelMap | None], Pages]
) -> None:
    for number in range(NUM_STEPS):
        np.testing.assert_array_equal(one[0][number], other[0][number])
    assert torch.equal(one[1].keys, other[1].keys)
    assert torch.equal(one[1].values, other[1].values)


@given(batches=batchings(), num_threads=st.integers(1, 3), dtype=DTYPES)
@settings(max_examples=25, deadline=None)
def test_onnx_gives_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    batches: list[list[int]], num_threads: int, dtype: torch.dtype
) -> None:
    assert_same(
        run(executor("onnx", num_threads), batches, dtype), run(executor("onnx"), ALONE, dtype)
    )


@needs_library
@given(batches=batchings(), num_threads=st.integers(1, 3), dtype=DTYPES)
@settings(max_examples=25, deadline=None)
def test_native_gives_the_same_bits_in_any_batch_and_on_any_number_of_threads(
    batches: list[list[int]], num_threads: int, dtype: torch.dtype
) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        found = run(executor("native"), batches, dtype)
    finally:
        torch.set_num_threads(before)
    assert_same(found, run(NativeExecutor(NativeLMANet(make_network(0))), ALONE, dtype))


@given(batches=batchings())
@settings(max_examples=10, deadline=None)
def test_torch_gives_the_same_bits_in_any_batch(batches: list[list[int]]) -> None:
    assert_same(run(executor("torch"), batches), run(executor("torch"), ALONE))


@pytest.mark.parametrize("runtime", CPU_RUNTIMES)
def test_agrees_with_torch(runtime: str) -> None:
    found, torch_ = run(executor(runtime), ALONE), run(executor("torch"), ALONE)
    for number in range(NUM_STEPS):
        if number == MEMORISED_ONLY:
            assert found[0][number] is None
            assert torch_[0][number] is None
        else:
            assert np.mean(found[0][number] == torch_[0][number]) > 0.999
    assert torch.allclose(found[1].keys, torch_[1].keys, atol=1e-4)
    assert torch.allclose(found[1].values, torch_[1].values, atol=1e-4)


@pytest.mark.parametrize("runtime", [*CPU_RUNTIMES, "torch"])
def test_a_frame_that_is_only_memorised_leaves_the_page_that_it_would_leave(runtime: str) -> None:
    execute = executor(runtime)
    image = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    pages = empty_pages(make_network(0).page_geometry(HEIGHT, WIDTH), 2)
    for slot, wants_label_map in enumerate((True, False)):
        execute([Step("net", image, pages, (), slot, wants_label_map)], lambda _: None)
    assert torch.equal(pages.keys[0], pages.keys[1])
    assert torch.equal(pages.values[0], pages.values[1])


@pytest.mark.parametrize("runtime", [*CPU_RUNTIMES, "torch"])
def test_confidence_is_the_softmax_of_the_class_and_comes_only_where_asked(runtime: str) -> None:
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (3, HEIGHT, WIDTH, 3), dtype=np.uint8)
    network = make_network(0)
    pages, reference = (empty_pages(network.page_geometry(HEIGHT, WIDTH), 4) for _ in range(2))
    asked = [True, False, True]
    for read_slots in ((), (3,)):
        plain = [Step("net", image, pages, read_slots, i) for i, image in enumerate(images)]
        steps = [
            Step("net", image, pages, read_slots, i, wants_confidence=asked[i])
            for i, image in enumerate(images)
        ]
        expected = executor(runtime)(plain, lambda _: None)
        found = executor(runtime)(steps, lambda _: None)
        logits = network(
            torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255,
            reference,
            torch.tensor([read_slots] * 3, dtype=torch.int32).reshape(3, -1),
            torch.tensor([0, 1, 2]),
        )
        softmax = logits[:, : CAMVID.num_classes].softmax(dim=1).amax(dim=1).numpy()
        for i, prediction in enumerate(found):
            np.testing.assert_array_equal(prediction.label_map, expected[i].label_map)
            assert expected[i].confidence is None
            assert (prediction.confidence is not None) == asked[i]
            if prediction.confidence is not None:
                assert prediction.confidence.dtype == np.uint8
                assert np.abs(prediction.confidence - 255 * softmax[i]).max() < 0.6
        for pool in (pages, reference):
            pool.keys[3], pool.values[3] = pool.keys[0], pool.values[0]


@pytest.mark.parametrize("runtime", [*CPU_RUNTIMES, "torch"])
def test_a_frame_that_is_only_memorised_has_no_confidence(runtime: str) -> None:
    pages = empty_pages(make_network(0).page_geometry(HEIGHT, WIDTH), 1)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    step = Step("net", image, pages, (), 0, False, wants_confidence=True)
    [prediction] = executor(runtime)([step], lambda _: None)
    assert (prediction.label_map, prediction.confidence) == (None, None)


@needs_library
def test_the_shipped_checkpoint_labels_alike_on_all() -> None:
    model = load("lmanet-erfnet-camvid")
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    image = np.ascontiguousarray(coarse.repeat(16, axis=0).repeat(16, axis=1))
    maps = []
    executors = (
        *(NativeExecutor(NativeLMANet(model)), OnnxExecutor(OnnxLMANet(model))),
        TorchExecutor(model, "cpu"),
    )
    for execute in executors:
        pages = empty_pages(model.page_geometry(*image.shape[:2]), 2)
        execute([Step("net", image, pages, (), 0)], lambda _: None)
        maps += [
            each.label_map for each in execute([Step("net", image, pages, (0,), 1)], lambda _: None)
        ]
    assert all(np.mean(label_map == maps[-1]) >= 0.999 for label_map in maps)


def test_digests_tell_models_apart() -> None:
    digests = {model_digest(make_network(seed)) for seed in (0, 0, 1)}
    assert len(digests) == 2


@pytest.fixture
def exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[LMANet]:
    """The networks that were exported, with a cache of the test's own."""
    made: list[LMANet] = []

    def counted(model: LMANet) -> Graphs:
        made.append(model)
        return export(model)

    monkeypatch.setattr(platformdirs, "user_cache_path", lambda _: tmp_path / "cache")
    monkeypatch.setattr(onnx_cache, "export", counted)
    return made


def test_graphs_are_exported_once(exports: list[LMANet]) -> None:
    network = make_network(0)
    digest = model_digest(network)
    assert exported(network, digest) == exported(network, digest)
    assert len(exports) == 1
    exported(make_network(1), model_digest(make_network(1)))
    assert len(exports) == 2


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, exports: list[LMANet]
) -> None:
    (tmp_path / "cache").write_text("no folder")
    network = make_network(0)
    assert exported(network, model_digest(network)) == exported(network, model_digest(network))
    assert len(exports) == 2


def test_the_cache_keeps_the_graphs_that_were_used_last(
    tmp_path: Path, exports: list[LMANet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_cache, "_MAX_FILES", 2)
    networks = [make_network(seed) for seed in range(3)]
    for network in (networks[0], networks[1], networks[0], networks[2]):
        exported(network, model_digest(network))
    assert len(exports) == 3
    assert len(list(tmp_path.rglob("*.graphs"))) == 2
    exported(networks[0], model_digest(networks[0]))
    assert len(exports) == 3
    exported(networks[1], model_digest(networks[1]))
    assert len(exports) == 4


@pytest.mark.parametrize("spoil", [lambda whole: whole[:1000], lambda whole: whole[:-1] + b"\0"])
def test_a_spoilt_cache_is_made_anew(
    tmp_path: Path, exports: list[LMANet], spoil: Callable[[bytes], bytes]
) -> None:
    network = make_network(0)
    digest = model_digest(network)
    graphs = exported(network, digest)
    [file] = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = file.read_bytes()
    file.write_bytes(spoil(whole))
    assert exported(network, digest) == graphs
    assert file.read_bytes() == whole
    assert len(exports) == 2


@pytest.mark.parametrize("runtime", ["native", "onnx"])
def test_runs_on_no_other_device(runtime: Runtime) -> None:
    engine = InProcessEngine({"net": make_network(0)}, device="meta", runtime=runtime)
    with pytest.raises(InvalidInputError, match="use torch"):
        engine.start()


@needs_library
def test_memories_of_another_runtime_are_those_of_another_model() -> None:
    network = make_network(0)
    runtimes: tuple[Runtime, ...] = ("auto", "native", "onnx", "torch")
    digests = [
        InProcessEngine({"net": network}, runtime=runtime).models["net"].digest
        for runtime in runtimes
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


@pytest.mark.parametrize("runtime", ["auto", "native"])
def test_without_the_library_onnx_stands_in_and_the_log_says_so_once(
    runtime: Runtime,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    network = make_network(0)
    expected = InProcessEngine({"net": network}, runtime="onnx").models["net"].digest
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(library, "LIBRARY", tmp_path / "absent.so")
        library.library.cache_clear()
        for _ in range(2):
            engine = InProcessEngine({"net": network}, runtime=runtime)
            assert engine.models["net"].digest == expected
        assert isinstance(network.stream(runtime=runtime)._model, OnnxLMANet)
    library.library.cache_clear()
    assert [record.name for record in caplog.records] == ["segstream.shared_library"]
    assert "using ONNX Runtime" in caplog.text
