"""What the attention and a frame of ERFNet cost on this NVIDIA GPU, in milliseconds on the device.

The attention is measured beside torch's own ways on the same GPU, and against float64. The way in
torch is that of ``row_band``: it computes in float32, row by row, and the host asks for the slots,
so that it runs eagerly where the kernels run as CUDA graphs.

A frame is measured as the engine runs it, as CUDA graphs: without memory, and reading T = 4 frames
with P = 21 and memorising itself. ``engine`` is the whole step by the clock of the host: pixels
there, label maps back.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from segstream.attention import local_memory_attention, row_band
from segstream.bench import attention_baselines as baselines
from segstream.bench.attention import CASES, Case, Inputs
from segstream.bench.side_by_side import describe
from segstream.checkpoints import DEFAULT
from segstream.engine import Step
from segstream.engine.cuda_executor import CudaExecutor
from segstream.engine.cuda_graphs import CudaGraphs
from segstream.models import LMANet, load
from segstream.models.memory import write_pages
from segstream.models.precision import Precision, autocast, in_precision
from segstream.pages import Pages, empty_pages

_CALLS, _ROUNDS = 20, 15
_MEMORY_LENGTH, _WINDOW_SIZE = 4, 21
_RING = _MEMORY_LENGTH + 1  # pages of a session
_SIZES = ((360, 480), (512, 1024))
_BATCHES = (1, 4, 16)
_PRECISIONS: tuple[Precision, ...] = ("float32", "float16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    device = torch.device(parser.parse_args().device)
    with torch.cuda.device(device), torch.inference_mode():
        figures = {
            "gpu": torch.cuda.get_device_name(device),
            "torch": torch.__version__,
            "attention": {case.name: _attention(case, device) for case in CASES},
            "frames": [
                _frames(precision, size, batch, device)
                for precision in _PRECISIONS
                for size in _SIZES
                for batch in _BATCHES
            ],
        }
    print(json.dumps(figures, indent=2))


def _attention(case: Case, device: torch.device) -> dict[str, object]:
    """Milliseconds of each way, and the kernels' largest absolute errors."""
    inputs = Inputs.of(case).to(device, torch.float16)
    query, keys, pages, slots = inputs.query, inputs.keys, inputs.paged, inputs.slots
    p = case.window_size
    exact = inputs.exact(keys, pages)
    query32, keys32, pages32 = query.float(), keys.float(), pages.float()

    def flex() -> Callable[[], Tensor]:
        with device:  # its mask and margins are made where torch makes tensors by default
            attend = baselines.compile_flex(query[0], keys, inputs.values, p)
        return lambda: attend(query[0], keys, inputs.values, p)

    kernels: dict[str, Callable[[], Tensor]] = {
        "kernel, float16": lambda: local_memory_attention(query, keys, pages, slots, p),
        "kernel, float32": lambda: local_memory_attention(query32, keys32, pages32, slots, p),
    }
    others: dict[str, Callable[[], Callable[[], Tensor]]] = {
        "torch, eager": lambda: lambda: row_band.forward(query, keys, pages, slots, p, None),
        "flex_attention, float16": flex,
    }
    figures: dict[str, object] = {name: _milliseconds(call) for name, call in kernels.items()}
    for name, make in others.items():
        try:
            figures[name] = _milliseconds(make())
        except Exception as error:  # memory may run out, the compiler of others may fail
            figures[name] = describe(error)
    errors = {
        f"error of {name}": (call().double() - exact).abs().max().item()
        for name, call in kernels.items()
    }
    return figures | errors


def _frames(
    precision: Precision, size: tuple[int, int], batch: int, device: torch.device
) -> dict[str, object]:
    model = load(DEFAULT, memory_length=_MEMORY_LENGTH, window_size=_WINDOW_SIZE).to(device)
    engine = CudaExecutor(model, CudaGraphs(str(device)), precision)  # gives the model its layout
    single, memory = _network(in_precision(model, precision), precision, size, batch, device)
    steps = _steps(model, precision, size, batch, device)
    for _ in range(5):  # eager, captured, replayed
        engine(next(steps), lambda _: None)
    seconds = []
    for _ in range(_ROUNDS * 3):
        taken = next(steps)
        started = time.perf_counter()
        engine(taken, lambda _: None)
        seconds.append(time.perf_counter() - started)
    single_ms, memory_ms = _milliseconds(single), _milliseconds(memory)
    return {
        "size": "x".join(map(str, size)),
        "precision": precision,
        "batch": batch,
        "single_frame_ms": single_ms,
        "memory_ms": memory_ms,
        "memory_costs_ms_per_frame": (memory_ms - single_ms) / batch,
        "engine_ms": 1000 * statistics.median(seconds),
        "engine_frames_per_second": batch / statistics.median(seconds),
    }


def _network(
    model: LMANet, precision: Precision, size: tuple[int, int], batch: int, device: torch.device
) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """A batch of frames on the device to label maps: each alone, and with its memory."""
    frames = torch.rand(batch, 3, *size, device=device)
    frames = frames.to(memory_format=model.spec.layout(device))
    pages = _pages(model, precision, size, batch, device)
    slots = torch.arange(batch * _RING, dtype=torch.int32, device=device).view(batch, _RING)
    read_slots, write_slots = slots[:, :-1].contiguous(), slots[:, -1].long()

    def single() -> Tensor:
        with autocast(device, precision):
            return model.decode(model.encode(frames)).argmax(dim=1)

    def memory() -> Tensor:
        with autocast(device, precision):
            logits, key, value = model.segment(frames, (pages, read_slots))
        write_pages(pages, write_slots, key, value)
        return logits.argmax(dim=1)

    return single, memory


def _steps(
    model: LMANet, precision: Precision, size: tuple[int, int], batch: int, device: torch.device
) -> Iterator[list[Step]]:
    """Batches of one frame of each of so many sessions, whose memories are full."""
    pages = _pages(model, precision, size, batch, device)
    images = np.random.default_rng(0).integers(0, 256, (batch, *size, 3), dtype=np.uint8)
    free = 0
    while True:
        places = [(free + age) % _RING for age in range(1, _RING)]
        yield [
            Step("", image, pages, tuple(first + place for place in places), first + free)
            for first, image in zip(range(0, batch * _RING, _RING), images, strict=True)
        ]
        free = (free + 1) % _RING


def _pages(
    model: LMANet, precision: Precision, size: tuple[int, int], batch: int, device: torch.device
) -> Pages:
    """Of so many sessions, each with a full memory and a page to write."""
    geometry, dtype = model.page_geometry(*size), getattr(torch, precision)
    pages = empty_pages(geometry, batch * _RING, dtype=dtype, device=device)
    pages.keys.normal_()
    pages.values.normal_()
    return pages


def _milliseconds(call: Callable[[], Tensor]) -> float:
    """Median of what one call costs the device, as a CUDA graph where it can be captured."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            call()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            call()
        run: Callable[[], object] = graph.replay
    except RuntimeError:
        torch.cuda.synchronize()
        run = call
    rounds: list[float] = []
    for _ in range(_ROUNDS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(_CALLS):
            run()
        end.record()
        end.synchronize()
        rounds.append(start.elapsed_time(end) / _CALLS)
    return statistics.median(rounds)


if __name__ == "__main__":
    main()
