"""What computes a network."""

from typing import Literal

from segstream.models.native import library

Runtime = Literal["auto", "native", "onnx", "torch"]
"""native: this package's own C++, on CPU. onnx: ONNX Runtime, on CPU. torch: on any device.
auto: native on CPU, torch elsewhere."""

CPU_ONLY: tuple[Runtime, ...] = ("native", "onnx")


def on_cpu(runtime: Runtime) -> Literal["native", "onnx", "torch"]:
    """What ``runtime`` comes to for float32 weights on CPU.

    ONNX Runtime stands in for the C++ where that was not built; the log says so once.
    """
    if runtime in ("onnx", "torch"):
        return runtime
    return "onnx" if library.library() is None else "native"
