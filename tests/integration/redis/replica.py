"""One replica's side of the spill tier, and what it was told."""

from dataclasses import dataclass, field

import torch

from segstream.memory.frame_log import START, LoggedFrame
from segstream.memory.snapshot import Snapshot
from segstream.memory.spill_tier import SpillTier

MODEL = "abc"


@dataclass
class Replica:
    tier: SpillTier = field(init=False)
    lost: list[str] = field(default_factory=list)
    moves: list[tuple[str, str]] = field(default_factory=list)


def make_snapshot(index: int = 5, epoch: int = 1, height: int = 4) -> Snapshot:
    generator = torch.Generator().manual_seed(index)
    keys, values = (torch.randn(3, height, 6, d, generator=generator) for d in (16, 64))
    return Snapshot(MODEL, epoch, index, b"state", keys, values)


def make_frame(index: int, size: int = 100) -> LoggedFrame:
    return LoggedFrame(index, index - 1 if index else START, "jpeg", 6, 4, b"x" * size, MODEL)
