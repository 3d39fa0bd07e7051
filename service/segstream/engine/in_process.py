"""The in-process engine: the network on a thread of its own, batching across sessions."""

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass

from segstream.engine.base import ModelInfo, Step, StepResult
from segstream.engine.batch import run_batch
from segstream.engine.executor import Executor
from segstream.engine.precision_guard import usable_precision
from segstream.engine.runtimes import make_executor, memory_digest
from segstream.errors import EngineError, UnavailableError
from segstream.models import LMANet, Runtime, model_digest
from segstream.models.precision import Precision
from segstream.pages import PageGeometry


@dataclass(frozen=True, slots=True, eq=False)
class _Pending:
    step: Step
    future: "Future[StepResult]"
    arrived: float

    @property
    def batch_key(self) -> object:
        """Steps with equal keys fit into one forward: same model, frame size and pool."""
        return self.step.model, self.step.image.shape, id(self.step.pages.keys)


class InProcessEngine:
    """Runs forwards on one thread: whatever has gathered while the last one ran is the next batch.

    So a lone session never waits for company. Where the executor would compute a batch's steps one
    after the other, each is a batch of its own. Callers bound the queue: a session has one step in
    flight.
    """

    def __init__(
        self,
        models: Mapping[str, LMANet],
        *,
        max_batch_size: int = 8,
        device: str = "cpu",
        runtime: Runtime = "auto",
        precision: Precision = "float32",
    ) -> None:
        self._models = models
        self._digests = {name: model_digest(model) for name, model in models.items()}
        self._device = device
        self._runtime = runtime
        self._precisions = dict.fromkeys(models, precision)
        self._executors: dict[str, Executor] = {}
        self._max_batch_size = max_batch_size
        self._pending: list[_Pending] = []
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Make the models ready and take steps.

        Raises InvalidInputError for a runtime or a precision that the device does not have.
        """
        for name, model in self._models.items():
            self._precisions[name] = usable_precision(model, self._precisions[name], self._device)
            self._executors[name] = make_executor(
                model,
                self._digests[name],
                runtime=self._runtime,
                device=self._device,
                precision=self._precisions[name],
            )
        self._thread.start()

    @property
    def models(self) -> dict[str, ModelInfo]:
        return {
            name: ModelInfo(
                name,
                model.config.label_set,
                model.config.stream_length,
                model.config.window_size,
                memory_digest(
                    model,
                    self._digests[name],
                    runtime=self._runtime,
                    device=self._device,
                    precision=self._precisions[name],
                ),
            )
            for name, model in self._models.items()
        }

    @property
    def is_ready(self) -> bool:
        return self._thread.is_alive() and not self._is_stopping

    def page_geometry(self, model: str, height: int, width: int) -> PageGeometry:
        return self._models[model].page_geometry(height, width)

    async def step(self, step: Step) -> StepResult:
        if step.model not in self._models:
            raise EngineError(f"no model {step.model!r}; there are {sorted(self._models)}")
        pending = _Pending(step, Future(), time.perf_counter())
        with self._changed:
            if not self.is_ready:
                raise UnavailableError("the engine is not running")
            self._pending.append(pending)
            self._changed.notify()
        return await asyncio.wrap_future(pending.future)

    async def stop(self) -> None:
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        self._executors.clear()  # whoever still holds the engine need not hold the packed weights

    def _run(self) -> None:
        while batch := self._take_batch():
            self._answer(batch)

    def _take_batch(self) -> list[_Pending]:
        """The oldest step and those that fit to it; empty when stopped and nothing is left."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._pending or self._is_stopping)
                if not self._pending:
                    return []
                oldest = self._pending[0]
                key, limit = oldest.batch_key, self._batch_limit(oldest.step.model)
                fitting = [p for p in self._pending if p.batch_key == key][:limit]
                self._pending = [p for p in self._pending if p not in fitting]
                batch = [p for p in fitting if p.future.set_running_or_notify_cancel()]
                if batch:
                    return batch

    def _batch_limit(self, model: str) -> int:
        return self._max_batch_size if self._executors[model].is_batching else 1

    def _answer(self, batch: list[_Pending]) -> None:
        started = time.perf_counter()
        executor = self._executors[batch[0].step.model]
        results = run_batch(executor, [pending.step for pending in batch])
        for pending, result in zip(batch, results, strict=True):
            if isinstance(result, EngineError):
                pending.future.set_exception(result)
            else:
                result.stage_seconds["queue"] = started - pending.arrived
                pending.future.set_result(result)
