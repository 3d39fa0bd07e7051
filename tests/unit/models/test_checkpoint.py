"""Checkpoint files: what is taken, and what is refused with a word on why."""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from segstream.errors import InvalidInputError, NotFoundError
from segstream.label_sets import CAMVID, CITYSCAPES
from segstream.models import LMANet, LMANetConfig, available, checkpoint, load
from segstream.models.checkpoint import save
from tests.oracle import published_shapes

State = dict[str, Tensor]
Change = Callable[[State], Any]


@pytest.fixture(scope="module")
def model() -> LMANet:
    torch.manual_seed(0)
    config = LMANetConfig(CAMVID, 12, memory_length=3, window_size=7)
    return LMANet(config).eval()


@pytest.fixture(scope="module")
def published() -> State:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.tensor(7)
        if name.endswith("num_batches_tracked")
        else torch.rand(shape, generator=generator)
        for name, shape in published_shapes().items()
    }


@pytest.fixture
def own_file(model: LMANet, tmp_path: Path) -> Path:
    path = tmp_path / "own.safetensors"
    save(model, path)
    return path


def write_published(content: object, path: Path) -> Path:
    torch.save(content, path)
    return path


def assert_holds(model: LMANet, state: State) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    for name, tensor in state.items():
        assert torch.equal(own[name], tensor), name


def test_saved_network_comes_back_whole(model: LMANet, own_file: Path) -> None:
    loaded = load(own_file)
    assert loaded.config == model.config
    assert_holds(loaded, model.state_dict())


def test_loaded_network_is_for_inference(own_file: Path) -> None:
    loaded = load(own_file)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_half_precision_file_is_half_as_large_and_loads_as_float(
    model: LMANet, own_file: Path, tmp_path: Path
) -> None:
    half_file = tmp_path / "half.safetensors"
    save(model, half_file, dtype=torch.float16)
    assert half_file.stat().st_size < 0.6 * own_file.stat().st_size
    rounded = {
        name: tensor.half().float() if tensor.is_floating_point() else tensor
        for name, tensor in model.state_dict().items()
    }
    assert_holds(load(half_file), rounded)


def test_learned_sink_is_kept(tmp_path: Path) -> None:
    model = LMANet(LMANetConfig(CAMVID, 12, has_sink=True))
    assert model.sink is not None
    with torch.no_grad():
        model.sink.fill_(0.25)
    save(model, tmp_path / "sink.safetensors")
    loaded = load(tmp_path / "sink.safetensors")
    assert loaded.config.has_sink
    assert loaded.sink is not None
    assert loaded.sink.item() == 0.25


def test_loaded_network_may_be_saved_again(model: LMANet, own_file: Path, tmp_path: Path) -> None:
    """Its weights lie in another memory format."""
    again = tmp_path / "again.safetensors"
    save(load(own_file), again)
    assert load(again).config == model.config
    assert_holds(load(again), model.state_dict())


def test_file_states_what_its_weights_do_not(own_file: Path) -> None:
    with safe_open(own_file, framework="pt") as file:
        assert file.metadata() == {
            "format": "segstream/1",
            "network": "erfnet",
            "preprocessing": '{"is_bgr": false, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}',
            "fusion": "sigmoid-do1",
            "key_channels": "16",
            "has_memory": "true",
            "label_set": "camvid",
            "num_channels": "12",
            "memory_length": "3",
            "window_size": "7",
        }


def test_saving_leaves_nothing_but_the_file(own_file: Path) -> None:
    assert list(own_file.parent.iterdir()) == [own_file]


