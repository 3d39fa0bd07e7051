"""What each way to compute a convolution of the native engine costs, and how exact it is.

    python benchmarks/native_layers.py [--json]

Maps of a 512x1024 frame, inputs and weights of unit gain, torch's number of threads, medians of
interleaved runs. Tile 1 is the direct convolution, 2 and 4 are Winograd's with so many outputs
along an axis; errors are the largest absolute differences from float64.
"""

import json
import sys
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import conv2d

from segstream.bench.side_by_side import Contender, measure
from segstream.models.native.library import GROUP, Group, Kind, Layer, Scratch, Step

PAIRS = ((16, 256, 512, 1), (64, 128, 256, 1), (128, 64, 128, 2), (128, 64, 128, 16))
HEADS = (128, 160, 64, 128)
ROUNDS, SECONDS_EACH = 25, 5.0


def pairs(channels: int, height: int, width: int, dilation: int) -> dict[str, Contender]:
    """A 3x1 and a 1x3 convolution with each tile."""
    c, d = channels, dilation
    x = torch.randn(height, width, c).relu()
    weights = [torch.randn(c, c, 3, dtype=torch.float64) / (1.5 * c) ** 0.5 for _ in range(2)]
    biases = [torch.zeros(c, dtype=torch.float64)] * 2
    planes = x.double().permute(2, 0, 1)[None]
    between = conv2d(planes, weights[0].unsqueeze(3), padding=(d, 0), dilation=(d, 1)).relu()
    exact = conv2d(between, weights[1].unsqueeze(2), padding=(0, d), dilation=(1, d)).relu()
    reference = exact[0].permute(1, 2, 0).contiguous()

    def contender(tile: int) -> Contender:
        layer = Layer(Kind.PAIR, c, c, weights, biases, dilation=d, tile=tile)
        return Contender(Running(layer, x, torch.empty_like(x)), reference, may_fail=False)

    name = f"pair {height}x{width} C {c} d {d}"
    return {f"{name}, tile {tile}": contender(tile) for tile in (1, 2, 4)}


def heads(in_channels: int, out_channels: int, height: int, width: int) -> dict[str, Contender]:
    """The 3x3 convolution of the heads with each tile."""
    i, o = in_channels, out_channels
    x = torch.randn(height, width, i).relu()
    weight = torch.randn(o, i, 3, 3, dtype=torch.float64) / (4.5 * i) ** 0.5
    exact = conv2d(x.double().permute(2, 0, 1)[None], weight, padding=1)
    reference = exact[0].permute(1, 2, 0).contiguous()

    def contender(tile: int) -> Contender:
        layer = Layer(Kind.HEADS, i, o, (weight,), (weight.new_zeros(o),), tile=tile)
        out = torch.empty(height, width, o)
        each = GROUP * out.element_size()
        groups = [Group(out.data_ptr() + n * each, o, 0) for n in range(o // GROUP)]
        run = Running(layer, x, out, groups=(Group * len(groups))(*groups))
        return Contender(run, reference, may_fail=False)

    return {f"heads {height}x{width} {i} to {o}, tile {tile}": contender(tile) for tile in (2, 4)}


class Running:
    """A layer on a map, ready to run; a step knows addresses only, so this keeps what is there."""

    def __init__(self, layer: Layer, x: Tensor, out: Tensor, **fields: Any) -> None:
        height, width, _ = x.shape
        step = Step(layer=layer.handle, input=x.data_ptr(), out=out.data_ptr(), **fields)
        step.height, step.width = height, width
        self._layer, self._x, self._out = layer, x, out
        self._steps = (Step * 1)(step)
        self._scratch = Scratch()

    def __call__(self) -> Tensor:
        self._scratch.run(self._steps, torch.get_num_threads())
        return self._out


def main() -> None:
    results = []
    for contenders in (*(pairs(*sizes) for sizes in PAIRS), heads(*HEADS)):
        measure(list(contenders.values()), rounds=ROUNDS, seconds_each=SECONDS_EACH)
        results += [
            {"layer": name, "ms_median": 1000 * c.median, "max_error": c.max_error}
            for name, c in contenders.items()
        ]
    if "--json" in sys.argv[1:]:
        print(json.dumps(results, indent=2))
        return
    table = Table("layer", "median, ms", "max error", title=f"{torch.get_num_threads()} threads")
    for result in results:
        table.add_row(
            str(result["layer"]), f"{result['ms_median']:.2f}", f"{result['max_error']:.1e}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
