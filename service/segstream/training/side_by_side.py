"""One network in four ways on one stream of frames: what the memory adds, and what it does not."""

import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from enum import StrEnum

import torch
from torch import Tensor

from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.models import Features, LMANet
from segstream.models.memory import write_pages
from segstream.pages import Pages, empty_pages

EMA_SHARE_OF_THE_PAST = 0.5


class Way(StrEnum):
    """How a network is used.

    ``LOGIT_EMA`` averages the single frame's logits over time. ``CONTROL`` is the memory's layers
    reading the present frame itself: what they are worth without a past.
    """

    SINGLE_FRAME = "single_frame"
    LOGIT_EMA = "logit_ema"
    CONTROL = "control"
    MEMORY = "memory"


class SideBySide:
    """Segments a stream in all ``Way``s from the same weights; each frame is encoded once.

    The first frame of a stream has no past: all ways give what the single frame gives.
    """

    def __init__(self, model: LMANet, ways: Collection[Way] = tuple(Way)) -> None:
        """``model`` in eval mode; without a trained memory it has the first two ways only."""
        self._model = model
        has = tuple(Way) if model.config.has_memory else (Way.SINGLE_FRAME, Way.LOGIT_EMA)
        self.ways = tuple(way for way in has if way in ways)
        self._seconds = dict.fromkeys((*Way, "encode", "memorise"), 0.0)
        self._num_frames = 0
        self.reset()

    def reset(self) -> None:
        """The next frame begins a new stream."""
        self._average: Tensor | None = None
        self._slots: deque[int] = deque(maxlen=self._model.config.memory_length)
        self._pages: Pages | None = None

    @torch.inference_mode()
    def step(self, image: Image) -> dict[Way, LabelMap]:
        """Label maps ``(H, W)`` of the next frame ``(H, W, 3)``, the best of the real classes."""
        model = self._model
        with self._clock("encode"):
            device = next(model.parameters()).device
            frame = torch.from_numpy(image).to(device).permute(2, 0, 1)[None] / 255
            features = model.encode(frame.to(model.dtype))
        size = image.shape[0], image.shape[1]
        answers: dict[Way, Tensor] = {}
        is_first = self._average is None and not self._slots
        if is_first or Way.SINGLE_FRAME in self.ways or Way.LOGIT_EMA in self.ways:
            answers |= self._without_memory(features, size)
        if Way.CONTROL in self.ways or Way.MEMORY in self.ways:
            answers |= self._with_memory(features, size, answers)
        self._num_frames += 1
        return {way: _label_map(answers[way]) for way in self.ways}

    def frames_per_second(self) -> dict[Way, float]:
        """Of each way alone, by the seconds that its parts took so far."""
        parts: dict[Way, tuple[str, ...]] = {
            Way.SINGLE_FRAME: ("encode", Way.SINGLE_FRAME),
            Way.LOGIT_EMA: ("encode", Way.SINGLE_FRAME, Way.LOGIT_EMA),
            Way.CONTROL: ("encode", "memorise", Way.CONTROL),
            Way.MEMORY: ("encode", "memorise", Way.MEMORY),
        }
        return {
            way: self._num_frames / sum(self._seconds[part] for part in parts[way])
            for way in self.ways
        }

    def _without_memory(self, features: Features, size: tuple[int, int]) -> dict[Way, Tensor]:
        with self._clock(Way.SINGLE_FRAME):
            logits = self._crop(self._model.decode(features), size)
        with self._clock(Way.LOGIT_EMA):
            average = logits if self._average is None else self._average
            self._average = torch.lerp(logits, average, EMA_SHARE_OF_THE_PAST)
        return {Way.SINGLE_FRAME: logits, Way.LOGIT_EMA: self._average}

    def _with_memory(
        self, features: Features, size: tuple[int, int], single: dict[Way, Tensor]
    ) -> dict[Way, Tensor]:
        model, tap = self._model, features.tap
        ring = model.config.memory_length + 1
        if self._pages is None:
            geometry = model.page_geometry(*size)
            self._pages = empty_pages(geometry, ring, dtype=tap.dtype, device=tap.device)
        pages = self._pages
        free = (self._slots[-1] + 1) % ring if self._slots else 0
        with self._clock("memorise"):
            write_pages(pages, torch.tensor([free], device=tap.device), *model.memory_head(tap))
        answers = {}
        for way, slots in ((Way.CONTROL, [free]), (Way.MEMORY, list(self._slots))):
            if way not in self.ways:
                continue
            if not self._slots:
                answers[way] = single[Way.SINGLE_FRAME]
                continue
            with self._clock(way):
                row = torch.tensor([slots], dtype=torch.int32, device=tap.device)
                fused = model.fuse(tap, pages, row)
                answers[way] = self._crop(model.decode(Features(fused, features.skips)), size)
        self._slots.append(free)
        return answers

    def _crop(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return logits[0, : self._model.config.label_set.num_classes, : size[0], : size[1]]

    @contextmanager
    def _clock(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        if next(self._model.parameters()).is_cuda:
            torch.cuda.synchronize()
        self._seconds[part] += time.perf_counter() - started


def _label_map(logits: Tensor) -> LabelMap:
    label_map: LabelMap = logits.argmax(dim=0).to(torch.uint8).cpu().numpy()
    return label_map