def test_failed_save_keeps_the_file_that_was_there(
    model: LMANet, own_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = own_file.read_bytes()

    def disk_full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", disk_full)
    with pytest.raises(OSError, match="no space"):
        save(model, own_file)
    assert own_file.read_bytes() == before


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".tar"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_published_file_finds_a_place_for_every_key(
    published: State, tmp_path: Path, suffix: str, prefix: str
) -> None:
    assert len(published) == 374
    content = {f"{prefix}{name}": tensor for name, tensor in published.items()}
    loaded = load(write_published(content, tmp_path / f"lmanet{suffix}"))
    assert loaded.config == LMANetConfig(CITYSCAPES, 20, memory_length=4, window_size=21)
    fingerprints = [tensor.contiguous().numpy().tobytes() for tensor in published.values()]
    own = [tensor.contiguous().numpy().tobytes() for tensor in loaded.state_dict().values()]
    assert sorted(own) == sorted(fingerprints)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("encoder.layers.7.conv3x1_1.weight", "encoder.layers.7.conv3x1_1.weight"),
        ("kv_M_r4.Key.weight", "memory_head.key.weight"),
        ("kv_M_r4.Value.bias", "memory_head.value.bias"),
        ("kv_Q_r4.Key.bias", "query_head.key.bias"),
        ("kv_Q_r4.Value.weight", "query_head.value.weight"),
        ("memory_fusion.bn1.running_mean", "fusion.query_bn.running_mean"),
        ("memory_fusion.bn2.weight", "fusion.memory_bn.weight"),
        ("memory_fusion.bn.running_var", "fusion.bn.running_var"),
        ("memory_fusion.conv_layer_1.weight", "fusion.query_conv.weight"),
        ("memory_fusion.conv_layer_2.weight", "fusion.memory_conv.weight"),
        ("memory_fusion.conv_layer_3.weight", "fusion.query_gate.weight"),
        ("memory_fusion.conv_layer_4.bias", "fusion.memory_gate.bias"),
    ],
)
def test_published_names_mean_what_the_paper_says(
    published: State, tmp_path: Path, theirs: str, ours: str
) -> None:
    loaded = load(write_published(published, tmp_path / "lmanet.pth"))
    assert torch.equal(loaded.state_dict()[ours], published[theirs])


def test_published_file_may_be_wrapped(published: State, tmp_path: Path) -> None:
    plain = load(write_published(published, tmp_path / "plain.pth"))
    content = {"epoch": 150, "arch": "lmanet", "state_dict": OrderedDict(published)}
    wrapped = load(write_published(content, tmp_path / "wrapped.pth.tar"))
    assert_holds(wrapped, plain.state_dict())


def test_published_sink_is_taken(published: State, tmp_path: Path) -> None:
    content = published | {"memory_module_local.const": torch.tensor([0.5])}
    loaded = load(write_published(content, tmp_path / "lmanet.pth"))
    assert loaded.config.has_sink
    assert loaded.sink is not None
    assert loaded.sink.item() == 0.5


def test_classifier_left_over_in_the_encoder_is_ignored(published: State, tmp_path: Path) -> None:
    content = published | {
        "encoder.output_conv.weight": torch.rand(20, 128, 1, 1),
        "encoder.output_conv.bias": torch.rand(20),
    }
    loaded = load(write_published(content, tmp_path / "lmanet.pth"))
    assert_holds(loaded, load(write_published(published, tmp_path / "plain.pth")).state_dict())


def test_published_camvid_network_is_told_by_its_channels(published: State, tmp_path: Path) -> None:
    content = published | {
        "decoder.output_conv.weight": torch.rand(16, 12, 2, 2),
        "decoder.output_conv.bias": torch.rand(12),
    }
    loaded = load(write_published(content, tmp_path / "lmanet.pth"))
    assert loaded.config.label_set is CAMVID


def test_published_network_of_unheard_of_classes_is_refused(
    published: State, tmp_path: Path
) -> None:
    content = published | {"decoder.output_conv.weight": torch.rand(16, 33, 2, 2)}
    with pytest.raises(InvalidInputError, match=r"33.*20.*cityscapes"):
        load(write_published(content, tmp_path / "lmanet.pth"))


UNFIT: list[tuple[str, Change, list[str]]] = [
    ("missing", lambda state: state.pop("decoder.layers.4.bn2.weight"), ["missing {}"]),
    ("unexpected", lambda state: state.update({"head.weight": torch.zeros(1)}), ["unexpected {}"]),
    (
        "misshapen",
        lambda state: state.update({"encoder.layers.3.bn1.weight": torch.zeros(65)}),
        ["{} has shape (65,), must have (64,)"],
    ),
]
UNFIT_NAMES = {
    "missing": "decoder.layers.4.bn2.weight",
    "unexpected": "head.weight",
    "misshapen": "encoder.layers.3.bn1.weight",
}


