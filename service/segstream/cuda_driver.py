"""The few calls of the CUDA driver API that are needed, through ctypes; nothing else is here.

The driver is the one CUDA library that every GPU machine has. Handles are plain integers.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from segstream.errors import EngineError

_LIBRARY = "libcuda.so.1"
_SUCCESS = 0
_NOT_FOUND = 500

MULTIPROCESSOR_COUNT = 16
COMPUTE_CAPABILITY_MAJOR = 75
COMPUTE_CAPABILITY_MINOR = 76
MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97

_MAX_DYNAMIC_SHARED_SIZE_BYTES = 8  # CU_FUNC_ATTRIBUTE_...
_LAZY_PEER_ACCESS = 1  # CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS


IPC_HANDLE_BYTES = 64


class CudaError(EngineError):
    """A call into the CUDA driver or compiler failed; the message names the call and the reason."""


class _IpcHandle(ctypes.Structure):
    _fields_ = (("reserved", ctypes.c_char * IPC_HANDLE_BYTES),)


class Driver:
    """Driver calls with their return codes turned into exceptions."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._call("cuInit", ctypes.c_uint(0))

    def attribute(self, ordinal: int, attribute: int) -> int:
        """A CU_DEVICE_ATTRIBUTE of the device with this ordinal."""
        value = ctypes.c_int()
        self._call(
            "cuDeviceGetAttribute",
            ctypes.byref(value),
            ctypes.c_int(attribute),
            self._device(ordinal),
        )
        return value.value

    def retain_primary_context(self, ordinal: int) -> int:
        """The context that torch uses on this device."""
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device(ordinal))
        return context.value or 0

    @contextmanager
    def current(self, context: int) -> Iterator[None]:
        """Make a context the calling thread's current one, and put back what was before."""
        self._call("cuCtxPushCurrent_v2", ctypes.c_void_p(context))
        try:
            yield
        finally:
            popped = ctypes.c_void_p()
            self._call("cuCtxPopCurrent_v2", ctypes.byref(popped))

    def load_module(self, image: bytes) -> int:
        """Load a cubin, PTX or fatbin into the current context."""
        module = ctypes.c_void_p()
        self._call("cuModuleLoadData", ctypes.byref(module), ctypes.c_char_p(image))
        return module.value or 0

    def get_function(self, module: int, name: str) -> int | None:
        """A kernel of a module, or None where the module has none of that name."""
        function = ctypes.c_void_p()
        arguments = (ctypes.byref(function), ctypes.c_void_p(module), name.encode())
        if self._library.cuModuleGetFunction(*arguments) == _NOT_FOUND:
            return None
        self._call("cuModuleGetFunction", *arguments)
        return function.value

    def allow_shared_bytes(self, function: int, shared_bytes: int) -> None:
        """Let a kernel be launched with this much dynamic shared memory."""
        self._call(
            "cuFuncSetAttribute",
            ctypes.c_void_p(function),
            ctypes.c_int(_MAX_DYNAMIC_SHARED_SIZE_BYTES),
            ctypes.c_int(shared_bytes),
        )

    def launch(
        self,
        function: int,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        stream: int,
        parameter: ctypes.Structure,
    ) -> None:
        """Enqueue a kernel that takes one structure by value."""
        parameters = (ctypes.c_void_p * 1)(ctypes.addressof(parameter))
        self._call(
            "cuLaunchKernel",
            ctypes.c_void_p(function),
            *(ctypes.c_uint(n) for n in (*grid, threads, 1, 1, shared_bytes)),
            ctypes.c_void_p(stream),
            parameters,
            None,
        )

    def allocate(self, num_bytes: int) -> int:
        """The address of new memory of the current context's device."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(num_bytes))
        return address.value

    def free(self, address: int) -> None:
        """Give back what ``allocate`` gave; every process that mapped it must have let go."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def export_memory(self, address: int) -> bytes:
        """The handle by which another process maps what ``allocate`` gave."""
        handle = _IpcHandle()
        self._call("cuIpcGetMemHandle", ctypes.byref(handle), ctypes.c_uint64(address))
        return bytes(handle)

    def import_memory(self, handle: bytes) -> int:
        """The address, in the current context, of memory that another process exported."""
        address = ctypes.c_uint64()
        self._call(
            "cuIpcOpenMemHandle_v2",
            ctypes.byref(address),
            _IpcHandle.from_buffer_copy(handle),
            ctypes.c_uint(_LAZY_PEER_ACCESS),
        )
        return address.value

    def let_go(self, address: int) -> None:
        """Unmap what ``import_memory`` gave."""
        self._call("cuIpcCloseMemHandle", ctypes.c_uint64(address))

    def _device(self, ordinal: int) -> ctypes.c_int:
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), ctypes.c_int(ordinal))
        return device

    def _call(self, name: str, *arguments: object) -> None:
        code = getattr(self._library, name)(*arguments)
        if code != _SUCCESS:
            raise CudaError(f"{name} failed: {self._describe(code)}")

    def _describe(self, code: int) -> str:
        texts = []
        for name in ("cuGetErrorName", "cuGetErrorString"):
            text = ctypes.c_char_p()
            if getattr(self._library, name)(ctypes.c_int(code), ctypes.byref(text)) == _SUCCESS:
                texts.append((text.value or b"").decode())
        return ": ".join(texts) or f"error {code}"


@cache
def load_driver() -> Driver:
    """The machine's driver. Raises CudaError where there is none."""
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise CudaError(f"no CUDA driver: {error}") from error
    return Driver(library)
