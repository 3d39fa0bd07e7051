"""The network on an NVIDIA GPU: captured once as CUDA graphs, replayed for every batch after."""

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import structlog
import torch

from segstream.engine.base import Step
from segstream.engine.executor import Lap, Prediction
from segstream.engine.graph_device import GraphDevice, Work
from segstream.engine.static_buffers import BatchShape, StaticBuffers
from segstream.errors import EngineError
from segstream.models import LMANet
from segstream.models.confidence import confidence_map
from segstream.models.lmanet import in_layout
from segstream.models.memory import write_pages
from segstream.models.precision import Precision, autocast, in_precision
from segstream.pages import Pages

MAX_GRAPHS = 64
"""Kinds of batches that are kept; the one that was not seen for longest goes first."""

_STAGES = ("encode", "memory_read", "fuse_decode")

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What one graph computes.

    A graph remembers addresses, so one that reads a memory belongs to its pool. The pool is not
    kept by that: once it is gone no kind equals this one any more.
    """

    shape: BatchShape
    num_maps: int  # of each frame: none is only memorised, a second one is its confidence
    pool: weakref.ref[Pages] | None  # None reads no memory

    @property
    def is_gone(self) -> bool:
        return self.pool is not None and self.pool() is None


@dataclass(slots=True)
class _Program:
    """How a kind of batch is computed: eagerly at first, by a graph from the second time on."""

    buffers: StaticBuffers
    run: Work
    is_captured: bool = False


class CudaExecutor:
    """See ``Executor``. The host enqueues a whole batch, and only then waits for the device.

    That wait, for the end of each stage in turn, times the stages. A batch of frames with and
    without memory, or only to be memorised, is computed kind by kind, so that nothing in a forward
    depends on what only the device knows. Each has a few rows to spare, up to the next bucket. They
    read no memory, and nothing of them is kept: pages are written after the graph, those of the
    steps alone.

    A kind of batch runs eagerly when it is first met, which readies kernels and libraries, and is
    captured when it comes again: pools that are used once cost no capture. A network that cannot be
    captured runs eagerly for good; the log says so once. ``Executor``'s promise holds as it does
    for torch on a GPU: for batches of equal bucket.
    """

    is_batching = True

    def __init__(
        self, model: LMANet, device: GraphDevice, precision: Precision = "float32"
    ) -> None:
        self._layout = model.spec.layout(device.device)
        self._model = in_precision(in_layout(model.to(device.device), self._layout), precision)
        self._device = device
        self._precision = precision
        self._can_capture = True
        self._programs: OrderedDict[_Kind, _Program] = OrderedDict()
        self._buffers: weakref.WeakValueDictionary[BatchShape, StaticBuffers] = (
            weakref.WeakValueDictionary()
        )

    @torch.inference_mode()
    def __call__(self, steps: Sequence[Step], lap: Lap) -> list[Prediction]:
        results: dict[int, Prediction] = {}
        for group in alike(steps):
            with self._device.working():
                predictions = self._run([steps[index] for index in group], lap)
            results.update(zip(group, predictions, strict=True))
        return [results[index] for index in range(len(steps))]

    def _run(self, steps: Sequence[Step], lap: Lap) -> list[Prediction]:
        kind = self._kind(steps)
        stages = _STAGES if kind.num_maps else _STAGES[:1]
        program, marks = self._program(kind), {}

        def mark(stage: str) -> None:
            marks[stage] = self._device.mark()

        try:
            program.buffers.send(steps)
            program.run(mark)
        except Exception:
            del self._programs[kind]  # what comes next begins anew, eagerly
            raise
        self._memorise(steps, program.buffers)
        maps = program.buffers.fetch(len(steps), kind.num_maps)
        mark(stages[-1])
        for stage in stages:
            if stage in marks:
                marks[stage]()
            lap(stage)
        return [_prediction(step, own) for step, own in zip(steps, maps, strict=True)]

    def _memorise(self, steps: Sequence[Step], buffers: StaticBuffers) -> None:
        used = slice(len(steps))
        slots, keys, values = buffers.write_slots, buffers.keys, buffers.values
        write_pages(steps[0].pages, slots[used], keys[used], values[used])

    def _kind(self, steps: Sequence[Step]) -> _Kind:
        first = steps[0]
        height, width, _ = first.image.shape
        shape = BatchShape(height, width, bucket(len(steps)), self._model.config.stream_length)
        if not first.wants_label_map:
            return _Kind(shape, 0, None)
        num_maps = 1 + any(step.wants_confidence for step in steps)
        return _Kind(shape, num_maps, weakref.ref(first.pages) if first.read_slots else None)

    def _program(self, kind: _Kind) -> _Program:
        program = self._programs.get(kind)
        if program is None:
            program = self._programs[kind] = self._new_program(kind)
        elif self._can_capture and not program.is_captured:
            self._capture(program)
        self._programs.move_to_end(kind)
        return program

    def _new_program(self, kind: _Kind) -> _Program:
        buffers = self._buffers_of(kind.shape)
        for gone in [old for old in self._programs if old.is_gone]:
            del self._programs[gone]
        while len(self._programs) >= MAX_GRAPHS:
            self._programs.popitem(last=False)
        return _Program(buffers, lambda lap: self._compute(kind, buffers, lap))

    def _buffers_of(self, shape: BatchShape) -> StaticBuffers:
        """Those that all kinds of this shape share."""
        buffers = self._buffers.get(shape)
        if buffers is None:
            page = self._model.page_geometry(shape.height, shape.width)
            dtype = getattr(torch, self._precision)
            buffers = self._buffers[shape] = StaticBuffers(self._device, shape, page, dtype)
        return buffers

    def _capture(self, program: _Program) -> None:
        try:
            program.run, program.is_captured = self._device.capture(program.run), True
        except (RuntimeError, EngineError) as error:
            self._can_capture = False
            _log.warning("network cannot be captured into CUDA graphs", reason=str(error))

    def _compute(self, kind: _Kind, buffers: StaticBuffers, lap: Lap) -> None:
        """A forward from buffers to buffers, without a question to the device."""
        model = self._model
        frames = buffers.frames.to(torch.float32, memory_format=self._layout).div_(255)
        with autocast(self._device.device, self._precision):
            if not kind.num_maps:
                key, value = model.memory_head(model.encode(frames).tap)
            else:
                pages = kind.pool() if kind.pool else None
                memory = None if pages is None else (pages, buffers.read_slots)
                logits, key, value = model.segment(frames, memory, lap=lap)
        buffers.keys.copy_(key)
        buffers.values.copy_(value)
        if kind.num_maps:
            logits = logits[:, : model.config.label_set.num_classes]
            maps = buffers.maps(kind.num_maps)
            maps[:, 0].copy_(logits.argmax(dim=1))
            if kind.num_maps > 1:
                maps[:, 1].copy_(confidence_map(logits))


def bucket(num_frames: int) -> int:
    """The rows for so many frames: the next of 1, 2, 3, 4, 6, 8, 12, 16, ...

    Less than a third of them are to spare; of powers of two alone it would be half.
    """
    power = 1 << (num_frames - 1).bit_length()
    return 3 * power // 4 if 4 * num_frames <= 3 * power else power


def alike(steps: Sequence[Step]) -> Iterator[list[int]]:
    """The steps, by index, that one forward can take: all with memory, or none, or no label map."""
    groups: dict[object, list[int]] = {}
    for index, step in enumerate(steps):
        key = step.wants_label_map, step.wants_label_map and bool(step.read_slots)
        groups.setdefault(key, []).append(index)
    return iter(groups.values())


def _prediction(step: Step, maps: npt.NDArray[np.uint8]) -> Prediction:
    """Of a frame's maps ``(num_maps, H, W)``, which the next batch overwrites."""
    if not step.wants_label_map:
        return Prediction()
    return Prediction(maps[0].copy(), maps[1].copy() if step.wants_confidence else None)
