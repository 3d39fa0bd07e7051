"""Clips as features: what the frozen encoder makes of them, computed once and used many times.

Of each still one scene is drawn, and a way in which its frames are spoilt. Of it are kept the last
frame clean, spoilt in this way and in another one, and each of the T frames before it clean and
spoilt. A clip takes one of each place, so that a scene gives 3 * 2^T different clips.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from segstream.models import Features, LMANet
from segstream.training.batch import Batch, to_frames
from segstream.training.clip_simulation import ClipSimulation, Scene
from segstream.training.degradations import any_kind
from segstream.training.samples import Sample

_SPOILT_LAST = 2


class _CachedScene(NamedTuple):
    features: Features
    labels: Tensor


class ClipFeatures:
    """Features of one scene per sample, held in half precision."""

    def __init__(
        self,
        model: LMANet,
        samples: Sequence[Sample],
        simulation: ClipSimulation,
        rng: np.random.Generator,
        on_scene: Callable[[], None] = lambda: None,
    ) -> None:
        self._length = model.config.memory_length
        self._simulation = simulation
        self._device = next(model.parameters()).device
        self._scenes: list[_CachedScene] = []
        for sample in samples:
            scene = simulation.scene(sample, rng)
            frames = to_frames(self._frames(scene, rng), self._device)
            features = _encode(model, frames)
            self._scenes.append(_CachedScene(features, torch.from_numpy(scene.label())))
            on_scene()

    def __len__(self) -> int:
        return len(self._scenes)

    def batch(self, indices: Sequence[int], length: int, rng: np.random.Generator) -> Batch:
        """Features of clips of ``length`` frames, of these scenes."""
        clips = [self._clip(index, length, rng) for index in indices]
        skips = zip(*(clip.skips for clip in clips), strict=True)
        features = Features(
            self._stack([clip.tap for clip in clips]), tuple(self._stack(skip) for skip in skips)
        )
        labels = torch.stack([self._scenes[index].labels for index in indices]).to(self._device)
        return Batch(features, labels, self._clean_taps(indices))

    def sample_taps(self, count: int, rng: np.random.Generator) -> Tensor:
        """Features ``(count, C, h, w)`` of clean last frames."""
        chosen = rng.permutation(len(self))[:count]
        return self._clean_taps(chosen.tolist())

    def _clean_taps(self, indices: Sequence[int]) -> Tensor:
        return self._stack([self._scenes[index].features.tap[0] for index in indices])

    def _stack(self, tensors: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(tensors)).to(self._device).float()

    def _frames(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """The last frame clean and spoilt; then by age 1 .. T the clean one and the spoilt one."""
        usual, others = any_kind(rng), [any_kind(rng) for _ in range(_SPOILT_LAST - 1)]
        frames = [scene.frame(0, rng, spoil) for spoil in (None, usual, *others)]
        for age in range(1, self._length + 1):
            frames += [scene.frame(age, rng, spoil) for spoil in (None, usual)]
        return np.stack(frames)

    def _clip(self, index: int, length: int, rng: np.random.Generator) -> Features:
        features = self._scenes[index].features
        (*past, is_last_spoilt), are_alike = self._simulation.which_are_spoilt(length, rng)
        ages = range(length - 1, 0, -1)
        rows = [
            1 + _SPOILT_LAST + 2 * (age - 1) + int(is_spoilt)
            for age, is_spoilt in zip(ages, past, strict=True)
        ]
        last = 0
        if is_last_spoilt:
            last = 1 if are_alike else int(rng.integers(1, 1 + _SPOILT_LAST))
        return Features(
            features.tap[[*rows, last]],
            tuple(skip[[last] * length] for skip in features.skips),
        )


@torch.no_grad()
def _encode(model: LMANet, frames: Tensor) -> Features:
    with torch.autocast(frames.device.type, torch.bfloat16):
        features = model.encode(frames)
    last = slice(0, 1 + _SPOILT_LAST)
    return Features(
        features.tap.half().contiguous(), tuple(s[last].half().contiguous() for s in features.skips)
    )
