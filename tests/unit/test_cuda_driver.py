import ctypes
from typing import Any

import pytest

from segstream import cuda_driver as cuda
from segstream.cuda_driver import CudaError


class FakeLibrary:
    """libcuda, as far as it is needed: every call succeeds but those told to fail."""

    def __init__(self, **codes: int) -> None:
        self.codes = codes
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append((name, arguments))
            code = self.codes.get(name, 0)
            if code:
                return code
            return self._answer(name, arguments)

        return call

    def _answer(self, name: str, arguments: tuple[Any, ...]) -> int:
        if name in ("cuGetErrorName", "cuGetErrorString"):
            arguments[1]._obj.value = {
                "cuGetErrorName": b"CUDA_ERROR_OUT_OF_MEMORY",
                "cuGetErrorString": b"out of memory",
            }[name]
        elif name in ("cuDevicePrimaryCtxRetain", "cuModuleLoadData", "cuModuleGetFunction"):
            arguments[0]._obj.value = 0x1234
        elif name in ("cuMemAlloc_v2", "cuIpcOpenMemHandle_v2"):
            arguments[0]._obj.value = 0x7F00
        elif name == "cuDeviceGetAttribute":
            arguments[0]._obj.value = 42
        return 0

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def make(**codes: int) -> tuple[cuda.Driver, FakeLibrary]:
    library = FakeLibrary(**codes)
    return cuda.Driver(library), library  # type: ignore[arg-type]


def test_the_driver_is_initialised_first() -> None:
    _, library = make()
    assert library.names == ["cuInit"]


def test_a_failing_call_is_named_with_its_reason() -> None:
    driver, _ = make(cuModuleLoadData=2)
    with pytest.raises(
        CudaError, match="cuModuleLoadData failed: CUDA_ERROR_OUT_OF_MEMORY: out of memory"
    ):
        driver.load_module(b"image")


def test_an_unknown_error_keeps_its_number() -> None:
    driver, _ = make(cuModuleLoadData=977, cuGetErrorName=1, cuGetErrorString=1)
    with pytest.raises(CudaError, match="cuModuleLoadData failed: error 977"):
        driver.load_module(b"image")


def test_a_missing_kernel_is_none_and_no_error() -> None:
    driver, _ = make(cuModuleGetFunction=500)
    assert driver.get_function(0x1, "nothing") is None


def test_the_context_is_put_back_after_an_error() -> None:
    driver, library = make(cuModuleLoadData=2)
    with pytest.raises(CudaError), driver.current(0x5):
        driver.load_module(b"image")
    assert library.names.count("cuCtxPushCurrent_v2") == 1
    assert library.names.count("cuCtxPopCurrent_v2") == 1
    assert library.names.index("cuCtxPopCurrent_v2") > library.names.index("cuModuleLoadData")


def test_a_launch_passes_geometry_stream_and_parameter() -> None:
    class Parameter(ctypes.Structure):
        _fields_ = (("x", ctypes.c_int),)

    driver, library = make()
    parameter = Parameter(7)
    driver.launch(0x1234, (5, 6, 7), 256, 1024, 0x99, parameter)
    name, arguments = library.calls[-1]
    assert name == "cuLaunchKernel"
    function, *numbers, stream, parameters, extra = arguments
    assert function.value == 0x1234
    assert [n.value for n in numbers] == [5, 6, 7, 256, 1, 1, 1024]
    assert stream.value == 0x99
    assert extra is None
    assert Parameter.from_address(parameters[0]).x == 7


def test_queries_return_what_the_driver_says() -> None:
    driver, _ = make()
    assert driver.attribute(0, cuda.MULTIPROCESSOR_COUNT) == 42
    assert driver.retain_primary_context(0) == 0x1234
    assert driver.get_function(0x1, "kernel") == 0x1234


def test_a_machine_without_a_driver_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_LIBRARY", "libnosuchcuda.so.1")
    cuda.load_driver.cache_clear()
    with pytest.raises(CudaError, match="no CUDA driver"):
        cuda.load_driver()


def test_memory_is_allocated_exported_and_freed_by_its_address() -> None:
    driver, library = make()
    address = driver.allocate(4096)
    driver.export_memory(address)
    driver.free(address)
    assert library.names[1:] == ["cuMemAlloc_v2", "cuIpcGetMemHandle", "cuMemFree_v2"]
    size = library.calls[1][1][1]
    assert (size.value, address) == (4096, 0x7F00)
    assert [library.calls[n][1][-1].value for n in (2, 3)] == [address, address]


def test_memory_is_mapped_by_the_bytes_of_its_handle() -> None:
    driver, library = make()
    handle = bytes(range(cuda.IPC_HANDLE_BYTES))
    address = driver.import_memory(handle)
    driver.let_go(address)
    _, (_, passed, flags) = library.calls[1]
    assert (bytes(passed), flags.value) == (handle, 1)
    assert library.calls[2][0] == "cuIpcCloseMemHandle"
    assert library.calls[2][1][0].value == address


def test_a_handle_of_another_size_is_refused_before_the_call() -> None:
    driver, library = make()
    with pytest.raises(ValueError, match="64"):
        driver.import_memory(b"short")
    assert library.names == ["cuInit"]
