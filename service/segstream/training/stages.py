"""What the two stages of training draw, and what they minimise."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from segstream.errors import InvalidInputError
from segstream.label_sets import IGNORE_INDEX
from segstream.models import Features, LMANet
from segstream.models.memory import GatedScores, ResidualFusion
from segstream.training.augment import Augmentation
from segstream.training.batch import Batch, to_frames, to_labels
from segstream.training.clip_features import ClipFeatures
from segstream.training.clip_simulation import ClipSimulation
from segstream.training.config import Clips, Precision, Stage, TrainingConfig
from segstream.training.memory_start import start_as_identity
from segstream.training.real_clips import real_clip
from segstream.training.samples import Sample

_START_FRAMES = 24
_SHARE_OF_SHORT_CLIPS = 0.25
# Clips look as the camera gives them: else the memory learns to undo the augmentation.
_CLIP_SCALES = 0.95, 1.1
_CLIP_COLOUR_VARIATION = 0.2


class StageOfTraining(Protocol):
    """One stage."""

    @property
    def trained(self) -> list[nn.Module]:
        """The parts whose weights change."""

    def prepare(self, on_sample: Callable[[], None]) -> None:
        """What is done once, before the first epoch of a process."""

    def start(self) -> None:
        """Set the weights that the first epoch begins with."""

    def draw(self, indices: Sequence[int], rng: np.random.Generator) -> Batch:
        """A batch of these samples."""

    def loss(self, batch: Batch) -> Tensor:
        """To be minimised."""


def make_stage(
    model: LMANet,
    samples: Sequence[Sample],
    config: TrainingConfig,
    device: torch.device,
    teacher: LMANet | None = None,
) -> StageOfTraining:
    """The stage that ``config`` names; only the single stage listens to a teacher.

    The single stage leaves a model whose memory is still to be trained: it knew other features.
    """
    model.config = replace(model.config, has_memory=config.stage is Stage.MEMORY)
    criterion = Criterion(samples, model.config.num_channels, config.class_weight_offset).to(device)
    if config.stage is Stage.MEMORY:
        return MemoryStage(model, samples, config, criterion, device)
    return SingleFrameStage(model, samples, config, criterion, device, teacher)


class Criterion(nn.Module):
    """Cross-entropy weighted by class; pixels that are to be ignored do not count."""

    def __init__(self, samples: Sequence[Sample], num_channels: int, offset: float) -> None:
        super().__init__()
        weights = _class_weights(samples, num_channels, offset)
        self.cross_entropy = nn.CrossEntropyLoss(weight=weights, ignore_index=IGNORE_INDEX)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of logits ``(B, C, H', W')``, at least as large as the labels ``(B, H, W)``."""
        height, width = labels.shape[1:]
        loss: Tensor = self.cross_entropy(logits[..., :height, :width].float(), labels.long())
        return loss


@dataclass(eq=False)
class _Base:
    model: LMANet
    samples: Sequence[Sample]
    config: TrainingConfig
    criterion: Criterion
    device: torch.device

    def reduced(self) -> torch.autocast:
        """The precision of the convolutions."""
        is_reduced = self.config.precision is Precision.BFLOAT16
        return torch.autocast(self.device.type, torch.bfloat16, enabled=is_reduced)


@dataclass(eq=False)
class SingleFrameStage(_Base):
    """Encoder and decoder, on crops of stills, from their labels and from what a teacher sees."""

    teacher: LMANet | None

    def __post_init__(self) -> None:
        if self.teacher is not None:
            self.teacher.to(self.device).eval()

    @property
    def trained(self) -> list[nn.Module]:
        return [self.model.encoder, self.model.decoder]

    def prepare(self, on_sample: Callable[[], None]) -> None:
        """Nothing."""

    def start(self) -> None:
        """Nothing: the weights are those of the model."""

    def draw(self, indices: Sequence[int], rng: np.random.Generator) -> Batch:
        augmentation = Augmentation(*self.config.crop, *(self.config.scales or ()))
        crops, labels = zip(
            *(augmentation.still(self.samples[i], rng) for i in indices), strict=True
        )
        return Batch(to_frames(np.stack(crops), self.device), to_labels(labels, self.device))

    def loss(self, batch: Batch) -> Tensor:
        assert isinstance(batch.frames, Tensor)
        with self.reduced():
            logits = self.model.segment_single(batch.frames)
        loss: Tensor = self.criterion(logits, batch.labels)
        if self.teacher is not None:
            with torch.no_grad(), self.reduced():
                taught = self.teacher.segment_single(batch.frames)
            height, width = batch.labels.shape[1:]
            seen = (each[..., :height, :width] for each in (logits, taught))
            loss = loss + self.config.teacher_weight * _divergence(*seen)
        return loss


