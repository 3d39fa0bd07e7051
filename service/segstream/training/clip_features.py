"""Clips as features: what the frozen encoder makes of them, computed once and used many times.

Of each still one scene is drawn. Of it are kept the last frame clean and spoilt twice, and each of
the T frames before it clean and spoilt. A clip takes one of each place, so that a scene gives
3 * 2^T different clips.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from segstream.models import Features, LMANet
from segstream.training.clip_simulation import ClipSimulation, Scene
from segstream.training.samples import Sample

_SPOILT_LAST = 2


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
        self._scenes: list[tuple[Features, Tensor]] = []
        for sample in samples:
            scene = simulation.scene(sample, rng)
            features = _encode(model, self._frames(scene, rng))
            self._scenes.append((features, torch.from_numpy(scene.label())))
            on_scene()

    def __len__(self) -> int:
        return len(self._scenes)

    def batch(
        self, indices: Sequence[int], length: int, rng: np.random.Generator
    ) -> tuple[Features, Tensor, Tensor]:
        """Clips of ``length`` frames: features ``(B, length, ...)``, those of the last frame
        unspoilt ``(B, C, h, w)``, labels ``(B, H, W)``."""
        clips = [self._clip(index, length, rng) for index in indices]
        labels = torch.stack([self._scenes[index][1] for index in indices])
        taps = torch.stack([clip.tap for clip in clips]).float()
        skips = zip(*(clip.skips for clip in clips), strict=True)
        features = Features(taps, tuple(torch.stack(skip).float() for skip in skips))
        return features, self._clean_taps(indices), labels

    def sample_taps(self, count: int, rng: np.random.Generator) -> Tensor:
        """Features ``(count, C, h, w)`` of clean last frames."""
        chosen = rng.permutation(len(self))[:count]
        return self._clean_taps(chosen.tolist())

    def _clean_taps(self, indices: Sequence[int]) -> Tensor:
        return torch.stack([self._scenes[index][0].tap[0] for index in indices]).float()

    def _frames(self, scene: Scene, rng: np.random.Generator) -> np.ndarray:
        """Last frames, clean and spoilt; then by age 1 .. T the clean one and the spoilt one."""
        frames = [scene.frame(0, rng, is_spoilt=spoilt > 0) for spoilt in range(1 + _SPOILT_LAST)]
        for age in range(1, self._length + 1):
            frames += [scene.frame(age, rng, is_spoilt=spoilt) for spoilt in (False, True)]
        return np.stack(frames)

    def _clip(self, index: int, length: int, rng: np.random.Generator) -> Features:
        features = self._scenes[index][0]
        rows = [
            1 + _SPOILT_LAST + 2 * (age - 1) + int(rng.random() < self._simulation.spoilt_past)
            for age in range(length - 1, 0, -1)
        ]
        is_spoilt = rng.random() < self._simulation.spoilt_last
        last = int(rng.integers(1, 1 + _SPOILT_LAST)) if is_spoilt else 0
        return Features(
            features.tap[[*rows, last]],
            tuple(skip[[last] * length] for skip in features.skips),
        )


@torch.no_grad()
def _encode(model: LMANet, frames: np.ndarray) -> Features:
    device = next(model.parameters()).device
    batch = torch.from_numpy(frames).to(device).permute(0, 3, 1, 2).float().div_(255)
    with torch.autocast(device.type, torch.bfloat16):
        features = model.encode(batch)
    last = slice(0, 1 + _SPOILT_LAST)
    return Features(
        features.tap.half().contiguous(), tuple(s[last].half().contiguous() for s in features.skips)
    )
