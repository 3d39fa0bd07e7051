"""Faults to plant in the kernels, to see that the emulation notices them.

Each is one replacement in one file; ``test_seeded_bugs.py`` fails if the text to replace is gone,
so a bug cannot silently stop being planted.
"""

from dataclasses import dataclass
from pathlib import Path

from segstream.attention.cuda.source import headers


@dataclass(frozen=True)
class Bug:
    """A replacement in a kernel header."""

    header: str
    right: str
    wrong: str
    architecture: int = 80

    def plant(self, directory: Path) -> Path:
        """A copy of the kernels with this bug, in a new directory."""
        directory.mkdir()
        for name, text in headers().items():
            if name == self.header:
                assert text.count(self.right) == 1, f"{text.count(self.right)} x {self.right!r}"
                text = text.replace(self.right, self.wrong)
            (directory / name).write_text(text)
        return directory


_KERNEL = "tensor_core.cuh"
_STREAM = "page_stream.cuh"
_TILE = "tile.cuh"
_SOFTMAX = "softmax.cuh"
_COMBINE = "combine.cuh"
_PLAIN = "plain.cuh"
_MACHINE = "machine.cuh"

_BARRIER = (
    "    machine::block_barrier();  // the stage is here for all, and the one before it is free\n"
)
_WAIT = "    machine::wait_copies<T::kRing - 2>();\n"
_FREE_STAGE = "stage == ring ? last_stage : stage - T::kStageBytes"

KERNEL_BUGS = {
    # synchronisation
    "wait for one group too few": Bug(_KERNEL, _WAIT, _WAIT.replace("- 2", "- 1")),
    "no barrier in the stage loop": Bug(_KERNEL, _BARRIER, ""),
    "barrier before the wait": Bug(_KERNEL, _WAIT + _BARRIER, _BARRIER + _WAIT),
    "copy into the stage being read": Bug(_KERNEL, _FREE_STAGE, "stage"),
    "commit only where there is something": Bug(
        _STREAM,
        "      stage_in_page++;\n    }\n    stages_left--;\n    machine::commit_copies();\n",
        "      stage_in_page++;\n      machine::commit_copies();\n    }\n    stages_left--;\n",
    ),
    "warps outside the map leave early": Bug(
        _KERNEL,
        "  int key_row = -patch_row;",
        "  if (T::tile_column(problem) + patch_column >= problem.width) return;\n"
        "  int key_row = -patch_row;",
    ),
    "collective inside a divergent branch": Bug(
        _KERNEL,
        "if (machine::any_lane(must_move)) {",
        "if (must_move && machine::any_lane(must_move)) {",
    ),
    "plain: no barrier before the softmax": Bug(
        _PLAIN,
        "      machine::block_barrier();\n      strip.weigh();\n",
        "      strip.weigh();\n",
    ),
    "plain: no barrier before the next row": Bug(
        _PLAIN,
        "machine::block_barrier();  // the last row's weights are read, or the queries are written",
        "",
    ),
    # addresses and bounds
    "swizzle of writer and reader differ": Bug(
        _STREAM, "(value_chunk ^ (x & 7))", "(value_chunk ^ ((x + 1) & 7))"
    ),
    "rows longer than their place": Bug(
        _TILE,
        "kKeyRowBytes + kHaloX * kValuePixelBytes;",
        "kKeyRowBytes + kHaloX * kValuePixelBytes - kChunkBytes;",
    ),
    "slot table ignored": Bug(
        _STREAM,
        "slot = static_cast<int>(machine::load_global_u32(slots + column++));",
        "slot = column++;",
    ),
    "absent slots read": Bug(
        _STREAM,
        "if (static_cast<u32>(slot) < static_cast<u32>(problem.num_slots)) return true;",
        "return true;",
    ),
    "no zeros outside the map": Bug(
        _STREAM,
        "static_cast<u32>(chunk.row + rows_down) < static_cast<u32>(problem.height)",
        "chunk.row + rows_down >= 0",
    ),
    "columns wrap around the map's edge": Bug(
        _STREAM, "column >= 0 && column < problem.width ? row : kNoRow", "row"
    ),
    "results outside the map written": Bug(
        _KERNEL, "if (y >= problem.height || x >= problem.width) continue;", ""
    ),
    "value block ignored": Bug(_STREAM, "value_block * problem.value_block_stride", "0"),
    "page stride taken for packed": Bug(
        _STREAM,
        "cursor.slot * problem.key_page_stride",
        "static_cast<i64>(cursor.slot) * problem.height * problem.width * KeyChannels",
    ),
    "plain: right edge not checked": Bug(
        _PLAIN, "row && x >= 0 && x < problem.width", "row && x >= 0"
    ),
    # arithmetic
    "window one column too wide": Bug(
        _KERNEL, "key_column >= query_column + Window", "key_column > query_column + Window"
    ),
    "window one row too short": Bug(
        _KERNEL,
        "static_cast<u32>(key_row + r - query_row) < static_cast<u32>(Window)",
        "static_cast<u32>(key_row + r - query_row) < static_cast<u32>(Window - 1)",
    ),
    "weights' fragments swapped": Bug(
        _KERNEL,
        "weights[i / 2][j][2 * (i % 2)],",
        "weights[i % 2][j][2 * (i / 2)],",
    ),
    "sum not rescaled": Bug(_KERNEL, "    sum[2 * h] *= factor;\n", ""),
    "weighted values not rescaled": Bug(_KERNEL, "weighted[c][2 * h + e] *= factor;", ";"),
    "reference does not follow downwards": Bug(
        _KERNEL,
        "must_move |= largest[h] > (is_unset(h) ? machine::negative_infinity() : kLazyMargin);",
        "if (is_unset(h)) reference[h] = 0.0f;\n      must_move |= largest[h] > kLazyMargin;",
    ),
    "reference never moves again": Bug(_SOFTMAX, "kLazyMargin = 5.5f", "kLazyMargin = 1e30f"),
    "combine: sink forgotten": Bug(
        _COMBINE, "if (problem.sink) merge.add(machine::load_global(problem.sink), 1.0f);", ""
    ),
    "combine: parts of absent pages read": Bug(_COMBINE, "if (part_sum == 0.0f) continue;", ""),
    "plain: weighted values not rescaled": Bug(
        _PLAIN, "    scale_weighted();\n    if (!row", "    if (!row"
    ),
}

