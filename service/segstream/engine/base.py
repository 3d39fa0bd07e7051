"""What an engine is asked and what it answers."""

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from segstream.label_sets import LabelSet
from segstream.pages import PageGeometry, Pages


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What the service tells of a model, and what it must know to keep its memory.

    ``digest`` identifies the weights and what computes them: memory of one is nothing to another.
    """

    name: str
    label_set: LabelSet
    memory_length: int
    window_size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Step:
    """One frame of one session: ``image (H, W, 3)`` uint8 RGB, and the pages around it.

    ``read_slots`` are oldest first, at most T; the frame's own key and value go to ``write_slot``.
    Without ``wants_label_map`` the frame is only memorised: neither memory read nor decoder run.
    ``wants_confidence``: and, beside the label map, how sure the network is of it.
    ``model_digest`` is that of the model whose memory this is; ``traceparent`` the W3C trace
    that the step is recorded in, empty = none.
    """

    model: str
    image: npt.NDArray[np.uint8]
    pages: Pages
    read_slots: tuple[int, ...]
    write_slot: int
    wants_label_map: bool = True
    model_digest: str = ""
    traceparent: str = ""
    wants_confidence: bool = False


@dataclass(frozen=True, slots=True)
class StepResult:
    """``label_map (H, W)`` uint8 train ids, and the seconds of each stage of the batch.

    The label map depends on the step alone: not on the batch around it, nor on the number of
    threads. None if the step wanted none. ``confidence (H, W)`` uint8 is the softmax, over the
    classes of the label set, of each pixel's class, 255 = 1; None if the step wanted none.
    """

    label_map: npt.NDArray[np.uint8] | None
    batch_size: int
    stage_seconds: dict[str, float] = field(default_factory=dict)
    confidence: npt.NDArray[np.uint8] | None = None


class Engine(Protocol):
    """Computes steps; owns weights, never memory.

    A failed step has changed no committed page, and nothing writes to its page any more.
    """

    @property
    def models(self) -> dict[str, ModelInfo]:
        """The models that it serves, by name."""

    @property
    def is_ready(self) -> bool:
        """Whether steps are taken."""

    def page_geometry(self, model: str, height: int, width: int) -> PageGeometry:
        """The pages of ``model`` for frames of ``height x width`` pixels."""

    async def step(self, step: Step) -> StepResult:
        """Read the memory, segment, memorise.

        Raises ModelChangedError when ``models`` says something else now than ``step.model_digest``,
        EngineError and UnavailableError.
        """

    async def stop(self) -> None:
        """Finish what was taken and take no more."""
