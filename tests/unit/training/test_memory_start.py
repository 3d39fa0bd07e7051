from dataclasses import replace

import pytest
import torch

from segstream.errors import InvalidInputError
from segstream.label_sets import CAMVID
from segstream.models import Features, LMANet, LMANetConfig
from segstream.models.espnet import espnet
from segstream.models.memory import GatedScores, SignedResidualFusion
from segstream.training.memory_start import fusion_to_train, start_as_identity, with_fusion
from tests.support.networks import patches

CONFIG = LMANetConfig(CAMVID, 12, 2, 3, fusion="residual-do1")


def features(count: int) -> torch.Tensor:
    """As an encoder leaves them, of some 40 degrees of freedom: not negative, and correlated."""
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(40, 128, generator=generator)
    blocks = torch.randn(count, 12, 10, 40, generator=generator)
    return (blocks @ mixed).permute(0, 3, 1, 2).relu()


@pytest.fixture
def model() -> LMANet:
    torch.manual_seed(0)
    model = LMANet(CONFIG).eval().requires_grad_(False)
    start_as_identity(model, features(4))
    return model


def test_a_memory_of_the_same_picture_changes_little(model: LMANet) -> None:
    tap = features(2)
    fused = model.fuse_window(Features(torch.stack([tap, tap, tap], dim=1)))
    assert (fused - tap).abs().mean() < 0.05 * tap.abs().mean()


def test_a_memory_of_another_picture_draws_towards_it(model: LMANet) -> None:
    now, before = features(2).split(1)
    fused = model.fuse_window(Features(torch.stack([before, now], dim=1)))
    assert not torch.allclose(fused, now, atol=0.05)
    assert (fused - before).square().mean() < (now - before).square().mean()


def test_only_a_residual_fusion_can_begin_so() -> None:
    with pytest.raises(InvalidInputError, match=r"sigmoid-do1.*only residual ones"):
        start_as_identity(LMANet(LMANetConfig(CAMVID, 12)), features(1))


def test_a_fusion_may_be_exchanged_for_one_of_the_same_layers() -> None:
    model = LMANet(LMANetConfig(CAMVID, 12))
    changed = with_fusion(model, "residual-do1")
    assert changed.config.fusion == "residual-do1"
    assert changed.encoder is model.encoder
    assert with_fusion(changed, "residual-do1") is changed
    with pytest.raises(InvalidInputError, match="sigmoid-down1"):
        with_fusion(model, "sigmoid-down1")


def test_an_untrained_memory_makes_way_for_one_of_other_layers() -> None:
    model = LMANet(replace(CONFIG, fusion="sigmoid-do1", has_memory=False), espnet(12))
    changed = with_fusion(model, "gated-scores")
    assert changed.config.fusion == "gated-scores"
    for name, tensor in model.decoder.state_dict().items():
        assert torch.equal(changed.decoder.state_dict()[name], tensor)


@pytest.fixture
def scores_model() -> LMANet:
    torch.manual_seed(0)
    config = replace(CONFIG, fusion="gated-scores")
    model = LMANet(config, espnet(12)).eval().requires_grad_(False)
    start_as_identity(model, 3 * torch.randn(4, 12, 12, 10))
    return model


def test_gated_scores_begin_at_the_present_frame(scores_model: LMANet) -> None:
    now, before = (3 * torch.randn(2, 12, 12, 10)).split(1)
    fused = scores_model.fuse_window(Features(torch.stack([before, now], dim=1)))
    again = scores_model.fuse_window(Features(torch.stack([now, now], dim=1)))
    assert (again - now).abs().mean() < 0.05 * now.abs().mean()
    assert 0.1 < (fused - now).abs().mean() / (again - before).abs().mean() < 0.3


def test_gated_scores_lie_between_those_of_frame_and_memory(scores_model: LMANet) -> None:
    fusion = scores_model.fusion
    assert isinstance(fusion, GatedScores)
    for layer in (fusion.hidden, fusion.gate):
        torch.nn.init.normal_(layer.weight)
    now, read = torch.randn(2, 1, 12, 6, 5)
    fused = scores_model.fusion(now.permute(0, 2, 3, 1), read.permute(0, 2, 3, 1), now)
    assert (fused >= torch.minimum(now, read) - 1e-5).all()
    assert (fused <= torch.maximum(now, read) + 1e-5).all()
    share = (fused - now) / (read - now)
    assert share.min() < 0.1
    assert share.max() > 0.9


def test_features_may_be_negative_where_nothing_cuts_them_off() -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, fusion="signed-residual-do1")
    model = LMANet(config).eval().requires_grad_(False)
    tap = features(3) - 4
    start_as_identity(model, tap)
    fused = model.fuse_window(Features(torch.stack([tap, tap], dim=1)))
    assert (fused - tap).abs().mean() < 0.05 * tap.abs().mean()
    with pytest.raises(InvalidInputError, match="runtime is 'native'"):
        model.stream(runtime="native")


def test_each_network_is_trained_with_the_fusion_that_fits_it() -> None:
    erfnet = LMANet(LMANetConfig(CAMVID, 12))
    scores, other = (LMANet(LMANetConfig(CAMVID, 12), build(12)) for build in (espnet, patches))
    assert fusion_to_train(erfnet) == "residual-do1"
    assert fusion_to_train(scores) == "gated-scores"
    assert fusion_to_train(other) == "signed-residual-do1"
    assert fusion_to_train(with_fusion(erfnet, "residual-do1")) == "residual-do1"


def test_a_step_of_the_optimiser_changes_faint_channels_as_little_as_loud_ones() -> None:
    torch.manual_seed(0)
    model = LMANet(replace(CONFIG, fusion="signed-residual-do1")).eval().requires_grad_(False)
    loudness = torch.logspace(-2, 0, 128).view(1, 128, 1, 1)
    tap = loudness * features(2)
    start_as_identity(model, tap)
    clip = Features(torch.stack([tap, tap], dim=1))
    before = model.fuse_window(clip)
    assert isinstance(model.fusion, SignedResidualFusion)
    for convolution in model.fusion.convolutions:
        convolution.weight += 1e-3 * torch.randn_like(convolution.weight).sign()
    changes = (model.fuse_window(clip) - before).std(dim=(0, 2, 3)) / tap.std(dim=(0, 2, 3))
    assert changes.min() > 0
    assert changes[:16].mean() < 2 * changes[-16:].mean()