@dataclass(eq=False)
class MemoryStage(_Base):
    """The memory's heads and fusion, on clips; the encoder is left as it is."""

    def __post_init__(self) -> None:
        config = self.config
        self.simulation = ClipSimulation(
            Augmentation(*config.crop, *(config.scales or _CLIP_SCALES), _CLIP_COLOUR_VARIATION),
            spoilt_whole=config.spoilt_whole,
            spoilt_last=config.spoilt_last,
            spoilt_past=config.spoilt_past,
        )
        self._features: ClipFeatures | None = None

    @property
    def trained(self) -> list[nn.Module]:
        """A residual fusion keeps its norms as they began: else its branches did not cancel out."""
        model, fusion = self.model, self.model.fusion
        parts: list[nn.Module] = [model.memory_head, model.query_head]
        parts += fusion.convolutions if isinstance(fusion, ResidualFusion) else [fusion]
        return [*parts, model.decoder] if self.config.train_decoder else parts

    def prepare(self, on_sample: Callable[[], None]) -> None:
        if self.config.clips is Clips.CACHED:
            rng = np.random.default_rng((self.config.seed, 1))
            self._features = ClipFeatures(self.model, self.samples, self.simulation, rng, on_sample)

    def start(self) -> None:
        """A fusion of one's own begins as the identity, a published one at the features' scale."""
        rng = np.random.default_rng((self.config.seed, 2))
        taps = self._sample_taps(rng).to(self.device)
        if isinstance(self.model.fusion, GatedScores | ResidualFusion):
            start_as_identity(self.model, taps)
            return
        norm = self.model.fusion.bn
        assert isinstance(norm, nn.BatchNorm2d)
        with torch.no_grad():
            norm.weight.copy_(taps.std(dim=(0, 2, 3)))
            norm.bias.copy_(taps.mean(dim=(0, 2, 3)))

    def draw(self, indices: Sequence[int], rng: np.random.Generator) -> Batch:
        length = self.model.config.memory_length + 1
        if length > 2 and rng.random() < _SHARE_OF_SHORT_CLIPS:
            length = int(rng.integers(2, length))
        if self._features is not None:
            return self._features.batch(indices, length, rng)
        clips, last, label_maps = zip(
            *(self._clip(self.samples[i], length, rng) for i in indices), strict=True
        )
        frames = to_frames(np.concatenate(clips), self.device).unflatten(0, (len(clips), length))
        clean = to_frames(np.stack(last), self.device)
        return Batch(frames, to_labels(label_maps, self.device), clean)

    def loss(self, batch: Batch) -> Tensor:
        """The labels decide; the features must also come near to those of the unspoilt frame."""
        clips, clean = batch.frames, batch.clean
        features = clips if isinstance(clips, Features) else self._encode(clips)
        fused = self.model.fuse_window(features)
        last = features.map(lambda tensor: tensor[:, -1])
        with self.reduced():
            logits = self.model.decode(Features(fused, last.skips))
        loss: Tensor = self.criterion(logits, batch.labels)
        if self.config.train_decoder:
            with self.reduced():
                single = self.model.decode(last)
            loss = (loss + self.criterion(single, batch.labels)) / 2
        if self.config.matching_weight and clean is not None:
            wanted = (
                clean if isinstance(clips, Features) else self._encode(clean[:, None]).tap[:, 0]
            )
            loss = loss + self.config.matching_weight * _mismatch(fused, wanted)
        return loss

    @torch.no_grad()
    def _encode(self, clips: Tensor) -> Features:
        with self.reduced():
            features = self.model.encode_window(clips)
        return features.map(lambda tensor: tensor.float())

    def _clip(
        self, sample: Sample, length: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if self.config.clips is Clips.REAL:
            return real_clip(sample, length, self.simulation, rng)
        return self.simulation.clip(sample, length, rng)

    def _sample_taps(self, rng: np.random.Generator) -> Tensor:
        if self._features is not None:
            return self._features.sample_taps(_START_FRAMES, rng)
        chosen = rng.permutation(len(self.samples))[:_START_FRAMES]
        crops = [self.simulation.crop.still(self.samples[i], rng)[0] for i in chosen]
        with torch.no_grad():
            return self.model.encode(to_frames(np.stack(crops), self.device)).tap


def _divergence(logits: Tensor, taught: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the teacher's classes, by pixel (Hinton et al. 2015).

    Both ``(B, C, H, W)``.
    """
    logits, taught = (x.float().log_softmax(dim=1) for x in (logits, taught))
    return nn.functional.kl_div(logits, taught, reduction="none", log_target=True).sum(dim=1).mean()


def _mismatch(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared difference of features ``(B, C, h, w)``, in variances of their channels."""
    variances = wanted.var(dim=(0, 2, 3), keepdim=True)
    floor = 0.01 * variances.mean()  # of channels that hardly ever speak
    return ((found - wanted).square() / variances.clamp(min=floor)).mean()


def _class_weights(samples: Sequence[Sample], num_channels: int, offset: float) -> Tensor:
    """0 for channels without labels."""
    counts = np.zeros(256, np.int64)
    for sample in samples:
        counts += np.bincount(sample.label.ravel(), minlength=256)
    counts = counts[:num_channels]
    if not counts.any():
        raise InvalidInputError("no pixel of the training frames has a label")
    weights = 1 / np.log(offset + counts / counts.sum()) if offset else np.ones(num_channels)
    return torch.from_numpy(np.where(counts > 0, weights, 0)).float()
