"""The folder of a training run: checkpoint, log, curve, and what it takes to go on."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from segstream.errors import InvalidInputError

_HEADER = ("epoch", "loss", "learning_rate", "val_miou_percent")


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch gave; ``miou`` in percent on the validation frames, where it was measured."""

    epoch: int
    loss: float
    learning_rate: float
    miou: float | None


class RunFolder:
    """``model.safetensors``, ``log.csv``, ``log.png``, ``config.json`` and ``state.pt``."""

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.path = path

    @property
    def checkpoint(self) -> Path:
        """The running average of the weights, as of the last epoch."""
        return self.path / "model.safetensors"

    def check_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration; refuse to go on with a run that began with another one."""
        path = self.path / "config.json"
        text = json.dumps(config, indent=2)
        if path.exists() and path.read_text() != text:
            raise InvalidInputError(
                f"{self.path} holds a run with another configuration, model or initial weights; "
                f"see {path}",
                field="out",
            )
        path.write_text(text)

    def load_state(self) -> dict[str, Any] | None:
        """What ``save_state`` wrote last, on the CPU."""
        path = self.path / "state.pt"
        if not path.exists():
            return None
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        return state

    def save_state(self, state: Mapping[str, Any]) -> None:
        """The file appears whole."""
        temporary = self.path / "state.tmp"
        torch.save(dict(state), temporary)
        temporary.replace(self.path / "state.pt")

    def log(self, report: EpochReport) -> None:
        """Append to the log and draw the curve anew, where matplotlib is."""
        path = self.path / "log.csv"
        with path.open("a", newline="") as file:
            writer = csv.writer(file)
            if report.epoch == 1:
                writer.writerow(_HEADER)
            miou = "" if report.miou is None else f"{report.miou:.2f}"
            rate = f"{report.learning_rate:.3g}"
            writer.writerow([report.epoch, f"{report.loss:.4f}", rate, miou])
        if find_spec("matplotlib") is not None:
            _draw(path, self.path / "log.png")


def _draw(log: Path, picture: Path) -> None:
    from matplotlib.figure import Figure

    with log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    left = figure.add_subplot()
    left.plot([int(row["epoch"]) for row in rows], [float(row["loss"]) for row in rows], "#9aa5b1")
    left.set_xlabel("epoch")
    left.set_ylabel("loss")
    measured = [row for row in rows if row["val_miou_percent"]]
    if measured:
        right = left.twinx()
        values = [float(row["val_miou_percent"]) for row in measured]
        right.plot([int(row["epoch"]) for row in measured], values, "#2f6690", marker="o")
        right.set_ylabel("val mIoU, percent")
    figure.savefig(picture, dpi=100)
