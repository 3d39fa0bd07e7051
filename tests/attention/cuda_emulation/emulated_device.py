"""The launch code's ``Device``, played by the emulator: CPU tensors in, CPU tensors out."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from segstream.attention.cuda.operands import ELEMENTS
from segstream.attention.cuda.plan import GpuTraits, KernelLaunch
from segstream.attention.cuda.problem import Problem
from segstream.attention.cuda.variants import CombineVariant, PlainVariant, Variant

_MESSAGE_BYTES = 200
_INPUT, _WRITTEN = 0, 1
_ELEMENT_BYTES = {element: dtype.itemsize for dtype, element in ELEMENTS.items()}
_FLOAT_BYTES = 4
_HALF_BYTES = 2


class EmulationError(Exception):
    """The kernel broke a rule of the machine; the message says which."""


class _Region(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("kind", ctypes.c_int32),
        ("launch_of_byte", ctypes.c_void_p),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("parameters", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32),
        ("shared_bytes", ctypes.c_uint32),
        ("seed", ctypes.c_uint32),
        ("number", ctypes.c_uint8),
        ("regions", ctypes.POINTER(_Region)),
        ("num_regions", ctypes.c_uint32),
    )


class _Counters(ctypes.Structure):
    _fields_ = (("matrix_loads", ctypes.c_uint64), ("bank_conflicts", ctypes.c_uint64))


class Memory:
    """The pieces of global memory that kernels may touch."""

    def __init__(self) -> None:
        self.regions: list[_Region] = []
        self._shadows: dict[int, Tensor] = {}
        self._keep: list[Tensor] = []

    def add_input(self, address: int | None, num_bytes: int) -> None:
        if address:
            self.regions.append(_Region(address, num_bytes, _INPUT, None))

    def new(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        tensor = torch.empty(tuple(shape), dtype=dtype)
        tensor.view(torch.uint8).fill_(0xFF)
        shadow = torch.zeros(tensor.numel() * tensor.element_size(), dtype=torch.uint8)
        self._keep += [tensor, shadow]
        self._shadows[tensor.data_ptr()] = shadow
        self.regions.append(_Region(tensor.data_ptr(), shadow.numel(), _WRITTEN, shadow.data_ptr()))
        return tensor

    def is_fully_written(self, address: int) -> bool:
        return bool(self._shadows[address].all())


class EmulatedLibrary:
    """Kernels built for the host, by name."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self.matrix_loads = self.bank_conflicts = 0

    def launch(
        self,
        name: str,
        parameters: ctypes.Structure | ctypes.Array[ctypes.c_uint64],
        memory: Memory,
        *,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        number: int = 1,
        seed: int = 1,
    ) -> None:
        """Raises EmulationError at the first broken rule."""
        regions = (_Region * len(memory.regions))(*memory.regions)
        launch = _Launch(
            ctypes.cast(self._library[name], ctypes.c_void_p),
            ctypes.addressof(parameters),
            (ctypes.c_uint32 * 3)(*grid),
            threads,
            shared_bytes,
            seed,
            number,
            regions,
            len(regions),
        )
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        counters = _Counters()
        broken = self._library["emulator_launch"](
            ctypes.byref(launch),
            message,
            ctypes.c_size_t(_MESSAGE_BYTES),
            ctypes.byref(counters),
        )
        self.matrix_loads += counters.matrix_loads
        self.bank_conflicts += counters.bank_conflicts
        if broken:
            raise EmulationError(message.value.decode())


class EmulatedDevice:
    """Runs one call of ``attend``; only pages that the slot table names may be read."""

    def __init__(self, library: EmulatedLibrary, traits: GpuTraits, *, seed: int = 1) -> None:
        self.traits = traits
        self.launched: list[KernelLaunch] = []
        self._library = library
        self._seed = seed
        self._memory = Memory()

    def prepare(self, variants: Sequence[Variant]) -> None:
        """Kernels are built beforehand; a missing one shows at its launch."""

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return self._memory.new(shape, dtype)

    def launch(self, kernel: KernelLaunch, problem: Problem) -> None:
        if not self.launched:
            self._add_inputs(kernel.variant, problem)
        self.launched.append(kernel)
        self._library.launch(
            kernel.variant.name,
            problem,
            self._memory,
            grid=kernel.grid,
            threads=kernel.threads,
            shared_bytes=kernel.shared_bytes,
            number=len(self.launched),
            seed=self._seed,
        )
        is_last = not problem.partial_sums or isinstance(kernel.variant, CombineVariant)
        if is_last and not self._memory.is_fully_written(problem.out):
            raise EmulationError("part of the result was never written")

    def _add_inputs(self, variant: Variant, problem: Problem) -> None:
        query_bytes = key_bytes = value_bytes = _HALF_BYTES
        if isinstance(variant, PlainVariant):
            query_bytes = _FLOAT_BYTES
            key_bytes = _ELEMENT_BYTES[variant.key_element]
            value_bytes = _ELEMENT_BYTES[variant.value_element]
        pixels = problem.height * problem.width
        cells = problem.batch * problem.table_length
        add = self._memory.add_input
        add(problem.query, problem.batch * pixels * problem.key_channels * query_bytes)
        add(problem.slots, cells * ctypes.sizeof(ctypes.c_int32))
        add(problem.sink, _FLOAT_BYTES)
        for slot in sorted(set((ctypes.c_int32 * cells).from_address(problem.slots))):
            if not 0 <= slot < problem.num_slots:
                continue
            key_page = problem.keys + slot * problem.key_page_stride * key_bytes
            value_page = problem.values + slot * problem.value_page_stride * value_bytes
            add(key_page, pixels * problem.key_channels * key_bytes)
            add(value_page, pixels * problem.value_channels * value_bytes)
