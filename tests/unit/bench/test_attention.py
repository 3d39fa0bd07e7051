"""The attention benchmark, on a map small enough for every contender."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from segstream.attention import cpu
from segstream.bench import attention, attention_baselines, attention_plot, plotting
from segstream.bench.attention import Case, Effort
from segstream.cli.bench import app
from segstream.errors import UnavailableError

needs_kernel = pytest.mark.skipif(cpu.best_isa() is None, reason="the kernel was not built")

TINY = Case(6, 9, 4, 8, memory_length=2, window_size=5, is_trained=True)
ROUNDS = 3


@pytest.fixture(autouse=True)
def without_flex(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiling takes long and is not ours to test."""

    def refuse(*_: object) -> None:
        raise RuntimeError("cannot compile\nhere")

    monkeypatch.setattr(attention_baselines, "compile_flex", refuse)
    monkeypatch.setattr(attention, "CASES", (TINY, replace(TINY, is_trained=False)))
    monkeypatch.setattr(attention, "QUICK", Effort(ROUNDS, 60.0, 1e9))


def rows_of(case: attention.CaseResult) -> dict[str, attention.Measurement]:
    return {row["contender"]: row for row in case["contenders"]}


@needs_kernel
def test_all_contenders_compute_the_same() -> None:
    threads = torch.get_num_threads()
    result = attention.run(quick=True, threads=1)
    assert torch.get_num_threads() == threads
    assert result["threads"] == 1
    rows = rows_of(result["cases"][0])
    training = {attention.TRAINED_KERNEL, attention.TRAINED_FALLBACK}
    assert set(rows) == {
        *(attention.KERNEL, attention.HALF_KERNEL, attention.SGEMM, attention.ROW_BAND),
        *(attention.FALLBACK, attention.SHIFTS, attention.UNFOLD, attention.FLEX, *training),
    }
    for name, row in rows.items():
        if name == attention.FLEX:
            assert row["skipped"] == "RuntimeError: cannot compile"
            continue
        assert len(row["round_ms"]) == ROUNDS
        assert row["median_ms"] is not None
        assert row["median_ms"] > 0
        if name not in {attention.SGEMM, *training}:
            assert row["max_error"] is not None
            assert row["max_error"] < 1e-5
    assert rows[attention.KERNEL]["times_kernel"] == 1.0
    assert rows[attention.TRAINED_KERNEL]["times_kernel"] == 1.0
    assert rows[attention.SGEMM]["of_sgemm"] == 1.0


@needs_kernel
def test_a_case_is_summed_up() -> None:
    trained, read = attention.run(quick=True, threads=1)["cases"]
    rows, summary = rows_of(trained), trained["summary"]
    kernel, row_band = rows[attention.KERNEL], rows[attention.ROW_BAND]
    assert summary["row_band_times_kernel"] == row_band["times_kernel"]
    assert summary["fallback_times_kernel"] == rows[attention.FALLBACK]["times_kernel"]
    assert summary["kernel_of_sgemm"] == kernel["of_sgemm"]
    ratio = rows[attention.TRAINED_FALLBACK]["times_kernel"]
    assert ratio is not None
    assert summary["trained_fallback_times_kernel"] == ratio
    assert summary["max_error_float32"] == kernel["max_error"]
    assert summary["max_error_float16"] == rows[attention.HALF_KERNEL]["max_error"]
    assert read["summary"]["trained_fallback_times_kernel"] is None


@needs_kernel
def test_a_baseline_that_runs_out_of_memory_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> Tensor:
        raise MemoryError

    monkeypatch.setattr(attention_baselines, "unfolded", fail)
    rows = rows_of(attention.run(quick=True)["cases"][0])
    assert rows[attention.UNFOLD]["skipped"] == "MemoryError"
    assert rows[attention.SHIFTS]["skipped"] is None


def test_without_the_kernel_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "best_isa", lambda: None)
    with pytest.raises(UnavailableError, match="no CPU attention kernel"):
        attention.run(quick=True)
    done = CliRunner().invoke(app, ["attention", "--quick"])
    assert done.exit_code == 1
    assert "C++ compiler" in done.output


@pytest.mark.parametrize("key_channels", [16, 128])
@pytest.mark.parametrize("default", [torch.float32, torch.float16])
def test_inputs_are_of_unit_variance(key_channels: int, default: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(default)
    try:
        inputs = attention.Inputs.of(Case(30, 30, key_channels, 128, 2))
    finally:
        torch.set_default_dtype(before)
    for tensor in (inputs.query, inputs.keys, inputs.values, inputs.paged):
        assert tensor.dtype == torch.float32
        assert tensor.var().item() == pytest.approx(1.0, abs=0.05)


def test_useful_flops_count_every_neighbour_once() -> None:
    assert Case(64, 128, 16, 64, 4).useful_flops == 2 * 64 * 128 * 4 * 441 * 80


def test_what_cannot_run_says_why() -> None:
    wide = Case(90, 90, 128, 2048, 3)
    values = torch.empty(3, 90, 90, 2048, device="meta")
    quick, full = Effort(2, 60.0, 1e9), attention.FULL
    assert attention._why_not(attention.UNFOLD, wide, values, full) == "would need 55 GiB of memory"
    assert attention._why_not(attention.SHIFTS, wide, values, quick) == "too slow for a quick run"
    assert attention._why_not(attention.SHIFTS, wide, values, full) is None


@needs_kernel
def test_command_prints_json_and_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    done = CliRunner().invoke(app, ["attention", "--quick", "--json", "--plot", str(plot)])
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["cases"]) == 2
    assert plot.read_bytes().startswith(b"\x89PNG")
    table = CliRunner().invoke(app, ["attention", "--quick"]).stdout
    assert attention.KERNEL in table
    assert "row-band / this kernel" in table


@needs_kernel
def test_the_plot_keeps_training_apart_and_names_ratios() -> None:
    trained, read = attention.run(quick=True, threads=1)["cases"]
    panels = attention_plot._panels_of(trained)
    assert [len(panel.bars) for panel in panels] == [6, 2]
    assert panels[0].title.endswith(" of sgemm")
    assert panels[1].title == f"{trained['case']}: training"
    assert len(attention_plot._panels_of(read)) == 1
    labels = {bar.name: bar.label for bar in panels[0].bars}
    assert labels[attention.KERNEL].endswith(" ms")
    assert labels[attention.ROW_BAND].endswith(" x)")


@pytest.mark.parametrize(
    ("plot", "told"),
    [
        ("nowhere/plot.png", "no writable folder nowhere"),
        ("plot.txt", "must end in .png or .svg"),
        (".", "is a folder"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_refused_at_once(
    plot: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "run", None)
    done = CliRunner().invoke(app, ["attention", "--plot", plot])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: plot ")
    assert told in done.stderr


def test_a_plot_without_matplotlib_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plotting, "find_spec", lambda name: None)
    done = CliRunner().invoke(app, ["attention", "--plot", "plot.png"])
    assert done.exit_code == 1
    assert "segstream[bench]" in done.output
