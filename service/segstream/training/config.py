"""What decides the result of a training run besides model and data."""

from dataclasses import dataclass
from enum import StrEnum


class Stage(StrEnum):
    """What a run trains: encoder and decoder, or the memory's heads and fusion on top of them."""

    SINGLE = "single"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that decides the result besides model and data."""

    stage: Stage = Stage.SINGLE
    epochs: int = 100
    batch_size: int = 8
    crop: tuple[int, int] = (240, 320)
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    train_decoder: bool = False
    matching_epochs: int = 2
    seed: int = 0
    evaluate_every: int = 5
