"""What a frame costs on the CPU engines while other programs want the cores as well.

    python benchmarks/contention.py [--json] [--busy N]

Runs frames of 360x480 with a full memory on the native engine and on ONNX Runtime, interleaved,
alone and beside ``--busy`` processes that never rest. Prints medians: the time that passed, and the
processor time that the frame took on all threads together. What threads burn while they wait for
each other shows in the latter.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from segstream.checkpoints import DEFAULT
from segstream.engine import Step
from segstream.engine.executor import Executor
from segstream.engine.native_executor import NativeExecutor
from segstream.engine.onnx_executor import OnnxExecutor
from segstream.models import NativeLMANet, OnnxLMANet, load
from segstream.pages import empty_pages

HEIGHT, WIDTH = 360, 480
ROUNDS = 9


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def make_steps() -> dict[str, tuple[Executor, Step]]:
    """A frame for each engine, whose memory is full."""
    model = load(DEFAULT)
    length = model.config.memory_length
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    steps = {}
    executors: dict[str, Executor] = {
        "native": NativeExecutor(NativeLMANet(model)),
        "onnx": OnnxExecutor(OnnxLMANet(model)),
    }
    for name, executor in executors.items():
        pages = empty_pages(model.page_geometry(HEIGHT, WIDTH), length + 1)
        for slot in range(length):
            executor([Step(DEFAULT, image, pages, (), slot)], lambda _: None)
        steps[name] = executor, Step(DEFAULT, image, pages, tuple(range(length)), length)
    return steps


def measure(steps: dict[str, tuple[Executor, Step]]) -> dict[str, dict[str, float]]:
    passed: dict[str, list[float]] = {name: [] for name in steps}
    used: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(ROUNDS + 1):
        for name, (executor, step) in steps.items():
            started, used_before = time.perf_counter(), time.process_time()
            executor([step], lambda _: None)
            if number:
                passed[name].append(1000 * (time.perf_counter() - started))
                used[name].append(1000 * (time.process_time() - used_before))
    return {
        name: {
            "ms_median": statistics.median(passed[name]),
            "processor_ms_median": statistics.median(used[name]),
        }
        for name in steps
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--busy", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    steps = make_steps()
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "alone": measure(steps)}
    with busy_processes(options.busy):
        results["beside_busy_processes"] = measure(steps)
    results["busy_processes"] = options.busy
    if options.json:
        print(json.dumps(results))
        return
    table = Table("", "engine", "ms", "processor ms", title=f"{results['threads']} threads")
    for where in ("alone", "beside_busy_processes"):
        for name, row in results[where].items():
            figures = (f"{row[key]:.0f}" for key in ("ms_median", "processor_ms_median"))
            table.add_row(where.replace("_", " "), name, *figures)
    Console().print(table)


if __name__ == "__main__":
    main()
