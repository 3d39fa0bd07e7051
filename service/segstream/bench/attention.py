"""``segstream bench attention``: the local memory attention beside other ways to compute it.

Median times and, within the same rounds, their ratios. "Useful" flops count every neighbour once,
``2 * h * w * T * P * P * (Dk + Dv)``. Inputs are of unit variance; errors are the largest absolute
differences from float64 on the same inputs, as they are stored.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TypedDict

import torch
from torch import Tensor

from segstream.attention import cpu, local_memory_attention, row_band
from segstream.bench import attention_baselines as baselines
from segstream.bench.side_by_side import Contender, describe, measure
from segstream.errors import UnavailableError
from segstream.pages import as_stored

KERNEL = "this kernel"
HALF_KERNEL = "this kernel, float16 pages"
FALLBACK = "segstream's torch fallback"
ROW_BAND = "row-band torch"
SHIFTS = "shifted copies"
UNFOLD = "F.unfold"
FLEX = "flex_attention"
SGEMM = "sgemm"
TRAINED_KERNEL = "this kernel, forward + backward"
TRAINED_FALLBACK = "torch fallback, forward + autograd"

_SGEMM_SIZE = 1024
_SGEMM_FLOPS = 2 * _SGEMM_SIZE**3
_MAX_BYTES = 4 << 30


@dataclass(frozen=True, slots=True)
class Case:
    """One problem: batch 1, the sizes as in ``local_memory_attention``."""

    height: int
    width: int
    key_channels: int
    value_channels: int
    memory_length: int
    window_size: int = 21
    is_trained: bool = False  # forward and backward are measured, too

    @property
    def name(self) -> str:
        return (
            f"{self.height}x{self.width} Dk {self.key_channels} Dv {self.value_channels} "
            f"T {self.memory_length} P {self.window_size}"
        )

    @property
    def useful_flops(self) -> int:
        neighbours = self.memory_length * self.window_size**2
        channels = self.key_channels + self.value_channels
        return 2 * self.height * self.width * neighbours * channels


CASES = (
    Case(64, 128, 16, 64, 4, is_trained=True),
    Case(45, 60, 16, 64, 3),
    Case(90, 90, 128, 2048, 3),
)


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: rounds, seconds for a slow contender, and the most it is asked."""

    rounds: int
    seconds_each: float
    max_slow_flops: float


FULL = Effort(rounds=15, seconds_each=15.0, max_slow_flops=1e11)
QUICK = Effort(rounds=5, seconds_each=2.0, max_slow_flops=1e9)


class Measurement(TypedDict):
    """One contender; the figures are None for one that was left out, and ``skipped`` says why.

    Training is compared with training; its flops are not counted.
    """

    contender: str
    round_ms: list[float | None]
    median_ms: float | None
    min_ms: float | None
    gflops: float | None
    times_kernel: float | None
    of_sgemm: float | None
    max_error: float | None
    skipped: str | None


class Summary(TypedDict):
    """What a case comes to."""

    row_band_times_kernel: float | None
    fallback_times_kernel: float | None
    kernel_of_sgemm: float | None
    trained_fallback_times_kernel: float | None
    max_error_float32: float | None
    max_error_float16: float | None


class CaseResult(TypedDict):
    """All contenders of one case."""

    case: str
    sizes: dict[str, int]
    useful_gflop: float
    summary: Summary
    contenders: list[Measurement]


class BenchResult(TypedDict):
    """What ``run`` found."""

    threads: int
    instruction_set: str
    torch: str
    cases: list[CaseResult]


