import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from segstream.cli import app
from segstream.models import load
from tests.oracle import published_shapes


@pytest.fixture
def published(tmp_path: Path) -> Path:
    path = tmp_path / "lmanet_erf.pth"
    state = {f"module.{name}": torch.rand(shape) for name, shape in published_shapes().items()}
    torch.save(state | {"module.encoder.output_conv.bias": torch.zeros(20)}, path)
    return path


def convert(source: Path, output: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["convert", str(source), "-o", str(output), *arguments])


def test_every_key_is_reported_and_the_network_is_written(published: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    result = convert(published, output, "--memory-length", "2", "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["network"], report["memory_length"]) == ("erfnet", 2)
    assert report["outcomes"] == {"unused": 1, "taken": 374}
    assert {key["key"] for key in report["keys"]} == torch.load(published, weights_only=True).keys()
    converted, wanted = load(output), load(published, memory_length=2)
    assert converted.config == wanted.config
    state = converted.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in wanted.state_dict().items())


def test_table_has_a_row_for_a_key(published: Path, tmp_path: Path) -> None:
    result = convert(published, tmp_path / "out.safetensors")
    assert "memory_head.key.bias" in "".join(result.stdout.split())
    assert "374 taken" in result.stdout


def test_keys_that_do_not_fit_are_told_and_nothing_is_written(
    published: Path, tmp_path: Path
) -> None:
    state = torch.load(published, weights_only=True)
    del state["module.kv_M_r4.Key.bias"]
    state["module.kv_Q_r4.Key.bias"] = torch.zeros(17)
    state["module.head"] = torch.zeros(1)
    torch.save(state, published)
    output = tmp_path / "out.safetensors"
    result = convert(published, output, "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    faults = {key["key"]: key["outcome"] for key in report["keys"] if key["outcome"] != "taken"}
    assert faults == {
        "module.encoder.output_conv.bias": "unused",
        "module.kv_M_r4.Key.bias": "missing",
        "module.kv_Q_r4.Key.bias": "misshapen",
        "module.head": "unexpected",
    }
    assert "3 keys do not fit" in result.stderr
    assert not output.exists()


def test_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"weight": Path("x")}, path)
    result = convert(path, tmp_path / "out.safetensors")
    assert result.exit_code == 1
    assert "not a file of tensors" in result.stderr
