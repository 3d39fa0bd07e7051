"""The network in torch: the reference, and what devices without CUDA graphs run."""

from collections.abc import Sequence

import torch

from segstream.engine.base import Step
from segstream.engine.executor import Lap, Prediction, frames, read_slots, write_slots
from segstream.models import LMANet
from segstream.models.confidence import confidence_of


class TorchExecutor:
    """See ``Executor``. On CPU one step at a time: torch rounds otherwise in another batch.

    It also does so on another number of threads, and on a GPU; there ``Executor``'s promise holds
    only for equal batches.
    """

    is_batching = True

    def __init__(self, model: LMANet, device: str) -> None:
        self._model = model.to(device)
        self._device = torch.device(device)

    @torch.inference_mode()
    def __call__(self, steps: Sequence[Step], lap: Lap) -> list[Prediction]:
        if self._device.type == "cpu":
            return [self._run([step], lap)[0] for step in steps]
        results: dict[int, Prediction] = {}
        for wants_label_map in (True, False):
            chosen = {i: s for i, s in enumerate(steps) if s.wants_label_map is wants_label_map}
            if chosen:
                predictions = self._run(list(chosen.values()), lap)
                results.update(zip(chosen, predictions, strict=True))
        return [results[index] for index in range(len(steps))]

    def _run(self, steps: Sequence[Step], lap: Lap) -> list[Prediction]:
        images, pages = frames(steps, self._device), steps[0].pages
        slots = write_slots(steps, self._device)
        if not steps[0].wants_label_map:
            self._model.memorise(images, pages, slots)
            self._lap(lap, "encode")
            return [Prediction()] * len(steps)
        logits = self._model(
            images,
            pages,
            read_slots(steps, self._device),
            slots,
            lap=lambda stage: self._lap(lap, stage),
        )
        num_classes = self._model.config.label_set.num_classes
        logits = logits[:, :num_classes]
        label_maps = logits.argmax(dim=1).to(torch.uint8).cpu().numpy()
        predictions = [
            Prediction(label_map, confidence_of(logits[i]) if step.wants_confidence else None)
            for i, (step, label_map) in enumerate(zip(steps, label_maps, strict=True))
        ]
        lap("fuse_decode")
        return predictions

    def _lap(self, lap: Lap, stage: str) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # kernels run behind the host's back
        lap(stage)
