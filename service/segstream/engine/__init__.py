"""Engines run one batch of frames through a network."""

from segstream.engine.base import Engine, ModelInfo, Step, StepResult
from segstream.engine.in_process import InProcessEngine

__all__ = ["Engine", "InProcessEngine", "ModelInfo", "Step", "StepResult"]
