"""A small real network with random weights, and what it makes of a video by itself."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from segstream.label_sets import CAMVID
from segstream.media.images import Image
from segstream.media.label_maps import LabelMap, label_map_digest
from segstream.models import LMANet, LMANetConfig, load
from segstream.models.checkpoint import save
from tests import oracle

MEMORY_LENGTH = 3
WINDOW_SIZE = 5
STREET, DRIVE = "street", "drive"
"""The names of the models that tests serve: Cityscapes classes, and CamVid's."""


def write_street_checkpoint(folder: Path) -> Path:
    """A checkpoint of weights under which neighbouring pixels get many different classes."""
    published = folder / "published.pth"
    weights = oracle.random_weights(7)
    torch.save(
        {name: torch.from_numpy(array).float() for name, array in weights.items()}, published
    )
    path = folder / f"{STREET}.safetensors"
    save(load(published, memory_length=MEMORY_LENGTH, window_size=WINDOW_SIZE), path)
    published.unlink()
    return path


def write_drive_checkpoint(folder: Path) -> Path:
    path = folder / f"{DRIVE}.safetensors"
    torch.manual_seed(3)
    save(LMANet(LMANetConfig(CAMVID, CAMVID.num_classes, memory_length=1, window_size=3)), path)
    return path


def make_video(num_frames: int, height: int = 48, width: int = 64, *, seed: int = 0) -> list[Image]:
    """A scene of coloured patches that moves, each frame in a light of its own."""
    rng = np.random.default_rng(seed)
    patches = rng.integers(0, 256, (-(-height // 8), -(-width // 8), 3), np.uint8)
    scene = patches.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    lights = rng.uniform(0.3, 1.0, num_frames)
    return [
        np.ascontiguousarray((np.roll(scene, (index, 2 * index), (0, 1)) * light).astype(np.uint8))
        for index, light in enumerate(lights)
    ]


def segment_alone(model: LMANet, images: Iterable[Image]) -> list[LabelMap]:
    """The label maps of ``LMANet.stream()`` for the frames of one video."""
    stream = model.stream()
    num_classes = model.config.label_set.num_classes
    return [
        stream.step(as_frames(image))[0, :num_classes].argmax(dim=0).to(torch.uint8).numpy()
        for image in images
    ]


def as_frames(image: Image) -> torch.Tensor:
    """``(1, 3, H, W)`` floats in 0..1."""
    return torch.from_numpy(image).permute(2, 0, 1)[None].float().div(255)


def digests(label_maps: Iterable[LabelMap]) -> list[bytes]:
    return [label_map_digest(label_map) for label_map in label_maps]
