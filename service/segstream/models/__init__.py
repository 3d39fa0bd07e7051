"""Networks: weights only, no state across frames."""

from segstream.models.checkpoint import available, load
from segstream.models.digest import model_digest
from segstream.models.lmanet import LMANet, LMANetConfig
from segstream.models.native_lmanet import NativeLMANet
from segstream.models.onnx_lmanet import OnnxLMANet
from segstream.models.runtime import CPU_ONLY, Runtime, on_cpu

__all__ = [
    "CPU_ONLY",
    "LMANet",
    "LMANetConfig",
    "NativeLMANet",
    "OnnxLMANet",
    "Runtime",
    "available",
    "load",
    "model_digest",
    "on_cpu",
]
