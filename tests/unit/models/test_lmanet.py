"""LMANet against the float64 oracle, through published checkpoint files."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from segstream.errors import InvalidInputError
from segstream.label_sets import CAMVID, CITYSCAPES
from segstream.models import LMANet, LMANetConfig, load
from segstream.pages import Pages
from tests import oracle
from tests.oracle import FloatArray, OracleStream

SEED = 7
SINK_NAME = "memory_module_local.const"
MEMORIES = [(1, 1), (1, 5), (2, 9), (3, 3), (4, 21)]
TOLERANCES = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


@pytest.fixture(scope="module")
def weights() -> dict[str, FloatArray]:
    return oracle.random_weights(SEED)


@pytest.fixture(scope="module")
def published_file(
    weights: dict[str, FloatArray], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    return write_published(weights, tmp_path_factory.mktemp("published") / "lmanet_erf.pth")


def write_published(weights: dict[str, FloatArray], path: Path) -> Path:
    torch.save({f"module.{name}": as_published(name, w) for name, w in weights.items()}, path)
    return path


def as_published(name: str, array: FloatArray) -> Tensor:
    is_count = name.endswith("num_batches_tracked")
    return torch.from_numpy(array).to(torch.int64 if is_count else torch.float32)


def make_video(length: int, size: tuple[int, int] = (40, 56), *, seed: int = 0) -> list[FloatArray]:
    """Frames exact in float32, each in a light of its own, so that every memory differs."""
    rng = np.random.default_rng(seed)
    scene = rng.uniform(0.0, 1.0, (3, *size))
    frames = []
    for _ in range(length):
        scene = np.roll(scene, (1, 2), axis=(1, 2))
        light = rng.uniform(0.0, 1.0, (3, 1, 1))
        frames.append((light * scene).astype(np.float32).astype(np.float64))
    return frames


def as_batch(*frames: FloatArray, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.stack(frames)).to(dtype)


def assert_close(actual: Tensor, expected: FloatArray | Tensor, tolerance: float) -> None:
    wanted = expected.numpy() if isinstance(expected, Tensor) else expected
    np.testing.assert_allclose(actual.numpy(), wanted, rtol=0, atol=tolerance)


def assert_streams_like_oracle(
    model: LMANet,
    weights: dict[str, FloatArray],
    video: list[FloatArray],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    stream = model.to(dtype).stream()
    expected = OracleStream(weights, model.config.memory_length, model.config.window_size)
    for frame in video:
        assert_close(stream.step(as_batch(frame, dtype=dtype))[0], expected.step(frame), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize(("memory_length", "window_size"), MEMORIES)
def test_stream_agrees_with_the_oracle_from_empty_to_rotating_memory(
    published_file: Path,
    weights: dict[str, FloatArray],
    memory_length: int,
    window_size: int,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = load(published_file, memory_length=memory_length, window_size=window_size)
    video = make_video(memory_length + 4)
    assert_streams_like_oracle(model, weights, video, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("size", [(41, 50), (39, 63), (24, 33), (7, 9), (1, 1), (8, 8)])
def test_any_frame_size_is_padded_with_its_border_and_cropped_back(
    published_file: Path,
    weights: dict[str, FloatArray],
    size: tuple[int, int],
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    model = load(published_file, memory_length=2, window_size=5)
    assert_streams_like_oracle(model, weights, make_video(4, size), dtype, tolerance)


def test_wide_frame_agrees_with_the_oracle(
    published_file: Path, weights: dict[str, FloatArray]
) -> None:
    model = load(published_file, memory_length=2, window_size=9)
    assert_streams_like_oracle(model, weights, make_video(4, (24, 296)), torch.float64, 1e-9)


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.parametrize("sink", [-3.0, 4.0])
def test_learned_sink_agrees_with_the_oracle(
    weights: dict[str, FloatArray],
    tmp_path: Path,
    sink: float,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    with_sink = {**weights, SINK_NAME: np.array([sink])}
    path = write_published(with_sink, tmp_path / "sink.pth")
    model = load(path, memory_length=2, window_size=5)
    assert model.config.has_sink
    assert_streams_like_oracle(model, with_sink, make_video(4), dtype, tolerance)


def test_oracle_tells_memories_apart(weights: dict[str, FloatArray]) -> None:
    """The tolerances mean something only if memory, T, P and sink move the logits far more."""
    loosest = max(tolerance for _, tolerance in TOLERANCES)
    video = make_video(6)
    base = oracle.segment_window(video, weights, 4, 5)
    others = [
        oracle.segment_window(video[-1:], weights, 4, 5),
        oracle.segment_window(video, weights, 3, 5),
        oracle.segment_window(video, weights, 4, 3),
        oracle.segment_window(video, {**weights, SINK_NAME: np.array([4.0])}, 4, 5),
    ]
    for other in others:
        assert np.abs(other - base).max() > 20 * loosest


@pytest.mark.parametrize("length", [1, 2, 3, 4])
def test_window_call_equals_streaming_its_frames(
    published_file: Path, weights: dict[str, FloatArray], length: int
) -> None:
    model = load(published_file, memory_length=3, window_size=5).double()
    video = make_video(length, (41, 50))
    stream = model.stream()
    for frame in video:
        streamed = stream.step(as_batch(frame))
    window = model.segment_window(as_batch(*video).unsqueeze(0))
    assert window.shape == (1, oracle.NUM_CHANNELS, 41, 50)
    assert_close(window, streamed, 1e-10)
    assert_close(window[0], oracle.segment_window(video, weights, 3, 5), 1e-9)


def test_full_stream_equals_a_window_over_its_last_frames(published_file: Path) -> None:
    model = load(published_file, memory_length=2, window_size=5).double()
    video = make_video(7)
    stream = model.stream()
    for last, frame in enumerate(video):
        streamed = stream.step(as_batch(frame))
        window = model.segment_window(as_batch(*video[max(0, last - 2) : last + 1]).unsqueeze(0))
        assert_close(streamed, window, 1e-10)


def test_window_call_keeps_batch_items_apart(published_file: Path) -> None:
    model = load(published_file, window_size=5).double()
    videos = [make_video(3, seed=seed) for seed in range(3)]
    batch = torch.stack([as_batch(*video) for video in videos])
    together = model.segment_window(batch)
    for item in range(3):
        assert_close(together[item : item + 1], model.segment_window(batch[item : item + 1]), 1e-10)


def test_single_frame_network_is_the_first_step_of_a_stream(
    published_file: Path, weights: dict[str, FloatArray]
) -> None:
    model = load(published_file).double()
    (frame,) = make_video(1, (41, 50))
    single = model.segment_single(as_batch(frame))
    assert_close(single, model.stream().step(as_batch(frame)), 1e-10)
    assert_close(single[0], OracleStream(weights, 4, 21).step(frame), 1e-9)


def test_videos_side_by_side_equal_each_alone(published_file: Path) -> None:
    model = load(published_file, memory_length=2, window_size=5).double()
    videos = [make_video(5, seed=seed) for seed in range(3)]
    together, alone = model.stream(), [model.stream() for _ in videos]
    for frames in zip(*videos, strict=True):
        logits = together.step(as_batch(*frames))
        for item, frame in enumerate(frames):
            assert_close(logits[item : item + 1], alone[item].step(as_batch(frame)), 1e-10)


def test_streams_of_one_model_do_not_share_memory(published_file: Path) -> None:
    model = load(published_file, memory_length=2, window_size=5).double()
    first, second = model.stream(), model.stream()
    video, other = make_video(2), make_video(2, seed=1)
    opening = first.step(as_batch(video[0]))
    second.step(as_batch(other[0]))
    first.step(as_batch(video[1]))
    assert_close(model.stream().step(as_batch(video[0])), opening, 0)


@pytest.mark.parametrize("unwritten", [0.0, float("nan")])
def test_forward_batches_sessions_of_different_age(
    published_file: Path, weights: dict[str, FloatArray], unwritten: float
) -> None:
    """A new, a young and a full session in one call; the pool starts with any content."""
    model = load(published_file, memory_length=2, window_size=5).double()
    videos = [make_video(3, seed=seed) for seed in range(3)]
    geometry = model.page_geometry(40, 56)
    size = (geometry.height, geometry.width)
    pages = Pages(
        torch.full((10, *size, geometry.key_channels), unwritten, dtype=torch.float64),
        torch.full((10, *size, geometry.value_channels), unwritten, dtype=torch.float64),
    )

    def forward(frames: list[FloatArray], read: list[list[int]], write: list[int]) -> Tensor:
        read_slots = torch.tensor(read, dtype=torch.int32)
        logits: Tensor = model(as_batch(*frames), pages, read_slots, torch.tensor(write))
        return logits

    forward([videos[2][0], videos[1][0]], [[-1, -1], [-1, -1]], [8, 3])
    forward([videos[2][1]], [[-1, 8]], [5])
    logits = forward(
        [videos[0][0], videos[1][1], videos[2][2]], [[-1, -1], [-1, 3], [8, 5]], [1, 9, 2]
    )
    for item in range(3):
        expected = oracle.segment_window(videos[item][: item + 1], weights, 2, 5)
        assert_close(logits[item], expected, 1e-9)


def test_forward_memorises_the_frame_in_the_slot_it_was_given(
    published_file: Path, weights: dict[str, FloatArray]
) -> None:
    model = load(published_file).double()
    (frame,) = make_video(1)
    pages = Pages(torch.zeros(3, 5, 7, 16).double(), torch.zeros(3, 5, 7, 64).double())
    model(as_batch(frame), pages, torch.tensor([[-1]], dtype=torch.int32), torch.tensor([1]))
    key, value = oracle.key_value(oracle.encode(frame, weights), weights, "kv_M_r4")
    assert_close(pages.keys[1], key.transpose(1, 2, 0), 1e-9)
    assert_close(pages.values[1], value.transpose(1, 2, 0), 1e-9)
    assert not pages.keys[[0, 2]].any()
    assert not pages.values[[0, 2]].any()


def test_reset_forgets_everything_and_allows_another_size(published_file: Path) -> None:
    model = load(published_file, memory_length=2, window_size=5).double()
    stream = model.stream()
    for frame in make_video(3):
        stream.step(as_batch(frame))
    stream.reset()
    fresh = model.stream()
    for frame in make_video(3, (24, 32), seed=1):
        assert_close(stream.step(as_batch(frame)), fresh.step(as_batch(frame)), 0)


def test_logits_of_a_step_survive_the_next_one(published_file: Path) -> None:
    stream = load(published_file, memory_length=1, window_size=3).stream()
    video = make_video(3)
    first = stream.step(as_batch(video[0], dtype=torch.float32))
    kept = first.clone()
    for frame in video[1:]:
        stream.step(as_batch(frame, dtype=torch.float32))
    assert torch.equal(first, kept)


def test_frames_given_to_a_stream_are_left_as_they_were(published_file: Path) -> None:
    frames = as_batch(*make_video(2), dtype=torch.float32)
    before = frames.clone()
    load(published_file).stream().step(frames)
    assert torch.equal(frames, before)


def test_every_published_key_finds_one_place(
    published_file: Path, weights: dict[str, FloatArray]
) -> None:
    """Each tensor is random and so told by its content alone."""
    published = sorted(as_published(name, w).numpy().tobytes() for name, w in weights.items())
    loaded = sorted(
        tensor.contiguous().numpy().tobytes()
        for tensor in load(published_file).state_dict().values()
    )
    assert len(published) == 374
    assert loaded == published


def test_every_weight_takes_part_in_training(published_file: Path) -> None:
    model = load(published_file, window_size=3).train().requires_grad_(True)
    videos = [as_batch(*make_video(2, (16, 24), seed=seed)).float() for seed in range(2)]
    logits = model.segment_window(torch.stack(videos))
    parameters = dict(model.named_parameters())
    gradients = torch.autograd.grad(logits.square().mean(), list(parameters.values()))
    for name, gradient in zip(parameters, gradients, strict=True):
        assert torch.isfinite(gradient).all(), name
        # The bias of a convolution that a batch norm follows has no effect in training.
        assert gradient.any() or name.endswith("bias"), name


@pytest.mark.parametrize("has_sink", [False, True])
def test_new_network_starts_with_equal_but_separate_key_heads(has_sink: bool) -> None:
    model = LMANet(LMANetConfig(CAMVID, 12, has_sink=has_sink))
    memory_key, query_key = model.memory_head.key, model.query_head.key
    assert torch.equal(memory_key.weight, query_key.weight)
    assert memory_key.bias is not None
    assert query_key.bias is not None
    assert torch.equal(memory_key.bias, query_key.bias)
    assert memory_key.weight is not query_key.weight
    assert not torch.equal(
        model.state_dict()["memory_head.value.weight"],
        model.state_dict()["query_head.value.weight"],
    )
    assert (model.sink is not None) == has_sink
    assert model.sink is None or model.sink.item() == 0.0


@pytest.mark.parametrize(
    "change",
    [{"memory_length": value} for value in (0, -1, 65)]
    + [{"window_size": value} for value in (0, 4, -3, 103)],
)
def test_configuration_out_of_bounds_is_named(change: dict[str, Any]) -> None:
    ((field, value),) = change.items()
    with pytest.raises(InvalidInputError, match=f"{field}.*{value}"):
        LMANetConfig(CITYSCAPES, 20, **change)


@pytest.mark.parametrize(
    ("field", "value"), [("memory_length", 0), ("window_size", 0), ("window_size", 4)]
)
def test_replacement_of_a_checkpoints_setting_must_be_in_bounds(
    published_file: Path, field: str, value: int
) -> None:
    with pytest.raises(InvalidInputError, match=field):
        load(published_file, **cast(Any, {field: value}))


def test_fewer_channels_than_classes_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"num_channels.*18.*19"):
        LMANetConfig(CITYSCAPES, 18)


BAD_FRAMES = {
    "no batch": torch.zeros(3, 16, 24),
    "a window": torch.zeros(1, 2, 3, 16, 24),
    "channels last": torch.zeros(1, 16, 24, 3),
    "grey": torch.zeros(1, 1, 16, 24),
    "bytes": torch.zeros(1, 3, 16, 24, dtype=torch.uint8),
    "no rows": torch.zeros(1, 3, 0, 24),
    "no columns": torch.zeros(1, 3, 16, 0),
    "double for a float model": torch.zeros(1, 3, 16, 24, dtype=torch.float64),
    "half for a float model": torch.zeros(1, 3, 16, 24, dtype=torch.float16),
}


@pytest.mark.parametrize("kind", BAD_FRAMES)
@pytest.mark.parametrize("num_frames_before", [0, 1])
def test_bad_frames_are_refused_and_leave_the_stream_as_it_was(
    published_file: Path, kind: str, num_frames_before: int
) -> None:
    model = load(published_file, memory_length=2, window_size=3)
    stream, untouched = model.stream(), model.stream()
    video = [as_batch(frame, dtype=torch.float32) for frame in make_video(3, (16, 24))]
    for frame in video[:num_frames_before]:
        stream.step(frame)
        untouched.step(frame)
    with pytest.raises(ValueError, match="frames"):
        stream.step(BAD_FRAMES[kind])
    for frame in video[num_frames_before:]:
        assert_close(stream.step(frame), untouched.step(frame), 0)


@pytest.mark.parametrize("shape", [(2, 3, 16, 24), (1, 3, 24, 24), (1, 3, 16, 25)])
def test_change_of_shape_within_a_stream_is_refused(
    published_file: Path, shape: tuple[int, ...]
) -> None:
    stream = load(published_file, memory_length=2, window_size=3).stream()
    stream.step(torch.zeros(1, 3, 16, 24))
    with pytest.raises(ValueError, match="reset"):
        stream.step(torch.zeros(shape))
    stream.step(torch.zeros(1, 3, 16, 24))


def test_failure_of_the_network_does_not_count_as_a_frame(
    published_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(published_file, memory_length=2, window_size=3)
    stream, untouched = model.stream(runtime="torch"), model.stream(runtime="torch")
    video = [as_batch(frame, dtype=torch.float32) for frame in make_video(4, (16, 24))]
    for frame in video[:2]:
        stream.step(frame)
        untouched.step(frame)

    def out_of_memory(frames: Tensor) -> Tensor:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(model, "encode", out_of_memory)
        with pytest.raises(RuntimeError, match="out of memory"):
            stream.step(video[2])
    for frame in video[2:]:
        assert_close(stream.step(frame), untouched.step(frame), 0)
