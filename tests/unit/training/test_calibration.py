from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from segstream.errors import InvalidInputError
from segstream.label_sets import CAMVID
from segstream.models import LMANet, LMANetConfig
from segstream.models.network import adapt
from segstream.training import calibration
from segstream.training.calibration import best_biases, calibrate
from segstream.training.camvid import load_camvid
from segstream.training.metrics import ConfusionMatrix
from tests.unit.training.conftest import CAR, ROAD, SKY


def noisy_logits(labels: Tensor, num_classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(labels), num_classes, generator=generator)
    return noise + 2 * torch.nn.functional.one_hot(labels, num_classes)


def test_a_class_found_too_often_is_held_back() -> None:
    labels = torch.tensor([0] * 6000 + [1] * 3000 + [2] * 300)
    fair = noisy_logits(labels, 3)
    unfair = fair + torch.tensor([0.0, 0.0, 1.5])
    fair_biases, biases = best_biases(fair, labels), best_biases(unfair, labels)
    held_back = (biases[2] - biases[:2].mean()) - (fair_biases[2] - fair_biases[:2].mean())
    assert -2.0 < held_back < -1.0


def test_what_is_best_already_is_left_alone() -> None:
    labels = torch.arange(4).repeat(100)
    logits = 5.0 * torch.nn.functional.one_hot(labels, 4)
    assert not best_biases(logits, labels).any()


def test_a_class_without_labels_is_left_alone() -> None:
    labels = torch.tensor([0] * 600 + [1] * 300)
    biases = best_biases(noisy_logits(labels, 3) + torch.tensor([0.0, 1.0, 2.0]), labels)
    assert biases[2] == 0
    assert biases[0] > 1, "against the class that nothing is labelled with"


@pytest.fixture
def model() -> LMANet:
    torch.manual_seed(0)
    return LMANet(LMANetConfig(CAMVID, 12, memory_length=2, window_size=3)).eval()


def test_only_the_last_bias_of_a_copy_changes(camvid: Path, model: LMANet) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    calls: list[None] = []
    calibrated, found = calibrate(model, load_camvid(camvid, "train"), lambda: calls.append(None))
    assert len(calls) == 6
    is_labelled = ~found.before.isnan()
    assert is_labelled.nonzero().flatten().tolist() == [SKY, ROAD, CAR]
    assert found.after[is_labelled].mean() > found.before[is_labelled].mean()
    assert not found.biases[~is_labelled].any()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    changed = {
        name
        for name, tensor in calibrated.state_dict().items()
        if not torch.equal(tensor, before[name])
    }
    assert changed == {"decoder.output_conv.bias"}
    bias = calibrated.state_dict()["decoder.output_conv.bias"]
    torch.testing.assert_close(bias[:11] - before["decoder.output_conv.bias"][:11], found.biases)
    assert bias[11] == before["decoder.output_conv.bias"][11]


def test_the_calibrated_network_does_as_told_on_a_grid_of_any_frames(
    camvid: Path, model: LMANet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of 70x90 pixels, which the network pads, and every third pixel of them."""
    samples = [
        replace(sample, image=sample.image[:70, :90].copy(), label=sample.label[:70, :90].copy())
        for sample in load_camvid(camvid, "train")
    ]
    monkeypatch.setattr(calibration, "_MAX_PIXELS", 6 * 70 * 90 // 9)
    calibrated, found = calibrate(model, samples)
    counts = ConfusionMatrix(11)
    with torch.inference_mode():
        for sample in samples:
            frame = torch.from_numpy(sample.image).permute(2, 0, 1)[None] / 255
            logits = calibrated.segment_single(frame)[0, :11, :70, :90]
            label_map = logits.argmax(dim=0).to(torch.uint8).numpy()
            counts.update(sample.label[::3, ::3], label_map[::3, ::3])
    is_labelled = ~found.after.isnan()
    expected = torch.from_numpy(counts.iou()).float()
    torch.testing.assert_close(found.after[is_labelled], expected[is_labelled], atol=1e-3, rtol=0)


def test_the_calibrated_network_can_be_trained_on(camvid: Path, model: LMANet) -> None:
    calibrated, _ = calibrate(model, load_camvid(camvid, "train")[:1])
    bias = calibrated.decoder.get_parameter("output_conv.bias").requires_grad_()
    calibrated.segment_single(torch.rand(1, 3, 32, 32)).sum().backward()
    assert bias.grad is not None


class Decoder(nn.Module):
    """Ends with a layer without a bias, or with one whose output is changed once more."""

    def __init__(self, *, has_bias: bool) -> None:
        super().__init__()
        self.last = nn.Conv2d(4, 12, 1, bias=has_bias)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.last(features)
        return 2 * logits


@pytest.mark.parametrize("has_bias", [False, True])
def test_a_network_without_such_a_bias_is_refused(camvid: Path, has_bias: bool) -> None:
    network = adapt("mine", nn.Conv2d(3, 4, 8, stride=8), Decoder(has_bias=has_bias), stride=8)
    model = LMANet(LMANetConfig(CAMVID, 12), network)
    with pytest.raises(
        InvalidInputError, match="network 'mine' does not end with a convolution whose bias"
    ):
        calibrate(model, load_camvid(camvid, "train"))
