from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig
from segstream.training.camvid import load_camvid
from segstream.training.evaluation import Evaluation, FrameResult, mean_iou
from segstream.training.metrics import ConfusionMatrix
from segstream.training.robustness import Degradation
from segstream.training.samples import Sample
from segstream.training.side_by_side import SideBySide, Way


@pytest.fixture
def model() -> LMANet:
    torch.manual_seed(3)
    return LMANet(LMANetConfig(CAMVID, 12, 2, 3)).eval()


@pytest.fixture
def drive(camvid: Path) -> list[Sample]:
    """Ten frames: the six there are, and back again."""
    samples = load_camvid(camvid, "val")
    there_and_back = [*samples, *samples[-2:0:-1]]
    return [
        replace(sample, name=str(number), seconds=number / 30)
        for number, sample in enumerate(there_and_back)
    ]


def test_figures_are_those_of_the_label_maps(model: LMANet, drive: list[Sample]) -> None:
    frames: list[FrameResult] = []
    figures = Evaluation(model, drive).run(on_frame=frames.append)
    assert len(frames) == len(drive) == 10
    for way in Way:
        confusion = ConfusionMatrix(CAMVID.num_classes)
        for frame in frames:
            confusion.update(frame.sample.label, frame.label_maps[way])
        assert figures[way].miou == pytest.approx(100 * confusion.miou())
        assert list(figures[way].iou.values()) == pytest.approx((100 * confusion.iou()).tolist())
        assert 0 <= (figures[way].tc or -1) <= 100
        assert 0 <= (figures[way].mvc8 or -1) <= 100
        assert figures[way].mvc16 is None, "the drive is too short"


def test_a_still_picture_is_perfectly_consistent(model: LMANet, drive: list[Sample]) -> None:
    still = [replace(drive[0], name=sample.name, seconds=sample.seconds) for sample in drive]
    single = Evaluation(model, still).run()[Way.SINGLE_FRAME]
    assert single.tc == pytest.approx(100)
    assert single.mvc8 == pytest.approx(100)


def test_stills_have_no_temporal_figures(model: LMANet, drive: list[Sample]) -> None:
    stills = [replace(sample, seconds=float(n)) for n, sample in enumerate(drive)]
    for figures in Evaluation(model, stills).run().values():
        assert (figures.tc, figures.mvc8, figures.mvc16) == (None, None, None)


def test_the_memory_does_not_cross_from_clip_to_clip(model: LMANet, drive: list[Sample]) -> None:
    clips = [replace(sample, clip=sample.name) for sample in drive[:3]]
    figures = Evaluation(model, clips).run()
    assert figures[Way.MEMORY].iou == figures[Way.SINGLE_FRAME].iou


def test_a_dropped_frame_leaves_the_answer_before_it(model: LMANet, drive: list[Sample]) -> None:
    frames: list[FrameResult] = []
    Evaluation(model, drive[:4]).run(
        degrade=Degradation("dropped", None, 2), on_frame=frames.append
    )
    for way in Way:
        maps = [frame.label_maps[way] for frame in frames]
        np.testing.assert_array_equal(maps[0], maps[1])
        np.testing.assert_array_equal(maps[2], maps[3])
    ways = SideBySide(model)
    ways.step(drive[0].image)
    np.testing.assert_array_equal(
        ways.step(drive[2].image)[Way.MEMORY], frames[2].label_maps[Way.MEMORY]
    )


def test_degraded_frames_are_compared_along_the_flow_of_clean_ones(
    model: LMANet, drive: list[Sample]
) -> None:
    evaluation = Evaluation(model, drive[:4])
    blank = Degradation("blank", lambda image, rng: np.zeros_like(image))
    first = evaluation.run(degrade=blank)
    clean = Evaluation(model, drive[:4])
    clean.run()
    second = clean.run(degrade=blank)
    assert first[Way.MEMORY].tc == second[Way.MEMORY].tc


def test_mean_iou_is_that_of_the_way(model: LMANet, drive: list[Sample]) -> None:
    figures = Evaluation(model, drive).run()
    assert mean_iou(model, drive, Way.MEMORY) == figures[Way.MEMORY].miou