@pytest.mark.parametrize(("kind", "change", "words"), UNFIT, ids=[kind for kind, _, _ in UNFIT])
@pytest.mark.parametrize("is_published", [True, False])
def test_key_that_does_not_fit_is_named(
    published: State,
    own_file: Path,
    tmp_path: Path,
    is_published: bool,
    kind: str,
    change: Change,
    words: list[str],
) -> None:
    if is_published:
        content = dict(published)
        change(content)
        path = write_published(content, tmp_path / "unfit.pth")
    else:
        path = rewrite(own_file, change)
    with pytest.raises(InvalidInputError) as refused:
        load(path)
    for word in words:
        assert word.format(UNFIT_NAMES[kind]) in refused.value.message
    assert "1 keys do not fit" in refused.value.message
    assert str(path) in refused.value.message
    assert refused.value.field == "model"


def test_every_key_that_does_not_fit_is_named(published: State, tmp_path: Path) -> None:
    content = dict(published)
    for _, change, _ in UNFIT:
        change(content)
    with pytest.raises(InvalidInputError, match="3 keys do not fit") as refused:
        load(write_published(content, tmp_path / "unfit.pth"))
    for name in UNFIT_NAMES.values():
        assert name in refused.value.message


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("kv_M_r4.Key.weight", None, "missing {}"),
        ("memory_fusion.conv_layer_3.bias", None, "missing {}"),
        ("kv_init_r4.Key.weight", torch.zeros(16, 128, 3, 3), "unexpected {}"),
        ("memory_fusion.bn1.weight", torch.zeros(65), "{} has shape (65,), must have (64,)"),
        ("kv_Q_r4.Value.bias", torch.zeros(64, dtype=torch.complex64), "{} is torch.complex64"),
        ("kv_Q_r4.Value.bias", torch.zeros(64).to_sparse(), "must be dense real numbers"),
        ("kv_Q_r4.Value.bias", [0.0] * 64, "{} is a list, must be a tensor"),
        ("memory_module_local.const", torch.zeros(2), "{} has shape (2,), must have (1,)"),
    ],
)
def test_key_of_a_published_file_is_named_as_the_file_names_it(
    published: State, tmp_path: Path, prefix: str, key: str, value: object, told: str
) -> None:
    content = {f"{prefix}{name}": tensor for name, tensor in published.items()} | {
        f"{prefix}{key}": value
    }
    if value is None:
        del content[f"{prefix}{key}"]
    with pytest.raises(InvalidInputError) as refused:
        load(write_published(content, tmp_path / "unfit.pth"))
    assert told.format(f"{prefix}{key}") in refused.value.message


def test_key_that_is_there_twice_is_refused(published: State, tmp_path: Path) -> None:
    content = published | {"module.kv_M_r4.Key.bias": torch.zeros(16)}
    with pytest.raises(InvalidInputError, match=r"second key .* module\.kv_M_r4\.Key\.bias"):
        load(write_published(content, tmp_path / "twice.pth"))


def rewrite(path: Path, change: Change, **metadata: str) -> Path:
    """The file with other tensors, and other metadata where given."""
    with safe_open(path, framework="pt") as file:
        before = file.metadata()
    state = load_file(path)
    change(state)
    save_file(state, path, before | metadata)
    return path


def keep(_: State) -> None:
    """The tensors stay as they are."""


