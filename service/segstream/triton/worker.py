"""What a backend does with requests, apart from Triton's own types."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel, ConfigDict, Field

from segstream.engine import Step, StepResult
from segstream.engine.batch import run_batch
from segstream.engine.precision_guard import usable_precision
from segstream.engine.runtimes import make_executor, memory_digest
from segstream.errors import EngineError, InvalidInputError, ModelChangedError, SegstreamError
from segstream.media.images import Image
from segstream.memory.cuda_memory import DeviceMemory
from segstream.models import Runtime, import_networks, load, model_digest
from segstream.models.precision import Precision
from segstream.pages import PageGeometry, Pages
from segstream.triton.contract import CONTRACT_VERSION, Description
from segstream.triton.mapped_pools import MappedPools
from segstream.triton.process import start_ticks

Floats = npt.NDArray[np.float32]


class ModelSettings(BaseModel):
    """``model.json`` of a model in the repository; ``checkpoint`` beside it, or a name.

    ``networks`` are those that the checkpoint may name besides the package's own, each
    ``NAME=MODULE:FUNCTION``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    checkpoint: str
    networks: list[str] = []
    runtime: Runtime = "auto"
    precision: Precision = "float32"
    num_threads: int = Field(0, ge=0)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Those of a version's folder. Raises ValidationError and OSError."""
        return cls.model_validate_json((folder / "model.json").read_bytes())


@dataclass(frozen=True, slots=True, eq=False)
class Question:
    """One frame ``(H, W, 3)``, and where its memory is: in a pool, or in the request itself."""

    frame: Image
    digest: str
    wants_label_map: bool
    pool: str = ""
    read_slots: tuple[int, ...] = ()
    write_slot: int = -1
    keys: Floats | None = None
    values: Floats | None = None
    wants_page: bool = False
    wants_confidence: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What came of a frame; ``key`` and ``value`` where the page travels back."""

    result: StepResult
    key: Floats | None = None
    value: Floats | None = None


class Worker:
    """Computes the frames of one model, on one device, for any number of services."""

    def __init__(self, name: str, folder: Path, device: str) -> None:
        settings = ModelSettings.read(folder)
        if settings.num_threads:
            torch.set_num_threads(settings.num_threads)
        beside = folder / settings.checkpoint
        model = load(
            beside if beside.is_file() else settings.checkpoint,
            networks=import_networks(settings.networks),
        )
        self._name = name
        self._config = model.config
        self._spec = model.spec
        self._page_geometry = model.page_geometry
        self._device = device
        digest = model_digest(model)
        precision = usable_precision(model, settings.precision, device)
        self._digest = memory_digest(
            model, digest, runtime=settings.runtime, device=device, precision=precision
        )
        self._executor = make_executor(
            model, digest, runtime=settings.runtime, device=device, precision=precision
        )
        is_gpu = torch.device(device).type == "cuda"
        self.pools = MappedPools(DeviceMemory(device) if is_gpu else None)

    def describe(self, pool: str = "") -> Description:
        """What the model is and whether this pool can be used."""
        fault = ""
        self.pools.forget_the_gone()
        try:
            if pool:
                self.pools.find(pool)
        except SegstreamError as error:
            fault = error.message
        tile = self._page_geometry(1, 1)
        return Description(
            CONTRACT_VERSION,
            self._name,
            self._config.label_set.name,
            self._config.stream_length,
            self._config.window_size,
            self._digest,
            self._spec.stride,
            tile.key_channels,
            tile.value_channels,
            os.getpid(),
            start_ticks(os.getpid()),
            fault,
            self._spec.remainder,
        )

    def answer(self, questions: Sequence[Question]) -> list[Answer | SegstreamError]:
        """An answer or an error for each; those of one frame size and pool share a forward."""
        answers: list[Answer | SegstreamError] = [EngineError("not computed")] * len(questions)
        batches: dict[object, list[tuple[int, Step]]] = {}
        for index, question in enumerate(questions):
            try:
                step = self._step(question)
            except SegstreamError as error:
                answers[index] = error
            else:
                batch_key = step.image.shape, id(step.pages)
                batches.setdefault(batch_key, []).append((index, step))
        for batch in batches.values():
            results = run_batch(self._executor, [step for _, step in batch])
            for (index, step), result in zip(batch, results, strict=True):
                answers[index] = (
                    result
                    if isinstance(result, SegstreamError)
                    else _answer(questions[index], step, result)
                )
        return answers

    def _step(self, question: Question) -> Step:
        if question.digest != self._digest:
            raise ModelChangedError(
                f"model {self._name!r} has the digest {self._digest}, the request's memory that "
                f"of {question.digest!r}"
            )
        height, width = question.frame.shape[:2]
        geometry = self._page_geometry(height, width)
        if question.wants_page:
            pages, read_slots, write_slot = self._own_pages(question, geometry)
        else:
            pages, read_slots, write_slot = self._pooled_pages(question, geometry)
        return Step(
            self._name,
            question.frame,
            pages,
            read_slots,
            write_slot,
            question.wants_label_map,
            wants_confidence=question.wants_confidence,
        )

    def _pooled_pages(
        self, question: Question, geometry: PageGeometry
    ) -> tuple[Pages, tuple[int, ...], int]:
        handle, pages = self.pools.find(question.pool)
        if handle.geometry != geometry:
            raise InvalidInputError(
                f"pool has pages of {handle.geometry}, the frame needs {geometry}", field="pool"
            )
        slots = (*question.read_slots, question.write_slot)
        if len(set(slots)) < len(slots) or not all(0 <= s < handle.num_pages for s in slots):
            raise InvalidInputError(
                f"slots are {question.read_slots} to read and {question.write_slot} to write; "
                f"they must differ and be in 0..{handle.num_pages - 1}",
                field="read_slots",
            )
        return pages, question.read_slots, question.write_slot

    def _own_pages(
        self, question: Question, geometry: PageGeometry
    ) -> tuple[Pages, tuple[int, ...], int]:
        """Pages that came with the request, and one more for the frame's own."""
        pools = []
        for name, sent, channels, shape in (
            ("KEYS", question.keys, geometry.key_channels, geometry.key_shape),
            ("VALUES", question.values, geometry.value_channels, geometry.value_shape),
        ):
            page = (geometry.height, geometry.width, channels)
            sent = np.empty((0, *page), np.float32) if sent is None else sent
            if sent.shape[1:] != page:
                raise InvalidInputError(
                    f"{name} has pages of {sent.shape[1:]}, the frame needs {page}", field=name
                )
            room = np.concatenate([sent, np.empty((1, *page), np.float32)])
            pools.append(torch.from_numpy(room.reshape(-1, *shape)).to(self._device))
        keys, values = pools
        if len(keys) != len(values):
            raise InvalidInputError(
                f"KEYS has {len(keys) - 1} pages, VALUES {len(values) - 1}", field="KEYS"
            )
        return Pages(keys, values), tuple(range(len(keys) - 1)), len(keys) - 1


def _answer(question: Question, step: Step, result: StepResult) -> Answer:
    if not question.wants_page:
        return Answer(result)
    key, value = (
        pool[step.write_slot].reshape(*step.pages.keys.shape[1:3], -1).cpu().numpy()
        for pool in (step.pages.keys, step.pages.values)
    )
    return Answer(result, key, value)
