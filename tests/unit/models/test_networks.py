"""Networks of one's own: what adapt takes and refuses, and how a checkpoint finds them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from segstream.engine import InProcessEngine, Step
from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig, adapt, import_networks, load, save
from segstream.models.erfnet import erfnet
from segstream.pages import empty_pages
from tests.support.models import as_frames, make_video, segment_alone
from tests.support.networks import (
    ENTRY,
    PATCHES,
    PatchDecoder,
    PatchEncoder,
    make_patches_lmanet,
    patches,
)

FUSIONS = ["sigmoid-do1", "sigmoid-down1", "gated-scores"]
NETWORKS = {PATCHES: patches}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "patches.safetensors"
    save(make_patches_lmanet(), path)
    return path


def test_frames_reach_the_network_in_its_own_colours() -> None:
    model = make_patches_lmanet()
    frames = torch.rand(1, 3, 16, 24)
    seen = model.spec.preprocessing(frames)
    for channel, (mean, std) in enumerate([(0.4, 0.2), (0.5, 0.25), (0.6, 0.3)]):
        wanted = (frames[:, 2 - channel] - mean) / std
        assert torch.allclose(seen[:, channel], wanted, atol=1e-6)
    means = nn.functional.avg_pool2d(seen, 4)
    assert torch.equal(model.encode(frames).skips[0], means)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_window_call_equals_streaming_its_frames(fusion: str) -> None:
    model = make_patches_lmanet(fusion).double()
    frames = torch.rand(2, 3, 3, 37, 50, dtype=torch.float64)
    stream = model.stream()
    logits = [stream.step(frame) for frame in frames.unbind(1)]
    assert logits[-1].shape == (2, 12, 37, 50)
    window = model.segment_window(frames)
    assert torch.allclose(window, logits[-1], atol=1e-9)
    assert not torch.allclose(window, model.segment_single(frames[:, -1]), atol=1e-3)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_memory_learns_and_the_rest_may_be_frozen(fusion: str) -> None:
    model = make_patches_lmanet(fusion).train()
    memory = [model.memory_head, model.query_head, model.fusion]
    for part in memory:
        part.requires_grad_(True)
    logits = model.segment_window(torch.rand(2, 3, 3, 32, 40))
    logits.square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grads[name] is None for name in grads if name.startswith(("encoder", "decoder")))
    for part in memory:
        assert any(p.grad is not None and p.grad.any() for p in part.parameters())


async def test_engine_gives_the_label_maps_of_a_stream() -> None:
    model = make_patches_lmanet()
    engine = InProcessEngine({"net": model})
    engine.start()
    video = make_video(4, 50, 60)
    pages = empty_pages(model.page_geometry(50, 60), 3)
    assert pages.values.shape == (3, 2, 7, 8, 64)
    found = []
    for index, image in enumerate(video):
        read = tuple((index - age) % 3 for age in range(min(index, 2), 0, -1))
        result = await engine.step(Step("net", image, pages, read, index % 3))
        found.append(result.label_map)
    await engine.stop()
    for label_map, expected in zip(found, segment_alone(make_patches_lmanet(), video), strict=True):
        assert label_map is not None
        np.testing.assert_array_equal(label_map, expected)


@pytest.mark.parametrize("runtime", ["native", "onnx"])
def test_runtime_without_the_network_is_refused(runtime: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"{runtime}.*{PATCHES}"):
        make_patches_lmanet().stream(runtime=runtime)
    with pytest.raises(InvalidInputError, match=f"{runtime}.*{PATCHES}"):
        InProcessEngine({"net": make_patches_lmanet()}, runtime=runtime).start()


def test_checkpoint_comes_back_with_its_network_and_colours(checkpoint: Path) -> None:
    model, loaded = make_patches_lmanet(), load(checkpoint, networks=NETWORKS)
    assert (loaded.config, loaded.spec) == (model.config, model.spec)
    frame = as_frames(make_video(1)[0])
    assert torch.allclose(loaded.stream().step(frame), model.stream().step(frame), atol=1e-5)


def test_preprocessing_of_the_checkpoint_counts(checkpoint: Path) -> None:
    rewrite(checkpoint, preprocessing='{"mean": [0, 0, 0.5], "std": [1, 1, 2], "is_bgr": false}')
    preprocessing = load(checkpoint, networks=NETWORKS).spec.preprocessing
    assert preprocessing.mean == (0.0, 0.0, 0.5)
    assert preprocessing.std == (1.0, 1.0, 2.0)
    assert not preprocessing.is_bgr


def rewrite(path: Path, **metadata: str) -> None:
    with safe_open(path, framework="pt") as file:
        before = file.metadata()
    save_file(load_file(path), path, before | metadata)


@pytest.mark.parametrize("name", [PATCHES, "os:getcwd", "x=os:getcwd", "../patches"])
def test_checkpoint_runs_no_code_that_it_names(checkpoint: Path, name: str) -> None:
    rewrite(checkpoint, network=name)
    with pytest.raises(NotFoundError, match=r"no network .*erfnet.*--network"):
        load(checkpoint)


@pytest.mark.parametrize(
    "value",
    ["", "{}", "[1]", '{"mean": [0, 0], "std": [1, 1, 1], "is_bgr": false}']
    + [f'{{"mean": [0, 0, {bad}], "std": [1, 1, 1], "is_bgr": false}}' for bad in ("NaN", '"x"')]
    + ['{"mean": [0, 0, 0], "std": [1, 0, 1], "is_bgr": false}'],
)
def test_preprocessing_that_makes_no_sense_is_the_files_fault(checkpoint: Path, value: str) -> None:
    rewrite(checkpoint, preprocessing=value)
    with pytest.raises(InvalidInputError, match=checkpoint.name) as refused:
        load(checkpoint, networks=NETWORKS)
    assert refused.value.field == "model"


def test_network_is_imported_by_its_entry(checkpoint: Path) -> None:
    assert load(checkpoint, networks=import_networks([ENTRY])).spec.name == PATCHES


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        (["patches"], "NAME=MODULE:FUNCTION"),
        (["patches=os.getcwd"], "NAME=MODULE:FUNCTION"),
        (["patches=nowhere_to_be_found:patches"], "nowhere_to_be_found"),
        (["patches=tests.support.networks:nothing"], "nothing"),
        (["erfnet=tests.support.networks:patches"], "'erfnet' is there already"),
        ([ENTRY, ENTRY], "'patches' is there already"),
    ],
)
def test_entry_that_names_no_network_is_refused(entries: list[str], told: str) -> None:
    with pytest.raises(InvalidInputError, match=told):
        import_networks(entries)


class Shared(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, features: Tensor, _: Tensor) -> Tensor:
        return features


ENCODER = PatchEncoder()
UNFIT: list[tuple[str, Callable[[], object]]] = [
    ("share 2 parameters", lambda: adapt("x", ENCODER, Shared(ENCODER), stride=8)),
    (r"encoder.*\(1, 128, 4, 4\)", lambda: adapt("x", ENCODER, PatchDecoder(12), stride=4)),
    (
        r"decoder.*\(1, 12, 64\)",
        lambda: adapt("x", nn.Conv2d(3, 12, 8, stride=8), nn.Flatten(2), stride=8),
    ),
    ("stride is 0", lambda: adapt("x", ENCODER, PatchDecoder(12), stride=0)),
    ("remainder 2", lambda: adapt("x", ENCODER, PatchDecoder(12), stride=8, remainder=2)),
    ("std must be above 0", lambda: adapt("x", ENCODER, PatchDecoder(12), stride=8, std=(1, 0, 1))),
    ("mean must be 3 numbers", lambda: adapt("x", ENCODER, PatchDecoder(12), stride=8, mean=(1,))),
    ("num_channels is 12.*13", lambda: LMANet(LMANetConfig(CAMVID, 12), patches(13))),
    ("fusion is 'sum'", lambda: LMANetConfig(CAMVID, 12, fusion="sum")),
]


@pytest.mark.parametrize(("told", "make"), UNFIT, ids=[told for told, _ in UNFIT])
def test_what_does_not_fit_together_is_refused(told: str, make: Callable[[], object]) -> None:
    with pytest.raises(InvalidInputError, match=told):
        make()


def test_adapting_leaves_the_modules_as_they_were() -> None:
    encoder, decoder = PatchEncoder(), nn.Sequential(nn.Conv2d(128, 12, 1), nn.BatchNorm2d(12))
    decoder.eval()
    before = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}

    class First(nn.Module):
        def forward(self, frames: Tensor) -> Tensor:
            features: Tensor = encoder(frames)[0]
            return features

    adapt("x", First(), decoder, stride=8)
    assert encoder.training
    assert not decoder.training
    assert all(torch.equal(before[name], tensor) for name, tensor in decoder.state_dict().items())


def test_on_a_gpu_some_networks_have_a_layout_of_their_own() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    mine = adapt("mine", nn.Conv2d(3, 4, 8, stride=8), nn.Conv2d(4, 12, 1), stride=8)
    assert erfnet(12).spec.layout(gpu) is torch.contiguous_format
    assert mine.spec.layout(gpu) is torch.channels_last
    assert {network.spec.layout(cpu) for network in (mine, erfnet(12))} == {torch.channels_last}
