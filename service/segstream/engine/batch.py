"""One batch on an executor: timed, and each frame for itself where one of them fails."""

import time
from collections.abc import Sequence

import structlog

from segstream.engine.base import Step, StepResult
from segstream.engine.executor import Executor
from segstream.errors import EngineError

_log = structlog.get_logger(__name__)


def run_batch(executor: Executor, steps: Sequence[Step]) -> list[StepResult | EngineError]:
    """What each step of one model, frame size and pool gives.

    When the forward fails each frame gets a second chance alone: one that fails must not fail the
    others.
    """
    laps = _Laps()
    try:
        predictions = executor(steps, laps)
    except Exception as error:
        _log.exception("forward failed", batch_size=len(steps))
        if len(steps) > 1:
            return [result for step in steps for result in run_batch(executor, [step])]
        return [EngineError(f"the forward failed: {type(error).__name__}: {error}")]
    return [
        StepResult(each.label_map, len(steps), dict(laps.seconds), each.confidence)
        for each in predictions
    ]


class _Laps:
    """A stage clock: adds the time since the last lap to the stage's seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def __call__(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now
