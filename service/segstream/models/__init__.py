"""Networks: weights only, no state across frames."""

from segstream.models.checkpoint import available, load, save
from segstream.models.digest import model_digest
from segstream.models.lmanet import LMANet, LMANetConfig
from segstream.models.native_lmanet import NativeLMANet
from segstream.models.network import Features, Network, NetworkBuilder, adapt
from segstream.models.networks import import_networks
from segstream.models.onnx_lmanet import OnnxLMANet
from segstream.models.runtime import CPU_ONLY, Runtime, check_runtime, is_torch_only, on_cpu

__all__ = [
    "CPU_ONLY",
    "Features",
    "LMANet",
    "LMANetConfig",
    "NativeLMANet",
    "Network",
    "NetworkBuilder",
    "OnnxLMANet",
    "Runtime",
    "adapt",
    "available",
    "check_runtime",
    "import_networks",
    "is_torch_only",
    "load",
    "model_digest",
    "on_cpu",
    "save",
]
