"""What computes a network."""

from typing import TYPE_CHECKING, Literal

from segstream.errors import InvalidInputError
from segstream.models.erfnet import ERFNetDecoder, ERFNetEncoder
from segstream.models.memory import KEY_CHANNELS, GatedFusion, ResidualFusion
from segstream.models.native import library

if TYPE_CHECKING:
    from segstream.models.lmanet import LMANet

Runtime = Literal["auto", "native", "onnx", "torch"]
"""native: this package's own C++, on CPU. onnx: ONNX Runtime, on CPU. torch: on any device.
auto: native on CPU for ERFNet, torch for all else."""

CPU_ONLY: tuple[Runtime, ...] = ("native", "onnx")


def is_torch_only(model: "LMANet") -> bool:
    """Whether neither the C++ nor the ONNX graphs have the layers of this network."""
    return not (
        isinstance(model.encoder, ERFNetEncoder)
        and isinstance(model.decoder, ERFNetDecoder)
        and type(model.fusion) in (GatedFusion, ResidualFusion)
        and model.config.key_channels == KEY_CHANNELS
        and model.spec.preprocessing.is_identity
    )


def check_runtime(model: "LMANet", runtime: Runtime) -> None:
    """Raise InvalidInputError where ``runtime`` does not have the network."""
    if runtime in CPU_ONLY and is_torch_only(model):
        raise InvalidInputError(
            f"runtime is {runtime!r}, which runs ERFNet as published, not network "
            f"{model.spec.name!r} with fusion {model.config.fusion!r}: use auto or torch",
            field="runtime",
        )


def on_cpu(model: "LMANet", runtime: Runtime) -> Literal["native", "onnx", "torch"]:
    """What ``runtime`` comes to for float32 weights on CPU.

    ONNX Runtime stands in for the C++ where that was not built; the log says so once.
    """
    if runtime in ("onnx", "torch"):
        return runtime
    if is_torch_only(model):
        return "torch"
    return "onnx" if library.library() is None else "native"
