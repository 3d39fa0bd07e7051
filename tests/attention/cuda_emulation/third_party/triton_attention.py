"""The same operator written in Triton, for its compiler's sake.

Its PTX is kept in ``triton_attention_sm80.ptx``: code for the same instructions (ldmatrix, mma,
cp.async, shuffles) whose register layouts were chosen by other people than the emulator's. If it
computes the right thing on the emulator, the emulator has those layouts right.

To make the file again (no GPU needed): ``pip install triton==3.5.0``, then
``python -m tests.attention.cuda_emulation.third_party.triton_attention``.
"""

# mypy: disable-error-code="import-not-found, import-untyped, untyped-decorator, no-untyped-def"
# mypy: disable-error-code="no-untyped-call, unused-ignore, misc, attr-defined"

import re

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.attention.cuda_emulation.third_party import shape


@triton.jit
def triton_attention(
    query,
    keys,
    values,
    slots,
    out,
    height,
    width,
    table_length,
    P: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    KEYS: tl.constexpr,
):
    tiles_x = tl.cdiv(width, COLUMNS)
    first_y = tl.program_id(0) // tiles_x * ROWS
    first_x = tl.program_id(0) % tiles_x * COLUMNS
    m = tl.arange(0, ROWS * COLUMNS)
    y = first_y + m // COLUMNS
    x = first_x + m % COLUMNS
    inside = ((y < height) & (x < width))[:, None]
    key_channel = tl.arange(0, DK)[None, :]
    value_channel = tl.arange(0, DV)[None, :]
    pixel = (y * width + x)[:, None]
    q = tl.load(query + pixel * DK + key_channel, mask=inside, other=0.0)

    key_x = first_x - P // 2 + tl.arange(0, KEYS)
    offset_x = key_x[None, :] - x[:, None]
    in_columns = (offset_x >= -(P // 2)) & (offset_x <= P // 2)
    reference = tl.full([ROWS * COLUMNS], -1e30, tl.float32)
    total = tl.zeros([ROWS * COLUMNS], tl.float32)
    weighted = tl.zeros([ROWS * COLUMNS, DV], tl.float32)
    for page in range(0, table_length):
        page_pixel = tl.load(slots + page) * height * width
        for row in range(0, ROWS + P - 1):
            key_y = first_y - P // 2 + row
            present = (key_x >= 0) & (key_x < width) & (key_y >= 0) & (key_y < height)
            key_pixel = (page_pixel + key_y * width + key_x)[:, None]
            k = tl.load(keys + key_pixel * DK + key_channel, mask=present[:, None], other=0.0)
            scores = tl.dot(q, tl.trans(k)) * 1.4426950408889634
            offset_y = key_y - y
            in_rows = (offset_y >= -(P // 2)) & (offset_y <= P // 2)
            scores = tl.where(in_columns & in_rows[:, None], scores, float("-inf"))
            larger = tl.maximum(reference, tl.max(scores, 1))
            factor = tl.exp2(reference - larger)
            weights = tl.exp2(scores - larger[:, None])
            total = total * factor + tl.sum(weights, 1)
            reference = larger
            v = tl.load(values + key_pixel * DV + value_channel, mask=present[:, None], other=0.0)
            weighted = weighted * factor[:, None] + tl.dot(weights.to(v.dtype), v)
    tl.store(out + pixel * DV + value_channel, weighted / total[:, None], mask=inside)


def compile_kernel() -> str:
    """PTX for sm_80, without debug sections."""
    pointers = dict.fromkeys(("query", "keys", "values"), "*fp16")
    sizes = dict.fromkeys(("height", "width", "table_length"), "i32")
    signature = {**pointers, "slots": "*i32", "out": "*fp32", **sizes}
    constants = {
        "P": shape.WINDOW,
        "DK": shape.KEY_CHANNELS,
        "DV": shape.VALUE_CHANNELS,
        "ROWS": shape.TILE_ROWS,
        "COLUMNS": shape.TILE_COLUMNS,
        "KEYS": shape.KEY_COLUMNS,
    }
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(5)}
    source = ASTSource(
        fn=triton_attention, signature=signature, constexprs=constants, attrs=aligned
    )
    options = {"num_warps": shape.WARPS, "num_stages": 2}
    compiled = triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)
    if compiled.metadata.shared > shape.SHARED_BYTES:
        raise ValueError(f"{compiled.metadata.shared} bytes of shared memory")
    code = compiled.asm["ptx"].partition("\t.section")[0]
    code = re.sub(r"[ \t]*//[^\n]*|^\s*\.(loc|file)[^\n]*", "", code, flags=re.MULTILINE)
    return re.sub(r"\n\s*\n+", "\n", code).strip() + "\n"


if __name__ == "__main__":
    shape.PTX_FILE.write_text(compile_kernel())
    print(f"{shape.PTX_FILE}: {len(shape.PTX_FILE.read_text().splitlines())} lines")
