"""One network in four ways on one stream of frames: what the memory adds, and what it does not."""

import time
from collections import deque
from collections.abc import Iterator
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

    def __init__(self, model: LMANet) -> None:
        """``model`` in eval mode; without a trained memory it has the first two ways only."""
        self._model = model
        self.ways = tuple(Way) if model.config.has_memory else (Way.SINGLE_FRAME, Way.LOGIT_EMA)
        self._seconds = dict.fromkeys(
            ("encode", "decode", "average", "memorise", "control", "memory"), 0.0
        )
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
        with self._clock("decode"):
            logits = self._crop(model.decode(features), size)
        with self._clock("average"):
            average = logits if self._average is None else self._average
            self._average = torch.lerp(logits, average, EMA_SHARE_OF_THE_PAST)
        answers = {Way.SINGLE_FRAME: logits, Way.LOGIT_EMA: self._average}
        if model.config.has_memory:
            answers |= self._with_memory(features, size, logits)
        self._num_frames += 1
        return {way: _label_map(answer) for way, answer in answers.items()}

    def frames_per_second(self) -> dict[Way, float]:
        """Of each way alone, by the seconds that its parts took so far."""
        parts = {
            Way.SINGLE_FRAME: ("encode", "decode"),
            Way.LOGIT_EMA: ("encode", "decode", "average"),
            Way.CONTROL: ("encode", "memorise", "control"),
            Way.MEMORY: ("encode", "memorise", "memory"),
        }
        return {
            way: self._num_frames / sum(self._seconds[part] for part in parts[way])
            for way in self.ways
        }

    def _with_memory(
        self, features: Features, size: tuple[int, int], logits: Tensor
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
        answers = {Way.CONTROL: logits, Way.MEMORY: logits}
        if self._slots:
            for way, read in ((Way.CONTROL, [free]), (Way.MEMORY, list(self._slots))):
                with self._clock(way.value):
                    row = torch.tensor([read], dtype=torch.int32, device=tap.device)
                    fused = model.fusion(*model.read(tap, pages, row), tap)
                    decoded = model.decode(Features(fused, features.skips))
                    answers[way] = self._crop(decoded, size)
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
