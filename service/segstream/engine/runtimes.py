"""Which runtime runs a model, and its first steps."""

import numpy as np
import torch

from segstream.engine.base import Step
from segstream.engine.executor import Executor
from segstream.engine.native_executor import NativeExecutor
from segstream.engine.onnx_executor import OnnxExecutor
from segstream.engine.torch_executor import TorchExecutor
from segstream.errors import InvalidInputError
from segstream.models import CPU_ONLY, LMANet, NativeLMANet, OnnxLMANet, Runtime, on_cpu
from segstream.pages import empty_pages


def make_executor(model: LMANet, digest: str, *, runtime: Runtime, device: str) -> Executor:
    """An executor of ``model``, whose ``model_digest`` is given, that has run once.

    It ran without and with memory, so that no client's frame pays for the first use of a kernel.
    Raises InvalidInputError for a runtime that the device does not have.
    """
    executor = _executor(model, digest, runtime, device)
    pages = empty_pages(model.page_geometry(64, 64), 2, device=device)
    image = np.zeros((64, 64, 3), np.uint8)
    for read_slots, write_slot in (((), 0), ((0,), 1)):
        executor([Step("", image, pages, read_slots, write_slot)], lambda _: None)
    return executor


def memory_digest(digest: str, *, runtime: Runtime, device: str) -> str:
    """What tells memories apart that one session must not mix: the model's digest and the runtime.

    Runtimes round differently. A memory that one wrote and another reads would give label maps that
    neither gives alone.
    """
    return f"{digest}-{_on(device, runtime)}"


def runtime_of(memory_digest: str) -> str:
    """The runtime that a digest of ``memory_digest`` names."""
    return memory_digest.rpartition("-")[2]


def _executor(model: LMANet, digest: str, runtime: Runtime, device: str) -> Executor:
    chosen = _on(device, runtime)
    if runtime in CPU_ONLY and chosen == "torch":
        raise InvalidInputError(
            f"runtime is {runtime!r}, which has no device {device!r}: use torch", field="runtime"
        )
    if chosen == "native":
        return NativeExecutor(NativeLMANet(model))
    if chosen == "onnx":
        return OnnxExecutor(OnnxLMANet(model, digest))
    return TorchExecutor(model, device)


def _on(device: str, runtime: Runtime) -> str:
    """What ``runtime`` comes to on this device."""
    return on_cpu(runtime) if torch.device(device).type == "cpu" else "torch"
