"""What a network is worth on labelled frames, with and without its memory."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import numpy as np

from segstream.label_sets import IGNORE_INDEX, LabelSet
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap
from segstream.models import LMANet
from segstream.training.metrics import ConfusionMatrix, video_consistency
from segstream.training.optical_flow import Flow, dis_flow, warped
from segstream.training.samples import Sample
from segstream.training.side_by_side import SideBySide, Way

Degrade = Callable[[Image, int], Image | None]
_SHORT_WINDOW, _LONG_WINDOW = 8, 16


@dataclass(frozen=True, slots=True)
class Figures:
    """In percent; None where the frames cannot tell.

    ``tc``, temporal consistency: the prediction of frame t + 1, warped to t along the optical flow
    from t to t + 1, is compared with the prediction of t; mIoU over the real classes, the counts
    added up over all pairs of consecutive frames. Pixels that the flow leads out of the frame do
    not count. So defines it ETC (Liu et al., ECCV 2020, ``eval_tc.py``) with FlowNet2; here the
    flow is OpenCV's DIS at the medium preset, of the clean images also where frames are spoilt,
    and the nearest pixel is taken. Ground truth itself has 88.9 on CamVid val: more is oversmooth.

    ``mvc8`` and ``mvc16``: mean video consistency over windows of 8 and 16 frames, as
    ``video_consistency`` defines it.
    """

    miou: float
    iou: dict[str, float]
    tc: float | None
    mvc8: float | None
    mvc16: float | None
    frames_per_second: float


@dataclass(frozen=True, slots=True)
class FrameResult:
    """One frame of a run: mIoU of each way in percent over the classes that it shows."""

    sample: Sample
    label_maps: dict[Way, LabelMap]
    miou: dict[Way, float]


class Evaluation:
    """Runs a network over labelled frames, as they are or spoilt.

    Frames of one clip are a stream: the memory is kept from frame to frame, also where they are
    seconds apart. Frames count as consecutive where the data set says so.
    """

    def __init__(self, model: LMANet, samples: Iterable[Sample]) -> None:
        self._model = model
        self._samples = samples
        self._flows: dict[str, Flow] = {}

    def run(
        self,
        *,
        degrade: Degrade | None = None,
        on_frame: Callable[[FrameResult], None] = lambda frame: None,
        ways: Collection[Way] = tuple(Way),
    ) -> dict[Way, Figures]:
        """Figures of these ways; ``on_frame`` hears of every frame."""
        side_by_side = SideBySide(self._model, ways)
        tallies = {way: _Tally(self._model.config.label_set) for way in side_by_side.ways}
        shown: dict[Way, LabelMap] = {}
        before: Sample | None = None
        place = 0
        for sample in self._samples:
            if before is None or sample.clip != before.clip:
                side_by_side.reset()
                place = 0
            image = degrade(sample.image, place) if degrade else sample.image
            if image is not None:
                shown = side_by_side.step(image)
            flow = self._flow(before, sample)
            miou = {
                way: tallies[way].add(sample, label_map, flow) for way, label_map in shown.items()
            }
            on_frame(FrameResult(sample, shown, miou))
            before, place = sample, place + 1
        speeds = side_by_side.frames_per_second()
        return {way: tally.figures(speeds[way]) for way, tally in tallies.items()}

    def _flow(self, before: Sample | None, sample: Sample) -> Flow | None:
        """From the frame before to this one; None where it does not follow."""
        if before is None or not before.is_followed_by(sample):
            return None
        if sample.name not in self._flows:
            self._flows[sample.name] = dis_flow(before.image, sample.image)
        return self._flows[sample.name]


@dataclass(slots=True)
class _Tally:
    """What is counted of one way's label maps."""

    label_set: LabelSet
    confusion: ConfusionMatrix = field(init=False)
    consistency: ConfusionMatrix = field(init=False)
    labels: list[LabelMap] = field(default_factory=list)
    predictions: list[LabelMap] = field(default_factory=list)
    windows: dict[int, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.confusion = ConfusionMatrix(self.label_set.num_classes)
        self.consistency = ConfusionMatrix(self.label_set.num_classes)
        self.windows = {_SHORT_WINDOW: [], _LONG_WINDOW: []}

    def add(self, sample: Sample, prediction: LabelMap, flow: Flow | None) -> float:
        """The frame's own mIoU in percent. ``flow`` leads here from the frame before, if any."""
        own = ConfusionMatrix(self.label_set.num_classes)
        own.update(sample.label, prediction)
        self.confusion.counts += own.counts
        if flow is None:
            self._end_run()
        else:
            seen_from_before = warped(prediction, flow, outside=IGNORE_INDEX)
            self.consistency.update(seen_from_before, self.predictions[-1])
        self.labels.append(sample.label)
        self.predictions.append(prediction)
        is_shown = own.counts.sum(axis=1) > 0
        return float(100 * own.iou()[is_shown].mean()) if is_shown.any() else 100.0

    def figures(self, frames_per_second: float) -> Figures:
        self._end_run()
        iou = (100 * self.confusion.iou()).tolist()
        names = [label.name for label in self.label_set.labels]
        return Figures(
            100 * self.confusion.miou(),
            dict(zip(names, iou, strict=True)),
            100 * self.consistency.miou() if self.consistency.counts.any() else None,
            _mean_percent(self.windows[_SHORT_WINDOW]),
            _mean_percent(self.windows[_LONG_WINDOW]),
            frames_per_second,
        )

    def _end_run(self) -> None:
        """The next frame does not follow the last one."""
        if len(self.labels) > _SHORT_WINDOW:
            for length, values in self.windows.items():
                values += video_consistency(self.labels, self.predictions, length)
        self.labels, self.predictions = [], []


def _mean_percent(values: list[float]) -> float | None:
    return 100 * float(np.mean(values)) if values else None


def mean_iou(model: LMANet, samples: Iterable[Sample], way: Way) -> float:
    """mIoU in percent of one way, the frames taken as they are."""
    return Evaluation(model, samples).run(ways=(way,))[way].miou
