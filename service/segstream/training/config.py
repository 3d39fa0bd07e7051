"""What decides the result of a training run besides model and data."""

from dataclasses import dataclass, replace
from enum import StrEnum

from segstream.errors import InvalidInputError


class Stage(StrEnum):
    """What a run trains: encoder and decoder, or the memory's heads and fusion on top of them."""

    SINGLE = "single"
    MEMORY = "memory"


class Schedule(StrEnum):
    """How the learning rate falls: along a cosine, or by 0.8 when the loss stays where it is."""

    COSINE = "cosine"
    PLATEAU = "plateau"


class Clips(StrEnum):
    """Where the memory's clips come from.

    ``cached`` simulates one scene per still and encodes it once; ``simulated`` simulates anew each
    time; ``real`` takes the frames before the labelled one.
    """

    CACHED = "cached"
    SIMULATED = "simulated"
    REAL = "real"


class Precision(StrEnum):
    """What convolutions compute in; weights, losses and the attention stay in float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


@dataclass(frozen=True, slots=True)
class TrainingConfig:
    """Everything that decides the result besides model and data.

    ``class_weight_offset`` c weighs a class 1 / ln(c + its share of pixels), as ENet does; 0 weighs
    all alike. ``teacher_weight`` draws the single stage's classes to those that a teacher sees, if
    there is one. ``dropout`` is a share of the network's own. ``matching_weight`` draws the
    memory's features to those of the unspoilt last frame. ``spoilt_whole`` says how often all
    frames of a clip are spoilt in one way, ``spoilt_last`` and ``spoilt_past`` how often single
    ones are.
    Crops are of views of the frame at ``scales`` from least to most, by default 0.6 to 1.8, in the
    memory stage 0.95 to 1.1.
    ``freeze_batch_norm`` keeps the running statistics of what is trained; what is not trained
    keeps its own in any case. With ``folds`` the drives are dealt out to so many groups: the single
    stage leaves out group ``fold``, the memory stage takes it alone, so that the memory learns from
    what the network makes of drives it has not seen.

    Raises InvalidInputError for a fold that there is not, and for scales that are none.
    """

    stage: Stage = Stage.SINGLE
    epochs: int = 100
    batch_size: int = 8
    crop: tuple[int, int] = (240, 320)
    scales: tuple[float, float] | None = None
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    decouples_weight_decay: bool = True
    schedule: Schedule = Schedule.COSINE
    class_weight_offset: float = 1.02
    teacher_weight: float = 1.0
    dropout: float = 1.0
    precision: Precision = Precision.FLOAT32
    clips: Clips = Clips.CACHED
    matching_weight: float = 1.0
    spoilt_whole: float = 0.25
    spoilt_last: float = 0.35
    spoilt_past: float = 0.3
    train_decoder: bool = False
    freeze_batch_norm: bool = False
    folds: int = 0
    fold: int = 0
    seed: int = 0
    evaluate_every: int = 5

    def __post_init__(self) -> None:
        if self.folds and not 0 <= self.fold < self.folds:
            raise InvalidInputError(
                f"fold is {self.fold}, must be in 0..{self.folds - 1} of {self.folds} folds",
                field="fold",
            )
        if self.scales is not None and not 0 < self.scales[0] <= self.scales[1]:
            raise InvalidInputError(
                f"scales is {self.scales}, must be LEAST:MOST above 0", field="scales"
            )


def as_published(config: TrainingConfig) -> TrainingConfig:
    """The settings that LMANet was published with, where they differ by stage or not."""
    return replace(
        config,
        learning_rate=2e-4,
        weight_decay=1e-4,
        decouples_weight_decay=False,
        schedule=Schedule.PLATEAU,
        class_weight_offset=1.02,
        clips=Clips.REAL,
        matching_weight=0.0,
        spoilt_whole=0.0,
        spoilt_last=0.0,
        spoilt_past=0.0,
    )
