"""``segstream bench model``: a frame of the whole network on each of its engines, side by side.

Every engine takes a uint8 frame to a uint8 label map, batch 1, its memory full. "Useful" flops are
those of direct convolutions and of a read that counts every neighbour once, two per multiply-add.
"""

from collections.abc import Callable
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from segstream.bench.attention_baselines import row_band
from segstream.bench.side_by_side import Contender, measure
from segstream.checkpoints import DEFAULT
from segstream.engine import Step
from segstream.engine.executor import Executor
from segstream.engine.native_executor import NativeExecutor
from segstream.engine.onnx_executor import OnnxExecutor
from segstream.errors import UnavailableError
from segstream.media.images import Image
from segstream.models import LMANet, NativeLMANet, OnnxLMANet, load
from segstream.models.lmanet import in_layout
from segstream.models.memory import write_pages
from segstream.models.native.library import library
from segstream.pages import Pages, empty_pages

MODEL = DEFAULT
MEMORY_LENGTH, WINDOW_SIZE = 4, 21
NATIVE, ONNX, EAGER = "native", "onnx", "torch eager"

_SINGLE_FRAME = "single frame"
_SGEMM = "sgemm"
_SGEMM_SIZE = 2048
_ROUNDS, _SECONDS_EACH = 15, 30.0


class EngineResult(TypedDict):
    """The median of a frame, and its useful flops in that time."""

    ms_median: float
    useful_gflops: float


class BenchResult(TypedDict):
    """What ``run`` found; ratios are medians of ratios within a round.

    ``memory_overhead_ratio``: to the single-frame network on the native engine.
    """

    size: str
    threads: int
    sgemm_gflops: float
    engines: dict[str, EngineResult]
    speedup_vs_eager: float
    speedup_vs_onnxruntime: float
    flops_ratio_vs_sgemm: float
    memory_overhead_ratio: float


def run(
    height: int,
    width: int,
    *,
    threads: int | None = None,
    rounds: int = _ROUNDS,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchResult:
    """Measure all engines on frames of ``height x width``; ``progress`` hears what is being done.

    threads: of all engines alike; None leaves torch's number. Raises UnavailableError where the
    native engine was not built.
    """
    if library() is None:
        raise UnavailableError(
            "there is no native engine to measure: reinstall segstream where there is a C++ "
            "compiler"
        )
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        progress(f"preparing {height}x{width}")
        flops, contenders = _contenders(height, width)
        progress(f"{height}x{width}: {', '.join(contenders)}")
        measure(list(contenders.values()), rounds=rounds, seconds_each=_SECONDS_EACH)
        return _result(f"{height}x{width}", flops, contenders)
    finally:
        torch.set_num_threads(before)


def _result(size: str, flops: float, contenders: dict[str, Contender]) -> BenchResult:
    native, sgemm = contenders[NATIVE], contenders[_SGEMM]
    return {
        "size": size,
        "threads": torch.get_num_threads(),
        "sgemm_gflops": 2 * _SGEMM_SIZE**3 / sgemm.median / 1e9,
        "engines": {
            name: {
                "ms_median": 1000 * contenders[name].median,
                "useful_gflops": flops / contenders[name].median / 1e9,
            }
            for name in (NATIVE, ONNX, EAGER)
        },
        "speedup_vs_eager": _ratio(contenders[EAGER], native),
        "speedup_vs_onnxruntime": _ratio(contenders[ONNX], native),
        "flops_ratio_vs_sgemm": flops / (2 * _SGEMM_SIZE**3) * _ratio(sgemm, native),
        "memory_overhead_ratio": _ratio(native, contenders[_SINGLE_FRAME]),
    }


def _ratio(slower: Contender, faster: Contender) -> float:
    ratio = slower.times(faster)
    assert ratio is not None, "both take part in every third round at least"
    return ratio


@torch.inference_mode()
def _contenders(height: int, width: int) -> tuple[float, dict[str, Contender]]:
    """The useful flops of a frame, and who computes it."""
    model = load(MODEL, memory_length=MEMORY_LENGTH, window_size=WINDOW_SIZE)
    in_layout(model, torch.contiguous_format)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pages = empty_pages(model.page_geometry(height, width), MEMORY_LENGTH + 1)
    native = NativeLMANet(model)
    step = Step(MODEL, image, pages, tuple(range(MEMORY_LENGTH)), MEMORY_LENGTH)
    for slot in range(MEMORY_LENGTH):
        NativeExecutor(native)([Step(MODEL, image, pages, (), slot)], lambda _: None)
    with FlopCounterMode(display=False) as counter:
        _eager(model, image, pages, lambda _, pages: pages.values[:1])
    page = model.page_geometry(height, width)
    neighbours = page.height * page.width * MEMORY_LENGTH * WINDOW_SIZE**2
    flops = counter.get_total_flops() + 2 * neighbours * (page.key_channels + page.value_channels)

    matrix = torch.randn(_SGEMM_SIZE, _SGEMM_SIZE)
    return flops, {
        NATIVE: _of(_executing(NativeExecutor(native), step)),
        ONNX: _of(_executing(OnnxExecutor(OnnxLMANet(model)), step)),
        EAGER: _of(lambda: _eager(model, image, pages, _row_band_read)),
        _SINGLE_FRAME: _of(lambda: native.segment_single(image)),
        _SGEMM: _of(lambda: matrix @ matrix),
    }


def _of(call: Callable[[], Tensor]) -> Contender:
    return Contender(call, may_fail=False)


def _executing(executor: Executor, step: Step) -> Callable[[], Tensor]:
    def run() -> Tensor:
        [prediction] = executor([step], lambda _: None)
        return torch.from_numpy(prediction.label_map)

    return run


@torch.inference_mode()
def _eager(
    model: LMANet, image: Image, pages: Pages, read: Callable[[Tensor, Pages], Tensor]
) -> Tensor:
    """What one would write in plain torch; the read is told apart from the rest."""
    frames = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    features = model.encode(frames).tap
    key, value = model.memory_head(features)
    query_key, query_value = model.query_head(features)
    readout = read(query_key, pages)
    write_pages(pages, torch.tensor([MEMORY_LENGTH]), key, value)
    logits = model.decoder(model.fusion(query_value, readout, features))
    height, width, _ = image.shape
    logits = logits[0, : model.config.label_set.num_classes, :height, :width]
    label_map: Tensor = logits.argmax(dim=0).to(torch.uint8)
    return label_map


def _row_band_read(query_key: Tensor, pages: Pages) -> Tensor:
    keys, values = pages.keys[:MEMORY_LENGTH], pages.values[:MEMORY_LENGTH]
    return row_band(query_key[0], keys, values, WINDOW_SIZE)[None]
