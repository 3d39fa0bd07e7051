"""Training in two stages: the single-frame network, then its memory on simulated clips."""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from segstream.errors import InvalidInputError
from segstream.label_sets import IGNORE_INDEX
from segstream.models.checkpoint import save
from segstream.models.lmanet import LMANet, LMANetConfig, channels_last
from segstream.training.augment import Augmentation
from segstream.training.camvid import Sample
from segstream.training.config import Stage, TrainingConfig
from segstream.training.evaluation import evaluate_single_frame, evaluate_stream

_EMA_DECAY = 0.995


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What one epoch gave; ``miou`` in percent on the validation frames, where it was measured."""

    epoch: int
    loss: float
    miou: float | None


class Trainer:
    """Trains ``model`` and keeps its state in ``out``.

    ``out`` receives ``model.safetensors`` (running average of the weights) and ``log.csv`` after
    each epoch, and ``state.pt``, from which a stopped run goes on. The result depends only on
    config, data and the weights at the start.
    """

    def __init__(
        self,
        model: LMANet,
        train: list[Sample],
        val: list[Sample],
        config: TrainingConfig,
        out: Path,
    ) -> None:
        self.model = channels_last(model)
        self.train_samples, self.val_samples = train, val
        self.config, self.out = config, out
        self.augmentation = Augmentation(*config.crop)
        self.average = AveragedModel(
            model, multi_avg_fn=get_ema_multi_avg_fn(_EMA_DECAY), use_buffers=True
        )
        self.averaged_model = cast(LMANet, self.average.module)
        parts = _trained_parts(model, config)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for part in parts:
            part.requires_grad_(True)
        self.trained_parts = parts
        self.optimizer = torch.optim.AdamW(
            [p for p in model.parameters() if p.requires_grad],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )
        self.criterion = nn.CrossEntropyLoss(
            weight=_class_weights(train, model.config.num_channels), ignore_index=IGNORE_INDEX
        )
        self.steps_per_epoch = math.ceil(len(train) / config.batch_size)
        self.report: EpochReport | None = None
        out.mkdir(parents=True, exist_ok=True)
        self._check_config()
        if (out / "state.pt").exists():
            self._restore()

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return 0 if self.report is None else self.report.epoch

    @property
    def checkpoint(self) -> Path:
        """The running average of the weights, as of the last epoch."""
        return self.out / "model.safetensors"

    def fit(self, on_step: Callable[[int, int, float], None]) -> Iterator[EpochReport]:
        """Train the epochs that are left; ``on_step(epoch, step, loss)`` after each batch."""
        if self.epoch == 0 and self.config.stage is Stage.MEMORY:
            self._calibrate_fusion()
        while self.epoch < self.config.epochs:
            loss = self._train_epoch(on_step)
            epoch = self.epoch + 1
            is_due = epoch % self.config.evaluate_every == 0
            miou = self._evaluate() if is_due or epoch == self.config.epochs else None
            self.report = EpochReport(epoch, loss, miou)
            self._save(self.report)
            yield self.report

    @torch.no_grad()
    def _calibrate_fusion(self) -> None:
        """Let fusion begin with the scale of the encoder's features, which the decoder expects.

        Its last batch norm could reach it only in small steps.
        """
        rng = np.random.default_rng(self.config.seed)
        chosen = rng.permutation(len(self.train_samples))[: 2 * self.config.batch_size]
        crops = [self.augmentation.still(self.train_samples[i], rng)[0] for i in chosen]
        features = self.model.eval().encode(_to_frames(np.stack(crops))).tap
        self.model.fusion.bn.weight.copy_(features.std(dim=(0, 2, 3)))
        self.model.fusion.bn.bias.copy_(features.mean(dim=(0, 2, 3)))

    def _train_epoch(self, on_step: Callable[[int, int, float], None]) -> float:
        rng = np.random.default_rng((self.config.seed, self.epoch))
        torch.manual_seed(hash((self.config.seed, self.epoch)) % 2**31)
        self.model.eval()
        for part in self.trained_parts:
            part.train()
        losses = []
        order = rng.permutation(len(self.train_samples))
        for step, chosen in enumerate(np.array_split(order, self.steps_per_epoch)):
            samples = [self.train_samples[i] for i in chosen]
            self._set_learning_rate(self.epoch * self.steps_per_epoch + step)
            self.optimizer.zero_grad(set_to_none=True)
            loss = self._loss(samples, rng)
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
            self.optimizer.step()
            self.average.update_parameters(self.model)
            losses.append(loss.item())
            on_step(self.epoch, step, losses[-1])
        return float(np.mean(losses))

    def _loss(self, samples: list[Sample], rng: np.random.Generator) -> Tensor:
        if self.config.stage is Stage.SINGLE:
            return self._single_frame_loss(samples, rng)
        return self._memory_loss(samples, rng)

    def _single_frame_loss(self, samples: list[Sample], rng: np.random.Generator) -> Tensor:
        crops, labels = zip(*(self.augmentation.still(s, rng) for s in samples), strict=True)
        logits = self.model.segment_single(_to_frames(np.stack(crops)))
        return self._cross_entropy(logits, labels)

    def _memory_loss(self, samples: list[Sample], rng: np.random.Generator) -> Tensor:
        """The last frame's loss on a clip of 2 .. T + 1 frames.

        In the first epochs fusion learns to hand on the encoder's features: what the decoder knows
        to read. From there on the labels decide what the memory adds.
        """
        length = int(rng.integers(2, self.model.config.memory_length + 2))
        clips, labels = zip(*(self.augmentation.clip(s, length, rng) for s in samples), strict=True)
        with torch.no_grad():
            frames = _to_frames(np.concatenate(clips))
            features = self.model.encode_window(frames.unflatten(0, (len(samples), length)))
        if self.epoch < self.config.matching_epochs:
            return nn.functional.mse_loss(self.model.fuse_window(features), features.tap[:, -1])
        loss = self._cross_entropy(self.model.decode_window(features), labels)
        if self.config.train_decoder:
            single = self.model.decode_window(features.map(lambda tensor: tensor[:, -1:]))
            loss = (loss + self._cross_entropy(single, labels)) / 2
        return loss

    def _cross_entropy(self, logits: Tensor, labels: tuple[np.ndarray, ...]) -> Tensor:
        loss: Tensor = self.criterion(logits, torch.from_numpy(np.stack(labels)).long())
        return loss

    def _set_learning_rate(self, step: int) -> None:
        """Linear warm-up over the first epoch, then a cosine down to zero."""
        total = self.config.epochs * self.steps_per_epoch
        warm = min(1.0, (step + 1) / self.steps_per_epoch)
        rate = self.config.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / total))
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _evaluate(self) -> float:
        model = self.averaged_model.eval()
        evaluate = evaluate_single_frame if self.config.stage is Stage.SINGLE else evaluate_stream
        return 100 * evaluate(model, self.val_samples).miou()

    def _save(self, report: EpochReport) -> None:
        save(self.averaged_model, self.checkpoint)
        state = {
            "report": asdict(report),
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, self.out / "state.tmp")
        (self.out / "state.tmp").replace(self.out / "state.pt")
        with (self.out / "log.csv").open("a", newline="") as file:
            writer = csv.writer(file)
            if report.epoch == 1:
                writer.writerow(["epoch", "loss", "val_miou_percent"])
            miou = "" if report.miou is None else f"{report.miou:.2f}"
            writer.writerow([report.epoch, f"{report.loss:.4f}", miou])

    def _check_config(self) -> None:
        """Refuse to go on with a run that began with another configuration, model or weights."""
        path = self.out / "config.json"
        config = asdict(self.config) | {
            "model": _settings(self.model.config),
            "initial_weights": _digest(self.model),
        }
        text = json.dumps(config, indent=2)
        if path.exists() and path.read_text() != text:
            raise InvalidInputError(
                f"{self.out} holds a run with another configuration, model or initial weights; "
                f"see {path}",
                field="out",
            )
        path.write_text(text)

    def _restore(self) -> None:
        state = torch.load(self.out / "state.pt", weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.report = EpochReport(**state["report"])


def _settings(config: LMANetConfig) -> dict[str, object]:
    return asdict(config) | {"label_set": config.label_set.name}


def _digest(model: LMANet) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy())
    return f"sha256:{digest.hexdigest()}"


def _trained_parts(model: LMANet, config: TrainingConfig) -> list[nn.Module]:
    if config.stage is Stage.SINGLE:
        return [model.encoder, model.decoder]
    memory: list[nn.Module] = [model.memory_head, model.query_head, model.fusion]
    return [*memory, model.decoder] if config.train_decoder else memory


def _class_weights(samples: list[Sample], num_channels: int) -> Tensor:
    """1 / ln(1.02 + share of the class), as ENet weighs them; 0 for channels without labels."""
    counts = np.zeros(256, np.int64)
    for sample in samples:
        counts += np.bincount(sample.label.ravel(), minlength=256)
    counts = counts[:num_channels]
    weights = 1 / np.log(1.02 + counts / counts.sum())
    return torch.from_numpy(np.where(counts > 0, weights, 0)).float()


def _to_frames(images: np.ndarray) -> Tensor:
    """uint8 ``(B, H, W, 3)`` to floats ``(B, 3, H, W)`` in 0..1, channels last in memory."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
