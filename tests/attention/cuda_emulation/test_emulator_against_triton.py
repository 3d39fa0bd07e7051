"""(C) Another compiler's code on the emulator: are its register layouts the hardware's?"""

import ctypes
from pathlib import Path

import pytest
import torch

from tests.attention.cuda_emulation.emulated_device import EmulatedLibrary, Memory
from tests.attention.cuda_emulation.ptx_translator import translate
from tests.attention.cuda_emulation.samples import Sample, reference
from tests.attention.cuda_emulation.third_party import shape as third_party
from tests.attention.cuda_emulation.toolchain import EMULATOR, Toolchain

SAMPLE = Sample(window=third_party.WINDOW, height=11, width=19, slots=((2, 0),))
# Misreadings of the PTX manual that the project's own kernel could be written to agree with.
MISREADINGS = {
    "rows of the left operand": (
        "a[group + 8][k] = decode(operands.a[2 * k8 + 1]",
        "a[group + 8][k] = decode(operands.a[(2 * k8 + 3) % 4]",
    ),
    "rows of the sum": ("sum[lane / 4 + 8 * (e / 2)]", "sum[lane / 4 + 8 * (e % 2)]"),
    "transposed matrices": ("const bool transposed = variant % 2", "const bool transposed = false"),
}


def triton_error(library: EmulatedLibrary) -> float:
    operands = SAMPLE.operands()
    memory = Memory()
    out = memory.new((1, SAMPLE.height, SAMPLE.width, SAMPLE.value_channels), torch.float32)
    inputs = (operands.query, operands.keys, operands.values, operands.slots)
    for tensor in inputs:
        memory.add_input(tensor.data_ptr(), tensor.numel() * tensor.element_size())
    scratch = (0, 0)
    sizes = (SAMPLE.height | SAMPLE.width << 32, len(SAMPLE.slots[0]))
    pointers = (*(tensor.data_ptr() for tensor in inputs), out.data_ptr())
    parameters = (ctypes.c_uint64 * 9)(*pointers, *sizes, *scratch)
    rows = -(-SAMPLE.height // third_party.TILE_ROWS)
    columns = -(-SAMPLE.width // third_party.TILE_COLUMNS)
    library.launch(
        third_party.KERNEL,
        parameters,
        memory,
        grid=(rows * columns, 1, 1),
        threads=32 * third_party.WARPS,
        shared_bytes=third_party.SHARED_BYTES,
    )
    assert memory.is_fully_written(out.data_ptr())
    return (out.double() - reference(operands)).abs().max().item()


def build(toolchain: Toolchain, name: str) -> EmulatedLibrary:
    translated = translate(third_party.PTX_FILE.read_text())
    return EmulatedLibrary(toolchain.translated_library(name, translated))


def test_triton_code_computes_the_right_thing(toolchain: Toolchain) -> None:
    assert triton_error(build(toolchain, "triton")) <= 2e-3


@pytest.mark.parametrize("misreading", MISREADINGS)
def test_a_misread_layout_would_show(toolchain: Toolchain, tmp_path: Path, misreading: str) -> None:
    right, wrong = MISREADINGS[misreading]
    text = (EMULATOR / "emulator.cpp").read_text()
    assert text.count(right) == 1
    mistaken = tmp_path / "emulator.cpp"
    mistaken.write_text(text.replace(right, wrong))
    library = build(Toolchain(tmp_path, emulator_source=mistaken), "triton")
    assert not triton_error(library) <= 2e-3
