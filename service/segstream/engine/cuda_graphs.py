"""CUDA graphs on a stream of their own. Nothing but the calls into torch is here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from segstream.engine.graph_device import Work


def has_cuda_graphs(device: str) -> bool:
    """Whether it is a CUDA device, which ROCm builds of torch call theirs, too."""
    return torch.device(device).type == "cuda" and torch.version.hip is None


class CudaGraphs:
    """See ``GraphDevice``.

    Work is captured as one graph per stage, so that ordinary events between them time the stages.
    All graphs share one pool of memory: they never run side by side, and none needs what another
    one left, but for the stages of one work, which are captured and replayed in order.
    """

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self._stream = torch.cuda.Stream(self.device)
        self._pool = torch.cuda.graph_pool_handle()
        self._first: torch.cuda.CUDAGraph | None = None  # without any graph torch drops the pool

    @contextmanager
    def working(self) -> Iterator[None]:
        with torch.cuda.stream(self._stream):
            # Pages are restored and read from other threads, on the default stream.
            self._stream.wait_stream(torch.cuda.default_stream(self.device))
            try:
                yield
            finally:
                self.mark()()

    def host_memory(self, num_bytes: int) -> Tensor:
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)

    def mark(self) -> Callable[[], None]:
        event = torch.cuda.Event(blocking=True)  # who waits leaves the core to the codecs
        event.record()
        return event.synchronize

    def capture(self, work: Work) -> Work:
        torch.cuda.empty_cache()  # what the work took when it ran; a graph has memory of its own
        graphs, stages = [self._begin()], []

        def cut(stage: str) -> None:
            graphs[-1].capture_end()
            stages.append(stage)
            graphs.append(self._begin())

        try:
            work(cut)
        except BaseException:
            with suppress(RuntimeError):
                graphs[-1].capture_end()  # which says that the capture is void
            raise
        graphs[-1].capture_end()
        self._first = self._first or graphs[0]

        def replay(lap: Callable[[str], None]) -> None:
            for graph, stage in zip(graphs, stages, strict=False):
                graph.replay()
                lap(stage)
            graphs[-1].replay()

        return replay

    def _begin(self) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        # Other threads may allocate and copy meanwhile.
        graph.capture_begin(self._pool, capture_error_mode="thread_local")
        return graph
