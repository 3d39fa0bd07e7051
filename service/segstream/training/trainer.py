"""Training in two stages: the single-frame network, then its memory on clips."""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim.swa_utils import AveragedModel

from segstream.errors import InvalidInputError
from segstream.models.checkpoint import save
from segstream.models.lmanet import LMANet, LMANetConfig, channels_last
from segstream.training.batch import Batch
from segstream.training.config import Schedule, Stage, TrainingConfig
from segstream.training.distributed import Group
from segstream.training.evaluation import mean_iou
from segstream.training.run_folder import EpochReport, RunFolder
from segstream.training.samples import Sample
from segstream.training.side_by_side import Way
from segstream.training.stages import StageOfTraining, make_stage

_EMA_DECAY = 0.995
_PLATEAU_FACTOR, _PLATEAU_PATIENCE = 0.8, 5
_MAX_GRADIENT_NORM = 5.0


class Trainer:
    """Trains ``model`` and keeps its state in ``out``.

    ``out`` receives ``model.safetensors`` (running average of the weights) and ``log.csv`` after
    each epoch, and ``state.pt``, from which a stopped run goes on. The result depends only on
    config, data, the weights at the start, those of the teacher and the number of processes.
    """

    def __init__(
        self,
        model: LMANet,
        train: Sequence[Sample],
        val: Sequence[Sample],
        config: TrainingConfig,
        out: Path,
        group: Group | None = None,
        teacher: LMANet | None = None,
    ) -> None:
        self.group = group or Group()
        self.model = channels_last(model.to(self.group.device))
        self.train_samples, self.val_samples = of_fold(train, config), val
        self.config, self.folder = config, RunFolder(out)
        device = self.group.device
        self.stage = make_stage(self.model, self.train_samples, config, device, teacher)
        self._teacher_weights = None if teacher is None else _digest(teacher)
        self.average = AveragedModel(model, avg_fn=_averaged, use_buffers=True)
        self.averaged_model = cast(LMANet, self.average.module)
        model.requires_grad_(False)
        for part in self.stage.trained:
            part.requires_grad_(True)
            _scale_dropout(part, config.dropout)
        self.optimizer = _optimizer(model, config)
        self.steps_per_epoch = math.ceil(len(self.train_samples) / config.batch_size)
        self.report: EpochReport | None = None
        self._lowest_loss, self._epochs_above = math.inf, 0
        if self.group.is_first:
            self.folder.check_config(self._settings())
        self.group.barrier()
        self._restore()

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return 0 if self.report is None else self.report.epoch

    @property
    def checkpoint(self) -> Path:
        """The running average of the weights, as of the last epoch."""
        return self.folder.checkpoint

    def fit(
        self,
        on_step: Callable[[int, int, float], None],
        on_sample: Callable[[], None] = lambda: None,
    ) -> Iterator[EpochReport]:
        """Train the epochs that are left.

        ``on_step(epoch, step, loss)`` is called after each batch, ``on_sample`` for each sample
        that is prepared before the first one.
        """
        if self.epoch < self.config.epochs:
            self.model.eval()
            self.stage.prepare(on_sample)
        if self.epoch == 0:
            self.stage.start()
        step = self.group.wrap(_Step(self.stage, self.model))
        while self.epoch < self.config.epochs:
            loss = self._train_epoch(step, on_step)
            epoch = self.epoch + 1
            is_due = epoch % self.config.evaluate_every == 0 or epoch == self.config.epochs
            miou = self._evaluate() if is_due and self.group.is_first else None
            self._note_loss(loss)
            rate = self.optimizer.param_groups[0]["lr"]
            self.report = EpochReport(epoch, loss, rate, miou)
            if self.group.is_first:
                self._save(self.report)
            self.group.barrier()
            yield self.report

    def _train_epoch(self, step: nn.Module, on_step: Callable[[int, int, float], None]) -> float:
        rng = np.random.default_rng((self.config.seed, self.epoch))
        torch.manual_seed(self.config.seed + 1000 * self.epoch + self.group.rank)
        self._set_modes()
        order = rng.permutation(len(self.train_samples))
        own = np.random.default_rng((self.config.seed, self.epoch, self.group.rank))
        losses = []
        for number, chosen in enumerate(np.array_split(order, self.steps_per_epoch)):
            mine = chosen[self.group.rank :: self.group.size]
            mine = mine if len(mine) else chosen[:1]  # every process takes part in every step
            self._set_learning_rate(self.epoch * self.steps_per_epoch + number)
            self.optimizer.zero_grad(set_to_none=True)
            loss = step(self.stage.draw(mine.tolist(), own))
            loss.backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), _MAX_GRADIENT_NORM)
            self.optimizer.step()
            self.average.update_parameters(self.model)
            losses.append(loss.item())
            on_step(self.epoch, number, losses[-1])
        return self.group.mean(float(np.mean(losses)))

    def _set_modes(self) -> None:
        """What is trained is in training mode, all else is not."""
        self.model.eval()
        for part in self.stage.trained:
            part.train()
        if self.config.freeze_batch_norm:
            for module in self.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()

    def _set_learning_rate(self, step: int) -> None:
        """Linear warm-up over the first epoch, then the schedule."""
        rate = self.config.learning_rate * min(1.0, (step + 1) / self.steps_per_epoch)
        if self.config.schedule is Schedule.COSINE:
            total = self.config.epochs * self.steps_per_epoch
            rate *= 0.5 * (1 + math.cos(math.pi * step / total))
        else:
            rate *= _PLATEAU_FACTOR ** (self._epochs_above // _PLATEAU_PATIENCE)
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def _note_loss(self, loss: float) -> None:
        """For the plateau: epochs whose loss was not the lowest so far."""
        if loss < self._lowest_loss:
            self._lowest_loss = loss
        else:
            self._epochs_above += 1

    def _evaluate(self) -> float:
        model = self.averaged_model.eval()
        way = Way.MEMORY if model.config.has_memory else Way.SINGLE_FRAME
        return mean_iou(model, self.val_samples, way)

    def _save(self, report: EpochReport) -> None:
        save(self.averaged_model, self.checkpoint)
        self.folder.save_state(
            {
                "report": asdict(report),
                "plateau": (self._lowest_loss, self._epochs_above),
                "model": self.model.state_dict(),
                "average": self.average.state_dict(),
                "optimizer": self.optimizer.state_dict(),
            }
        )
        self.folder.log(report)

    def _settings(self) -> dict[str, object]:
        return asdict(self.config) | {
            "processes": self.group.size,
            "model": _settings(self.model.config),
            "initial_weights": _digest(self.model),
            "teacher_weights": self._teacher_weights,
        }

    def _restore(self) -> None:
        state = self.folder.load_state()
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self._lowest_loss, self._epochs_above = state["plateau"]
        self.report = EpochReport(**state["report"])


class _Step(nn.Module):
    """From a batch to its loss, as one module: what DistributedDataParallel wraps."""

    def __init__(self, stage: StageOfTraining, model: LMANet) -> None:
        super().__init__()
        self.model = model
        self._stage = stage

    def forward(self, batch: Batch) -> Tensor:
        return self._stage.loss(batch)


def of_fold(samples: Sequence[Sample], config: TrainingConfig) -> Sequence[Sample]:
    """The samples that the stage trains on: see ``TrainingConfig``.

    Raises InvalidInputError for more folds than there are clips.
    """
    if not config.folds:
        return samples
    clips = sorted({sample.clip for sample in samples})
    if config.folds > len(clips):
        raise InvalidInputError(
            f"folds is {config.folds}, but the training frames are of {len(clips)} clips",
            field="folds",
        )
    held_out = {clip for place, clip in enumerate(clips) if place % config.folds == config.fold}
    takes_held_out = config.stage is Stage.MEMORY
    return [sample for sample in samples if (sample.clip in held_out) == takes_held_out]


def _scale_dropout(part: nn.Module, factor: float) -> None:
    for module in part.modules():
        if isinstance(module, _DropoutNd):
            module.p *= factor


def _averaged(average: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
    """The running average of the weights; it forgets faster as long as it is young."""
    decay = min(_EMA_DECAY, (1 + int(count)) / (10 + int(count)))
    return torch.lerp(current, average, decay) if average.is_floating_point() else current


def _optimizer(model: LMANet, config: TrainingConfig) -> torch.optim.Optimizer:
    kind = torch.optim.AdamW if config.decouples_weight_decay else torch.optim.Adam
    return kind(
        [p for p in model.parameters() if p.requires_grad],
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
    )


def _settings(config: LMANetConfig) -> dict[str, object]:
    return asdict(config) | {"label_set": config.label_set.name}


def _digest(model: LMANet) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return f"sha256:{digest.hexdigest()}"
