"""How the memory begins: as a network that changes little, and whose keys tell places apart.

With ``gated-scores`` keys begin as the whitened principal components of the scores, and the gates
hardly open. With a residual fusion keys and values begin as the features' whitened
principal components. The fusion's two branches begin as opposites, so that it adds to the
features::

    out = relu(features + gate * U (readout - value))

U leads back from the principal components to the features, and the gates begin half open. Where the
memory holds what is seen, read-out and value agree and nothing is added. The last norm holds the
features' deviations, so that the convolutions before it, and the steps of the optimiser, are alike
for features of any scale.
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from segstream.errors import InvalidInputError
from segstream.models import LMANet, Network
from segstream.models.erfnet import ERFNetEncoder
from segstream.models.lmanet import channels_last
from segstream.models.memory import GatedScores, KeyValueHead, ResidualFusion
from segstream.models.published import is_of_memory

_FIRST_GATE = 0.5
_FIRST_GATE_OF_SCORES = 0.2
_LEAST_DEVIATION = 1e-3
"""Of a component or a channel, as a share of the largest one."""
_OFFSET = 3.0
"""Deviations by which values are lifted, so that the ReLU before the branches cuts little off."""


def fusion_to_train(model: LMANet) -> str:
    """One for its features in place of ``sigmoid-do1``, else the model's own."""
    if model.config.fusion != "sigmoid-do1":
        return model.config.fusion
    if model.spec.feature_channels == model.config.num_channels:
        return "gated-scores"
    return "residual-do1" if isinstance(model.encoder, ERFNetEncoder) else "signed-residual-do1"


def with_fusion(model: LMANet, fusion: str) -> LMANet:
    """The same weights under another fusion, of the same layers if the memory is trained.

    Raises InvalidInputError.
    """
    if fusion == model.config.fusion:
        return model
    network = Network(model.spec, model.encoder, model.decoder, model.config.num_channels)
    changed = LMANet(replace(model.config, fusion=fusion), network)
    kept = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if model.config.has_memory or not is_of_memory(name)
    }
    try:
        changed.load_state_dict(kept, strict=model.config.has_memory)
    except RuntimeError as error:
        raise InvalidInputError(
            f"fusion {fusion!r} has other layers than {model.config.fusion!r}", field="fusion"
        ) from error
    return channels_last(changed.train(model.training))


@torch.no_grad()
def start_as_identity(model: LMANet, features: Tensor) -> None:
    """Set heads and fusion from features ``(N, C, h, w)`` of frames as they will be seen.

    Raises InvalidInputError for another fusion.
    """
    fusion = model.fusion
    if not isinstance(fusion, GatedScores | ResidualFusion):
        raise InvalidInputError(
            f"fusion is {model.config.fusion!r}, only residual ones and gated-scores can begin as "
            "the identity",
            field="fusion",
        )
    mean, components, deviations = _principal_components(features)
    for head in (model.memory_head, model.query_head):
        _set_head(head, mean, components, deviations)
    if isinstance(fusion, GatedScores):
        _set_gate(fusion.gate, _FIRST_GATE_OF_SCORES)
        return
    rank = min(fusion.query_conv.in_channels, len(deviations))
    scales = features.std(dim=(0, 2, 3)).double()
    scales = scales.clamp(min=_LEAST_DEVIATION * float(scales.max()))
    back = components[:, :rank] * deviations[:rank] / scales[:, None]
    _set_centre(fusion.query_conv, -back)
    _set_centre(fusion.memory_conv, back)
    for gate in (fusion.query_gate, fusion.memory_gate):
        _set_gate(gate, _FIRST_GATE)
    for norm in (fusion.query_bn, fusion.memory_bn, fusion.bn):
        norm.reset_parameters()
    fusion.bn.weight.copy_(scales)


def _principal_components(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean ``(C,)``, components ``(C, C)`` as columns, strongest first, and their deviations."""
    pixels = features.permute(0, 2, 3, 1).flatten(0, 2).double()
    mean = pixels.mean(dim=0)
    variances, vectors = torch.linalg.eigh((pixels - mean).T.cov())
    deviations = variances.flip(0).clamp(min=1e-12).sqrt()
    return mean, vectors.flip(1), deviations.clamp(min=_LEAST_DEVIATION * float(deviations[0]))


def _set_head(head: KeyValueHead, mean: Tensor, components: Tensor, deviations: Tensor) -> None:
    whitened = (components / deviations).T
    for conv, offset in ((head.key, 0.0), (head.value, _OFFSET)):
        if not isinstance(conv, nn.Conv2d):
            continue  # the values are the features themselves
        rank = min(conv.out_channels, len(whitened))
        _set_centre(conv, whitened[:rank])
        _bias(conv)[:rank] = offset - (whitened[:rank] @ mean).to(conv.weight)


def _set_gate(conv: nn.Conv2d, share: float) -> None:
    """A gate that is open by this share everywhere."""
    nn.init.zeros_(conv.weight)
    nn.init.constant_(_bias(conv), math.log(share / (1 - share)))


def _set_centre(conv: nn.Conv2d, matrix: Tensor) -> None:
    """A 3x3 convolution that is this matrix at its centre and nothing around it."""
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(_bias(conv))
    rows, columns = matrix.shape
    conv.weight[:rows, :columns, 1, 1] = matrix.to(conv.weight)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias
