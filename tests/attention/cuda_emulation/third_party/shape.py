"""What the Triton kernel was compiled for."""

from pathlib import Path

PTX_FILE = Path(__file__).with_name("triton_attention_sm80.ptx")
KERNEL = "triton_attention"
WINDOW = 9
KEY_CHANNELS = 16
VALUE_CHANNELS = 64
TILE_ROWS = 8
TILE_COLUMNS = 8
KEY_COLUMNS = 16  # per key row: TILE_COLUMNS + WINDOW - 1
WARPS = 4
SHARED_BYTES = 16384  # at most; the compiler reports the exact figure