def run(
    *,
    quick: bool = False,
    threads: int | None = None,
    cases: tuple[Case, ...] | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchResult:
    """Measure all contenders on all cases; ``progress`` hears what is being measured.

    quick: a few rounds, slow baselines on small maps only, no wide values.
    threads: for torch and the kernel alike; None leaves torch's number.

    Raises UnavailableError where the kernel was not built.
    """
    isa = cpu.best_isa()
    if isa is None:
        raise UnavailableError(
            "there is no CPU attention kernel to measure: reinstall segstream where there is a "
            "C++ compiler"
        )
    if cases is None:
        cases = CASES[:2] if quick else CASES
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return {
            "threads": torch.get_num_threads(),
            "instruction_set": isa.name.lower(),
            "torch": torch.__version__,
            "cases": [_run_case(case, QUICK if quick else FULL, progress) for case in cases],
        }
    finally:
        torch.set_num_threads(before)


def _run_case(case: Case, effort: Effort, progress: Callable[[str], None]) -> CaseResult:
    inputs = Inputs.of(case)
    exact = inputs.exact(inputs.keys, inputs.paged)
    contenders = _fast_contenders(inputs, exact)
    slow, skipped = _slow_contenders(case, inputs, exact, effort, progress)
    contenders |= slow
    if case.is_trained:
        contenders |= _training_contenders(inputs)
    progress(f"{case.name}: {', '.join(contenders)}")
    measure(list(contenders.values()), rounds=effort.rounds, seconds_each=effort.seconds_each)
    measured = [
        _left_out(name, contender.failure)
        if contender.failure is not None
        else _measurement(name, case, contenders)
        for name, contender in contenders.items()
    ]
    rows = measured + [_left_out(name, why) for name, why in skipped.items()]
    sizes = asdict(case)
    del sizes["is_trained"]
    return {
        "case": case.name,
        "sizes": sizes,
        "useful_gflop": case.useful_flops / 1e9,
        "summary": _summary({row["contender"]: row for row in rows}),
        "contenders": rows,
    }


@dataclass(frozen=True, slots=True)
class Inputs:
    """Tensors of unit variance, with the values in the layout of the pages as well."""

    query: Tensor  # (1, h, w, Dk)
    keys: Tensor  # (T, h, w, Dk)
    values: Tensor  # (T, h, w, Dv)
    paged: Tensor
    slots: Tensor
    window_size: int

    @classmethod
    def of(cls, case: Case) -> "Inputs":
        generator = torch.Generator().manual_seed(0)

        def normal(count: int, channels: int) -> Tensor:
            return torch.randn(
                *(count, case.height, case.width, channels),
                generator=generator,
                dtype=torch.float32,
            )

        values = normal(case.memory_length, case.value_channels)
        return cls(
            query=normal(1, case.key_channels),
            keys=normal(case.memory_length, case.key_channels),
            values=values,
            paged=as_stored(values).contiguous(),
            slots=torch.arange(case.memory_length, dtype=torch.int32).view(1, -1),
            window_size=case.window_size,
        )

    def to(self, device: torch.device, dtype: torch.dtype) -> "Inputs":
        """The same there, keys, values and query in this type."""
        query, keys, values, paged = (
            tensor.to(device, dtype) for tensor in (self.query, self.keys, self.values, self.paged)
        )
        return Inputs(query, keys, values, paged, self.slots.to(device), self.window_size)

    def exact(self, keys: Tensor, values: Tensor) -> Tensor:
        """The read-out of these pages in float64."""
        query, keys, values = self.query.double(), keys.double(), values.double()
        return row_band.forward(query, keys, values, self.slots, self.window_size, None)


def _fast_contenders(inputs: Inputs, exact: Tensor) -> dict[str, Contender]:
    query, keys, values = inputs.query, inputs.keys, inputs.paged
    slots, p = inputs.slots, inputs.window_size
    half_keys, half_values = keys.half(), values.half()
    matrix = torch.randn(_SGEMM_SIZE, _SGEMM_SIZE, dtype=torch.float32)
    return {
        KERNEL: Contender(
            lambda: local_memory_attention(query, keys, values, slots, p),
            exact,
            takes_every_round=True,
            may_fail=False,
        ),
        HALF_KERNEL: Contender(
            lambda: local_memory_attention(query, half_keys, half_values, slots, p),
            inputs.exact(half_keys, half_values),
            takes_every_round=True,
            may_fail=False,
        ),
        SGEMM: Contender(lambda: matrix @ matrix, takes_every_round=True),
        FALLBACK: Contender(
            lambda: row_band.forward(query, keys, values, slots, p, None),
            exact,
            takes_every_round=True,
        ),
        ROW_BAND: Contender(
            lambda: baselines.row_band(query[0], keys, inputs.values, p),
            exact,
            takes_every_round=True,
        ),
    }


def _training_contenders(inputs: Inputs) -> dict[str, Contender]:
    leaves = [t.clone().requires_grad_() for t in (inputs.query, inputs.keys, inputs.paged)]
    query, keys, values = leaves
    slots, p = inputs.slots, inputs.window_size

    def gradients(readout: Tensor) -> Tensor:
        return torch.autograd.grad(readout, leaves, torch.ones_like(readout))[0]

    return {
        TRAINED_KERNEL: Contender(
            lambda: gradients(local_memory_attention(query, keys, values, slots, p)),
            takes_every_round=True,
            may_fail=False,
        ),
        TRAINED_FALLBACK: Contender(
            lambda: gradients(row_band.forward(query, keys, values, slots, p, None)),
        ),
    }


def _slow_contenders(
    case: Case,
    inputs: Inputs,
    exact: Tensor,
    effort: Effort,
    progress: Callable[[str], None],
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Those that can run, and why the others cannot."""
    query, keys, values, p = inputs.query[0], inputs.keys, inputs.values, inputs.window_size

    def make_flex() -> Callable[[], Tensor]:
        attend = baselines.compile_flex(query, keys, values, p)
        return lambda: attend(query, keys, values, p)

    makers: dict[str, Callable[[], Callable[[], Tensor]]] = {
        SHIFTS: lambda: lambda: baselines.shifts(query, keys, values, p),
        UNFOLD: lambda: lambda: baselines.unfolded(query, keys, values, p),
        FLEX: make_flex,
    }
    contenders, skipped = {}, {}
    for name, make in makers.items():
        reason = _why_not(name, case, values, effort)
        if reason is None:
            progress(f"{case.name}: preparing {name}")
            try:
                contenders[name] = Contender(make(), exact)
                continue
            except Exception as error:  # the compiler of another project may fail in any way
                reason = describe(error)
        skipped[name] = reason
    return contenders, skipped


def _why_not(name: str, case: Case, values: Tensor, effort: Effort) -> str | None:
    if name == UNFOLD:
        needed = baselines.unfolded_bytes(values, case.window_size)
        if needed > _MAX_BYTES:
            return f"would need {needed / 2**30:.0f} GiB of memory"
    if case.useful_flops > effort.max_slow_flops:
        return "too slow for a quick run"
    return None


def _measurement(name: str, case: Case, contenders: dict[str, Contender]) -> Measurement:
    contender, sgemm = contenders[name], contenders[SGEMM]
    is_training = name in (TRAINED_KERNEL, TRAINED_FALLBACK)
    flops = None if is_training else _SGEMM_FLOPS if name == SGEMM else case.useful_flops
    kernel = contenders[TRAINED_KERNEL if is_training else KERNEL]
    slowdown = contender.times(sgemm)
    return {
        "contender": name,
        "round_ms": [None if s is None else 1000 * s for s in contender.seconds],
        "median_ms": 1000 * contender.median,
        "min_ms": 1000 * min(contender.measured),
        "gflops": None if flops is None else flops / contender.median / 1e9,
        "times_kernel": None if name == SGEMM else contender.times(kernel),
        "of_sgemm": flops / _SGEMM_FLOPS / slowdown if flops and slowdown else None,
        "max_error": contender.max_error,
        "skipped": None,
    }


def _left_out(name: str, reason: str) -> Measurement:
    return {
        "contender": name,
        "round_ms": [],
        "median_ms": None,
        "min_ms": None,
        "gflops": None,
        "times_kernel": None,
        "of_sgemm": None,
        "max_error": None,
        "skipped": reason,
    }


def _summary(rows: dict[str, Measurement]) -> Summary:
    trained = rows.get(TRAINED_FALLBACK)
    return {
        "row_band_times_kernel": rows[ROW_BAND]["times_kernel"],
        "fallback_times_kernel": rows[FALLBACK]["times_kernel"],
        "kernel_of_sgemm": rows[KERNEL]["of_sgemm"],
        "trained_fallback_times_kernel": None if trained is None else trained["times_kernel"],
        "max_error_float32": rows[KERNEL]["max_error"],
        "max_error_float16": rows[HALF_KERNEL]["max_error"],
    }
