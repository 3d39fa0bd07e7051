from pathlib import Path

import numpy as np
import pytest
import torch

from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig
from segstream.pages import Pages
from segstream.training.camvid import load_camvid
from segstream.training.side_by_side import SideBySide, Way


@pytest.fixture
def model() -> LMANet:
    torch.manual_seed(3)
    model = LMANet(LMANetConfig(CAMVID, 12, 2, 3)).eval().requires_grad_(False)
    model.query_head.load_state_dict(model.memory_head.state_dict())
    return model


@pytest.fixture
def images(camvid: Path) -> list[np.ndarray]:
    return [sample.image for sample in load_camvid(camvid, "val")]


def frame(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None] / 255


def label_map(logits: torch.Tensor) -> np.ndarray:
    return np.asarray(logits[0, : CAMVID.num_classes].argmax(dim=0).numpy(), np.uint8)


def test_the_first_frame_has_no_past(model: LMANet, images: list[np.ndarray]) -> None:
    first = SideBySide(model).step(images[0])
    assert set(first) == set(Way)
    for way in Way:
        np.testing.assert_array_equal(first[way], label_map(model.segment_single(frame(images[0]))))


def test_memory_is_what_a_stream_gives(model: LMANet, images: list[np.ndarray]) -> None:
    ways, stream = SideBySide(model), model.stream(runtime="torch")
    for image in images:
        answers = ways.step(image)
        np.testing.assert_array_equal(answers[Way.MEMORY], label_map(stream.step(frame(image))))
        np.testing.assert_array_equal(
            answers[Way.SINGLE_FRAME], label_map(model.segment_single(frame(image)))
        )


def test_the_control_remembers_the_present_frame_alone(
    model: LMANet, images: list[np.ndarray]
) -> None:
    ways = SideBySide(model)
    ways.step(images[0])
    answer = ways.step(images[3])[Way.CONTROL]
    features = model.encode(frame(images[3]))
    keys, values = model.memory_head(features.tap)
    pages = Pages(torch.cat([keys] * 2), torch.cat([values] * 2))
    slots = torch.tensor([[0, 1]], dtype=torch.int32)
    fused = model.fuse(features.tap, pages, slots)
    wanted = label_map(model.decode(features._replace(tap=fused))[..., :72, :96])
    assert (answer == wanted).mean() > 0.999


def test_averaged_logits_hold_the_past(model: LMANet, images: list[np.ndarray]) -> None:
    ways = SideBySide(model)
    ways.step(images[0])
    answer = ways.step(images[5])[Way.LOGIT_EMA]
    both = [model.segment_single(frame(image)) for image in (images[0], images[5])]
    np.testing.assert_array_equal(answer, label_map((both[0] + both[1]) / 2))


def test_a_new_stream_begins_anew(model: LMANet, images: list[np.ndarray]) -> None:
    ways = SideBySide(model)
    first = ways.step(images[2])
    ways.step(images[0])
    ways.reset()
    again = ways.step(images[2])
    for way in Way:
        np.testing.assert_array_equal(first[way], again[way])


def test_speeds_are_of_each_way_alone(model: LMANet, images: list[np.ndarray]) -> None:
    ways = SideBySide(model)
    for image in images[:3]:
        ways.step(image)
    speeds = ways.frames_per_second()
    assert set(speeds) == set(Way)
    assert speeds[Way.SINGLE_FRAME] >= speeds[Way.LOGIT_EMA] > 0


def test_a_network_without_memory_has_two_ways(images: list[np.ndarray]) -> None:
    model = LMANet(LMANetConfig(CAMVID, 12, has_memory=False)).eval()
    assert set(SideBySide(model).step(images[0])) == {Way.SINGLE_FRAME, Way.LOGIT_EMA}


@pytest.mark.parametrize("way", Way)
def test_one_way_alone_gives_what_it_gives_among_all(
    model: LMANet, images: list[np.ndarray], way: Way
) -> None:
    together, alone = SideBySide(model), SideBySide(model, (way,))
    for image in images[:4]:
        answers = alone.step(image)
        assert set(answers) == {way}
        np.testing.assert_array_equal(answers[way], together.step(image)[way])
