"""(E) What the assembler makes of the kernels: registers, spills and shared memory."""

import re

import pytest

from segstream.attention.cuda.build import SOURCE
from segstream.attention.cuda.source import translation_unit
from segstream.attention.cuda.variants import PREBUILT, TensorCoreVariant
from tests.attention.cuda_emulation.toolchain import Toolchain

MAX_REGISTERS = 128
MAX_SPILL_STORE_BYTES = 16
# Of one multiprocessor, and what the system keeps of it for each block.
SHARED_BYTES = {75: 64 * 1024, 80: 164 * 1024, 89: 100 * 1024, 90: 228 * 1024}
RESERVED_BYTES = {75: 0, 80: 1024, 89: 1024, 90: 1024}
USAGE = re.compile(
    r"Compiling entry function '(\w+)'.*?(\d+) bytes spill stores.*?Used (\d+) registers", re.DOTALL
)


@pytest.mark.usefixtures("nvcc")
@pytest.mark.parametrize("architecture", [75, 80, 89, 90])
def test_registers_and_spills(toolchain: Toolchain, architecture: int) -> None:
    report = toolchain.resource_usage(
        f"usage_{architecture}", translation_unit(PREBUILT), architecture=architecture
    )
    usage = {name: (int(stores), int(regs)) for name, stores, regs in USAGE.findall(report)}
    print(architecture, usage)
    assert set(usage) == {v.name for v in PREBUILT if v.oldest_architecture <= architecture}
    for name, (spill_stores, registers) in usage.items():
        assert registers <= MAX_REGISTERS, name
        assert spill_stores <= MAX_SPILL_STORE_BYTES, name


@pytest.mark.parametrize("architecture", SHARED_BYTES)
def test_shared_memory_lets_two_blocks_of_erfnet_share_a_multiprocessor(architecture: int) -> None:
    for variant in PREBUILT:
        if not isinstance(variant, TensorCoreVariant):
            continue
        blocks = 2 if variant.key_channels == 16 else 1
        each = variant.shared_bytes(architecture) + RESERVED_BYTES[architecture]
        assert blocks * each <= SHARED_BYTES[architecture], variant.name


def test_the_prebuilt_source_is_the_list_of_variants() -> None:
    comment, _, code = SOURCE.read_text().partition("\n")
    assert comment.startswith("//")
    assert code == translation_unit(PREBUILT)
