"""A GPU's stand-in on CPU: a capture records torch's operations, a replay does them again.

So a replay sees new frames only through the tensors of the capture, as on a GPU, and what a CUDA
stream would refuse while it is captured is refused here.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from segstream.attention import operator
from segstream.engine.executor import Lap
from segstream.engine.graph_device import Work

# They ask the device for a number, or bring data from the host.
ILLEGAL = ("item", "is_nonzero", "_local_scalar_dense", "nonzero", "masked_select", "lift_fresh")


class TapedGraphs:
    """See ``GraphDevice``. ``log`` tells what was asked of it, in order."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.log: list[str] = []

    @contextmanager
    def working(self) -> Iterator[None]:
        self.log.append("begin")
        yield
        self.log.append("end")

    def host_memory(self, num_bytes: int) -> Tensor:
        return torch.full((num_bytes,), 1, dtype=torch.uint8)  # slots that no pool has

    def mark(self) -> Callable[[], None]:
        self.log.append("mark")
        return lambda: self.log.append("wait")

    def capture(self, work: Work) -> Work:
        self.log.append("capture")
        tapes, stages = [_Tape()], list[str]()

        with _as_operator(), ExitStack() as recording:
            recording.enter_context(tapes[0])

            def cut(stage: str) -> None:
                recording.close()
                stages.append(stage)
                tapes.append(_Tape())
                recording.enter_context(tapes[-1])

            work(cut)

        def replay(lap: Lap) -> None:
            self.log.append("replay")
            for tape, stage in zip(tapes, stages, strict=False):
                tape.replay()
                lap(stage)
            tapes[-1].replay()

        return replay


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Any]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        is_masked = func.overloadpacket.__name__.startswith("index") and any(
            isinstance(leaf, Tensor) and leaf.dtype == torch.bool for leaf in tree_leaves(args)
        )
        if is_masked or func.overloadpacket.__name__ in ILLEGAL:
            raise RuntimeError(f"{func} is not permitted when stream is capturing")
        results = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, tree_leaves(results)))
        return results

    def replay(self) -> None:
        for func, args, kwargs, before in self._calls:
            for old, new in zip(before, tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@contextmanager
def _as_operator() -> Iterator[None]:
    """The attention as the one operation that torch can see, not as a call into a library."""
    before = operator._is_plain_inference
    operator._is_plain_inference = lambda query: False
    try:
        yield
    finally:
        operator._is_plain_inference = before
