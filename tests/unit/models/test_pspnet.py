"""LMANet on PSPNet, and PSPNet alone, through files with the published keys."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from segstream.errors import InvalidInputError
from segstream.label_sets import CITYSCAPES
from segstream.models import LMANet, LMANetConfig, load
from segstream.models.checkpoint import Outcome, import_file
from segstream.models.pspnet import pspnet50
from tests import oracle_pspnet as oracle
from tests.oracle import FloatArray

PUBLISHED_KEYS = Path(__file__).parents[4] / "shared/docs/state_dict_lmanet_psp101.txt"
NUM_KEYS = 690


def write(weights: dict[str, np.ndarray], path: Path) -> Path:
    counts = {name for name in weights if name.endswith("num_batches_tracked")}
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    torch.save(
        {f"module.{n}": tensor.long() if n in counts else tensor for n, tensor in tensors.items()},
        path,
    )
    return path


def make_video(length: int, size: tuple[int, int]) -> list[FloatArray]:
    rng = np.random.default_rng(0)
    scene = rng.uniform(0.0, 1.0, (3, *size))
    frames = []
    for _ in range(length):
        scene = np.roll(scene, (1, 2), axis=(1, 2))
        light = rng.uniform(0.3, 1.0, (3, 1, 1))
        frames.append((light * scene).astype(np.float32).astype(np.float64))
    return frames


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return oracle.random_weights(oracle.published_shapes(), seed=0)


@pytest.fixture(scope="module")
def published_file(
    weights: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write(weights, tmp_path_factory.mktemp("published") / "lmanet_psp101.pth")


@pytest.mark.skipif(not PUBLISHED_KEYS.exists(), reason=f"{PUBLISHED_KEYS} is not here")
def test_the_generated_file_has_the_published_keys() -> None:
    rows = (line.split("\t") for line in PUBLISHED_KEYS.read_text().splitlines() if line)
    published = {
        key: tuple(map(int, shape.strip("()").replace(",", " ").split())) for key, shape, *_ in rows
    }
    shapes = {f"module.{name}": shape for name, shape in oracle.published_shapes().items()}
    assert len(published) == NUM_KEYS
    assert shapes == published


def test_every_published_key_is_accounted_for(
    published_file: Path, weights: dict[str, np.ndarray]
) -> None:
    imported = import_file(published_file)
    assert not imported.faults
    assert Counter(key.outcome for key in imported.keys) == {Outcome.TAKEN: 688, Outcome.UNUSED: 2}
    assert {key.key for key in imported.keys} == {f"module.{name}" for name in weights}
    unused = [key.key for key in imported.keys if key.outcome is Outcome.UNUSED]
    assert unused == [f"module.memory_fusion.conv_layer_2.{part}" for part in ("weight", "bias")]
    state = imported.model.state_dict()
    for key in imported.keys:
        if key.outcome is Outcome.TAKEN:
            theirs = torch.from_numpy(weights[key.key.removeprefix("module.")])
            assert torch.equal(state[key.name].float(), theirs), key


def test_stream_agrees_with_the_oracle(
    published_file: Path, weights: dict[str, np.ndarray]
) -> None:
    model = load(published_file, memory_length=2, window_size=5)
    assert model.page_geometry(65, 129).value_shape == (32, 9, 17, 64)
    video = make_video(2, (65, 129))
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    expected = oracle.stream(video, exact, 2, 5)
    spread = float(np.std(expected[1]))
    last = torch.from_numpy(video[-1])[None].float()
    alone = model.segment_single(last)[0].numpy()
    assert np.abs(expected[1] - alone).max() > 0.1 * spread, "the memory matters"
    for dtype, tolerance in ((torch.float32, 1e-3), (torch.float64, 1e-9)):
        stream = model.to(dtype).stream()
        for frame, logits in zip(video, expected, strict=True):
            found = stream.step(torch.from_numpy(frame)[None].to(dtype))[0].numpy()
            np.testing.assert_allclose(found, logits, rtol=0, atol=tolerance * spread)


@pytest.fixture(scope="module")
def semseg_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, np.ndarray]]:
    """semseg's own: a single-frame network, wrapped, with an auxiliary head."""
    weights = oracle.random_weights(oracle.single_frame_shapes(50), seed=1)
    path = tmp_path_factory.mktemp("semseg") / "train_epoch_200.pth"
    state = {f"module.{oracle.semseg_name(n)}": torch.from_numpy(a) for n, a in weights.items()}
    state["module.aux.0.weight"] = torch.zeros(256, 1024, 3, 3)
    torch.save({"epoch": 200, "state_dict": state, "optimizer": {"lr": torch.zeros(1)}}, path)
    return path, weights


def test_single_frame_file_of_semseg_segments_every_frame_alone(
    semseg_file: tuple[Path, dict[str, np.ndarray]],
) -> None:
    path, weights = semseg_file
    imported = import_file(path)
    assert not imported.faults
    model = imported.model
    outcomes = Counter(key.outcome for key in imported.keys)
    assert (outcomes[Outcome.TAKEN], outcomes[Outcome.UNUSED]) == (len(weights), 1)
    assert model.spec.name == "pspnet50"
    assert not model.config.has_memory
    video = make_video(2, (60, 52))
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    stream = model.double().stream()
    for frame in video:
        expected = oracle.segment_single(frame, exact, 50)
        found = stream.step(torch.from_numpy(frame)[None])[0].numpy()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9 * float(np.std(expected)))


def test_new_memory_of_a_single_frame_file_is_the_same_each_time_and_can_be_used(
    semseg_file: tuple[Path, dict[str, np.ndarray]],
) -> None:
    one, other = (load(semseg_file[0], memory_length=2).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert load(semseg_file[0], memory_length=2).config.has_memory


def test_wrong_number_of_channels_is_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"num_channels is 20.*'pspnet50'.*21"):
        LMANet(LMANetConfig(CITYSCAPES, 20), pspnet50(21))