_TRANSPOSED = "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16"
_HALF_16 = (
    '      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "\n'
    '      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"\n'
)
_HALF_8 = '      : "r"(a[2]), "r"(a[3]), "r"(b1));'

# In the inline assembly, which only the PTX shows.
WRAPPER_BUGS = {
    "right operand's registers swapped": Bug(
        _MACHINE, _HALF_16, _HALF_16.replace("{%8, %9}", "{%9, %8}")
    ),
    "left operand's registers swapped": Bug(
        _MACHINE, _HALF_16, _HALF_16.replace("%5, %6", "%6, %5")
    ),
    "ldmatrix without .trans": Bug(_MACHINE, _TRANSPOSED, _TRANSPOSED.replace(".trans", "")),
    "zero fill inverted": Bug(_MACHINE, "present ? 16 : 0", "present ? 0 : 16"),
    "wait constant off by one": Bug(_MACHINE, '"n"(Pending)', '"n"(Pending + 1)'),
    "packed halves swapped": Bug(
        _MACHINE, 'cvt.rn.f16x2.f32 %0, %2, %1;"', 'cvt.rn.f16x2.f32 %0, %1, %2;"'
    ),
    "shuffle by one lane always": Bug(
        _MACHINE, "%0, %1, %2, 0x1f, 0xffffffff", "%0, %1, 1, 0x1f, 0xffffffff"
    ),
    "sm_75: second half of the product twice": Bug(
        _MACHINE, _HALF_8, _HALF_8.replace('"r"(b1)', '"r"(b0)'), architecture=75
    ),
    "sm_75: words of a copy swapped": Bug(
        _MACHINE,
        "[%0], {%1, %2, %3, %4};",
        "[%0], {%1, %2, %4, %3};",
        architecture=75,
    ),
}
