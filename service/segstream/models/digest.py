"""What tells two models apart."""

import hashlib
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from segstream.models.lmanet import LMANet


def model_digest(model: "LMANet") -> str:
    """What tells weights apart, and what the network does with them: BLAKE2b-128, hexadecimal."""
    config, spec = model.config, model.spec
    state = hashlib.blake2b(digest_size=16)
    state.update(f"{config.stream_length} {config.window_size} {config.label_set.name}".encode())
    state.update(f"{spec.name} {config.fusion} {spec.preprocessing.encode()}".encode())
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return state.hexdigest()
