"""Small real networks, some of which stop or fail when a test wants them to."""

import threading

import torch
from torch import Tensor

from segstream.label_sets import CAMVID
from segstream.media.images import Image
from segstream.models import Features, LMANet, LMANetConfig

MEMORY_LENGTH = 2
WINDOW_SIZE = 3
TIMEOUT_SECONDS = 30.0


class GatedLMANet(LMANet):
    """Waits in its forward while the gate is shut, and fails on a frame that is white all over."""

    def __init__(self, config: LMANetConfig) -> None:
        super().__init__(config)
        self.gate = threading.Event()
        self.gate.set()
        self.has_entered = threading.Event()
        self.batches: list[tuple[int, ...]] = []

    def shut(self) -> None:
        self.has_entered.clear()
        self.gate.clear()

    def encode(self, frames: Tensor) -> Features:
        self.batches.append(tuple(frames.shape))
        self.has_entered.set()
        assert self.gate.wait(TIMEOUT_SECONDS), "the gate was left shut"
        if (frames == 1.0).flatten(1).all(dim=1).any():
            raise RuntimeError("poison frame")
        return super().encode(frames)


def make_network(seed: int = 0) -> GatedLMANet:
    """Random weights under which neighbouring pixels get different classes, and memory matters."""
    config = LMANetConfig(CAMVID, 12, memory_length=MEMORY_LENGTH, window_size=WINDOW_SIZE)
    network = GatedLMANet(config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.uniform_(0.5, 2.0, generator=generator)
        elif name.endswith(("running_mean", "bias")):
            tensor.normal_(0.0, 0.3, generator=generator)
        elif tensor.dim() == 1:
            tensor.uniform_(0.4, 1.2, generator=generator)
        elif tensor.dim() == 4:
            # Small keys keep the softmax over the window from picking a single neighbour.
            gain = 0.1 if ".key." in name else 1.5
            fan_in = tensor.numel() / max(tensor.shape[:2])
            tensor.normal_(0.0, (gain / fan_in) ** 0.5, generator=generator)
    return network


def make_plain_network(seed: int = 0) -> LMANet:
    """The same weights in a network that does nothing but compute."""
    network = make_network(seed)
    plain = LMANet(network.config).eval().requires_grad_(False)
    plain.load_state_dict(network.state_dict())
    return plain


def as_frames(image: Image) -> Tensor:
    """``(1, 3, H, W)`` floats in 0..1."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float().div(255)