class Explosive:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickle_with_code_in_it_is_refused_and_not_run(
    published: State, tmp_path: Path, is_zip: bool
) -> None:
    crater, path = tmp_path / "crater", tmp_path / "explosive.pth"
    content = published | {"extra": Explosive(crater)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    with pytest.raises(
        InvalidInputError, match=r"not a file of tensors \(it holds getattr"
    ) as refused:
        load(path)
    assert not crater.exists()
    assert "weights_only" not in refused.value.message, "no advice to load it all the same"


def test_bare_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    crater, path = tmp_path / "crater", tmp_path / "explosive.pth"
    path.write_bytes(pickle.dumps(Explosive(crater)))
    with pytest.raises(InvalidInputError):
        load(path)
    assert not crater.exists()


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(1)], {"epoch": 3}, torch.zeros(3), {"state_dict": {"epoch": 3}}, {}],
    ids=["a list", "numbers", "one tensor", "wrapped numbers", "nothing"],
)
def test_published_file_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError) as refused:
        load(write_published(content, tmp_path / "other.pth"))
    assert refused.value.field == "model"


@pytest.mark.parametrize("name", ["broken.pth", "broken.safetensors"])
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80" * 64, b"\xff" * 4096])
def test_file_of_noise_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=name):
        load(path)


@pytest.mark.parametrize("kept", [0.0001, 0.01, 0.5, 0.999])
def test_truncated_file_is_refused(own_file: Path, kept: float) -> None:
    data = own_file.read_bytes()
    own_file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InvalidInputError, match="not a safetensors file"):
        load(own_file)


def test_truncated_published_file_is_refused(published: State, tmp_path: Path) -> None:
    path = write_published(published, tmp_path / "lmanet.pth")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InvalidInputError, match="not a file of tensors"):
        load(path)


def test_safetensors_of_another_program_is_refused(model: LMANet, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(InvalidInputError, match=r"'format' is None.*segstream/1"):
        load(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("format", "segstream/2"),
        ("label_set", "pascal"),
        ("label_set", "cityscapes"),
        ("memory_length", "0"),
        ("memory_length", "65"),
        ("memory_length", "many"),
        ("window_size", "4"),
        ("window_size", ""),
    ],
)
def test_metadata_that_makes_no_sense_is_the_files_fault(
    own_file: Path, name: str, value: str
) -> None:
    rewrite(own_file, keep, **{name: value})
    with pytest.raises(InvalidInputError, match=own_file.name) as refused:
        load(own_file)
    assert refused.value.field == "model"


def test_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.touch()
    with pytest.raises(InvalidInputError, match=r"\.safetensors.*\.pth"):
        load(path)


@pytest.fixture
def packaged(own_file: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the checkpoints of the package."""
    (own_file.parent / "__init__.py").touch()
    (own_file.parent / "README.md").touch()
    monkeypatch.setattr(checkpoint, "files", lambda package: own_file.parent)
    return own_file


def test_packaged_checkpoint_is_loaded_by_its_name(packaged: Path, model: LMANet) -> None:
    assert available() == ["own"]
    assert_holds(load("own"), model.state_dict())


@pytest.mark.parametrize("name", ["oven", "", "README", "own.safetensors", "/nowhere/x.pth"])
def test_unknown_name_is_refused_with_the_known_ones(packaged: Path, name: str) -> None:
    with pytest.raises(NotFoundError, match=r"\['own'\]") as refused:
        load(name)
    assert refused.value.field == "model"
    assert repr(name) in refused.value.message


def test_folder_is_no_checkpoint(packaged: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load(tmp_path)


@pytest.mark.parametrize(("memory_length", "window_size"), [(None, None), (1, 1), (64, 101)])
def test_length_and_window_may_be_replaced(
    own_file: Path, memory_length: int | None, window_size: int | None
) -> None:
    config = load(own_file, memory_length=memory_length, window_size=window_size).config
    assert (config.memory_length, config.window_size) == (memory_length or 3, window_size or 7)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_length", 0),
        ("memory_length", -1),
        ("memory_length", 65),
        ("window_size", 0),
        ("window_size", 4),
        ("window_size", 103),
    ],
)
def test_replacement_out_of_bounds_is_the_callers_fault(
    own_file: Path, name: str, value: int
) -> None:
    with pytest.raises(InvalidInputError, match=f"{name}.*{value}"):
        load(own_file, **cast(Any, {name: value}))
