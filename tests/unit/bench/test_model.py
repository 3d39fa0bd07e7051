"""The benchmark of the whole network, on frames small enough to be quick."""

import json

import pytest
import torch
from typer.testing import CliRunner

from segstream.bench import model
from segstream.cli.bench import app
from segstream.errors import UnavailableError
from segstream.models.native.library import library

needs_library = pytest.mark.skipif(library() is None, reason="the kernel was not built")


@needs_library
def test_the_json_has_every_engine_and_the_ratios() -> None:
    threads = torch.get_num_threads()
    command = ["model", "--size", "24x40", "--threads", "1", "--rounds", "3", "--json"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert torch.get_num_threads() == threads
    result = json.loads(done.stdout)
    assert (result["size"], result["threads"]) == ("24x40", 1)
    assert set(result["engines"]) == {"native", "onnx", "torch eager"}
    for engine in result["engines"].values():
        assert engine["ms_median"] > 0
        assert engine["useful_gflops"] > 0
    ratios = {"speedup_vs_eager", "speedup_vs_onnxruntime", "flops_ratio_vs_sgemm"}
    for name in (*ratios, "memory_overhead_ratio", "sgemm_gflops"):
        assert result[name] > 0


@needs_library
def test_the_table_names_the_engines() -> None:
    done = CliRunner().invoke(app, ["model", "--size", "16x16", "--rounds", "3"])
    assert done.exit_code == 0, done.output
    assert "native" in done.stdout


@pytest.mark.parametrize("size", ["512", "0x8", "8x-8", "axb"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    done = CliRunner().invoke(app, ["model", "--size", size])
    assert done.exit_code != 0
    assert "size must be HxW" in done.stderr


def test_without_the_library_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "library", lambda: None)
    with pytest.raises(UnavailableError, match="no native engine to measure"):
        model.run(8, 8)
