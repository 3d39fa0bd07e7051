"""What the service and its Triton backend agree on: tensors, parameters and errors.

A request carries one frame. Where both map the same memory it names the pool and the slots, and the
backend works on the pages in place; where they cannot, the pages travel as tensors. All else is in
the request's parameters, which Triton hands on as they are.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

from segstream.engine import ModelInfo
from segstream.errors import (
    EngineError,
    InvalidInputError,
    ModelChangedError,
    SegstreamError,
)
from segstream.label_sets import LABEL_SETS
from segstream.pages import PageGeometry

CONTRACT_VERSION = 2
BACKEND = "lmanet"

# Inputs: one frame (1, H, W, 3) uint8 and, where pages travel, keys (1, T, h, w, Dk) and values.
FRAME, KEYS, VALUES = "FRAME", "KEYS", "VALUES"
# Outputs, each only where it is asked for: label map and confidence (1, H, W) uint8, a report
# (1, n) of JSON in uint8, and the frame's own key (1, h, w, Dk) and value where pages travel.
LABEL_MAP, CONFIDENCE, REPORT = "LABEL_MAP", "CONFIDENCE", "REPORT"
KEY, VALUE = "KEY", "VALUE"

# Parameters of a request.
ASK, DESCRIBE = "ask", "describe"
DIGEST, POOL, READ_SLOTS, WRITE_SLOT = "digest", "pool", "read_slots", "write_slot"

_MARK = "segstream:"
_KINDS: dict[str, type[SegstreamError]] = {
    "invalid": InvalidInputError,
    "model_changed": ModelChangedError,
    "failed": EngineError,
}


@dataclass(frozen=True, slots=True)
class Description:
    """What a model in Triton says of itself.

    A page for frames of ``height x width`` pixels covers them in steps of ``stride``. ``pid`` and
    ``started`` (clock ticks since boot) tell which process computes. ``pool_fault`` is why the
    pool in the question cannot be used; empty if it can, or if there was none.
    """

    contract_version: int
    name: str
    label_set: str
    memory_length: int
    window_size: int
    digest: str
    stride: int
    key_channels: int
    value_channels: int
    pid: int
    started: int
    pool_fault: str = ""

    @property
    def info(self) -> ModelInfo:
        return ModelInfo(
            self.name,
            LABEL_SETS[self.label_set],
            self.memory_length,
            self.window_size,
            self.digest,
        )

    def page_geometry(self, height: int, width: int) -> PageGeometry:
        """The pages for frames of ``height x width`` pixels."""
        return PageGeometry(
            -(-height // self.stride),
            -(-width // self.stride),
            self.key_channels,
            self.value_channels,
        )

    def encode(self) -> bytes:
        """As a report."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, report: bytes) -> "Description":
        """The inverse of ``encode``. Raises EngineError for what another version wrote."""
        fields: dict[str, Any] = json.loads(report)
        found = fields.get("contract_version")
        if found != CONTRACT_VERSION:
            raise EngineError(
                f"the backend in Triton speaks version {found} of the contract, this service "
                f"{CONTRACT_VERSION}: install the same segstream on both sides"
            )
        return cls(**fields)


def error_to_text(error: SegstreamError) -> str:
    """An error of the backend as Triton's status carries it."""
    kind = next((kind for kind, type_ in _KINDS.items() if type(error) is type_), "failed")
    return f"{_MARK}{kind}: {error.message}"


def error_from_text(text: str) -> SegstreamError | None:
    """The error that the backend raised; None where it was Triton itself that failed."""
    _, mark, rest = text.partition(_MARK)
    kind, _, message = rest.partition(": ")
    return _KINDS[kind](message) if mark and kind in _KINDS else None
