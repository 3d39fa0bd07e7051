"""Which runtime runs a model, and its first steps."""

import numpy as np
import structlog
import torch

from segstream.engine.base import Step
from segstream.engine.cuda_executor import CudaExecutor
from segstream.engine.cuda_graphs import CudaGraphs, has_cuda_graphs
from segstream.engine.executor import Executor
from segstream.engine.native_executor import NativeExecutor
from segstream.engine.onnx_executor import OnnxExecutor
from segstream.engine.torch_executor import TorchExecutor
from segstream.errors import InvalidInputError
from segstream.models import (
    CPU_ONLY,
    LMANet,
    NativeLMANet,
    OnnxLMANet,
    Runtime,
    check_runtime,
    is_torch_only,
    on_cpu,
)
from segstream.models.precision import Precision
from segstream.pages import empty_pages

_log = structlog.get_logger(__name__)


def make_executor(
    model: LMANet,
    digest: str,
    *,
    runtime: Runtime,
    device: str,
    precision: Precision = "float32",
) -> Executor:
    """An executor of ``model``, whose ``model_digest`` is given, that has run once.

    It ran without and with memory, so that no client's frame pays for the first use of a kernel.
    On a CUDA device it ran twice, so that a network that cannot be captured says so now.
    precision: one that ``usable_precision`` gave.
    Raises InvalidInputError for a runtime that the device or the network does not have.
    """
    executor = _executor(model, digest, runtime, device, precision)
    pages = empty_pages(model.page_geometry(64, 64), 2, device=device)
    image = np.zeros((64, 64, 3), np.uint8)
    num_rounds = 2 if isinstance(executor, CudaExecutor) else 1
    for read_slots, write_slot in num_rounds * (((), 0), ((0,), 1)):
        executor([Step("", image, pages, read_slots, write_slot)], lambda _: None)
    return executor


def memory_digest(
    model: LMANet,
    digest: str,
    *,
    runtime: Runtime,
    device: str,
    precision: Precision = "float32",
) -> str:
    """What tells memories apart that one session must not mix: the model's digest and the runtime.

    A runtime in another precision than float32 is another one.

    Runtimes round differently. A memory that one wrote and another reads would give label maps that
    neither gives alone.
    """
    chosen = _on(model, device, runtime)
    return f"{digest}-{chosen if precision == 'float32' else f'{chosen}.{precision}'}"


def runtime_of(memory_digest: str) -> str:
    """The runtime that a digest of ``memory_digest`` names."""
    return memory_digest.rpartition("-")[2]


def _executor(
    model: LMANet, digest: str, runtime: Runtime, device: str, precision: Precision
) -> Executor:
    check_runtime(model, runtime)
    chosen = _on(model, device, runtime)
    if runtime in CPU_ONLY and chosen == "torch":
        raise InvalidInputError(
            f"runtime is {runtime!r}, which has no device {device!r}: use torch", field="runtime"
        )
    if chosen == "native":
        return NativeExecutor(NativeLMANet(model))
    if chosen == "onnx":
        return OnnxExecutor(OnnxLMANet(model, digest))
    if runtime == "auto" and is_torch_only(model):
        _log.info(
            "network runs in torch; the other runtimes have ERFNet only",
            network=model.spec.name,
            fusion=model.config.fusion,
        )
    if has_cuda_graphs(device):
        return CudaExecutor(model, CudaGraphs(device), precision)
    return TorchExecutor(model, device)


def _on(model: LMANet, device: str, runtime: Runtime) -> str:
    """What ``runtime`` comes to on this device."""
    return on_cpu(model, runtime) if torch.device(device).type == "cpu" else "torch"
