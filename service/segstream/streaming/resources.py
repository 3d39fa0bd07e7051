"""What all sessions share."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from segstream.engine import Engine
from segstream.media.images import ImageLimits
from segstream.memory.session_store import SessionStore
from segstream.memory.spill_tier import SpillTier
from segstream.streaming.degradation import DegradationLadder
from segstream.telemetry.metrics import Metrics
from segstream.telemetry.tracing import Tracing, no_tracing

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class Resources:
    """What all sessions share. ``codecs`` runs image work and copies off the event loop.

    ``measures_consistency``: label maps are compared from frame to frame.
    """

    engine: Engine
    store: SessionStore
    spill_tier: SpillTier
    codecs: Executor
    metrics: Metrics
    image_limits: ImageLimits
    ladder: DegradationLadder
    replica_name: str = ""
    measures_consistency: bool = True
    tracing: Tracing = field(default_factory=no_tracing)

    async def off_loop(self, work: Callable[_P, _R], *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """The result of work done by a codec thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.codecs, lambda: work(*args, **kwargs))
