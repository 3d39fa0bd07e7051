"""The last answers of a session, kept for a client that lost them on the way.

Label maps are kept whole, so that an answer given again needs nothing that its client may have
lost, and so that later ones can be told by what has changed since.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace

from pydantic import BaseModel, ConfigDict

from segstream.media.label_maps import LabelMapEncoding
from segstream.streaming.messages import EncodedLabelMap, FrameResult, Skipped
from segstream.wire import SkipReason

MAX_RESULTS = 32
MAX_BYTES = 4 * 2**20


class RecentResults:
    """At most ``MAX_RESULTS`` answers and ``MAX_BYTES`` of label maps; the oldest goes first."""

    def __init__(self, results: Iterable[FrameResult] = ()) -> None:
        self._results: OrderedDict[int, FrameResult] = OrderedDict()
        self._num_bytes = 0
        for result in results:
            self.add(result)

    @property
    def results(self) -> tuple[FrameResult, ...]:
        return tuple(self._results.values())

    def add(self, result: FrameResult) -> None:
        """Keep an answer; errors are not kept, for the frame may be sent again."""
        if isinstance(result.outcome, EncodedLabelMap | Skipped):
            self._results[result.frame_index] = result
            self._num_bytes += _num_bytes(result)
        while len(self._results) > MAX_RESULTS or self._num_bytes > MAX_BYTES:
            self._num_bytes -= _num_bytes(self._results.popitem(last=False)[1])

    def again(self, frame_index: int) -> FrameResult | None:
        """The answer to a frame that was answered before, marked as such."""
        result = self._results.get(frame_index)
        return result and replace(result, is_duplicate=True)

    def label_map(self, frame_index: int) -> EncodedLabelMap | None:
        """The label map that was the answer to a frame, if it is still here."""
        result = self._results.get(frame_index)
        outcome = result.outcome if result is not None else None
        return outcome if isinstance(outcome, EncodedLabelMap) else None

    def covers(self, frame_index: int) -> bool:
        """Whether a client that lacks this answer and those after it can have them from here."""
        return frame_index in self._results


def _num_bytes(result: FrameResult) -> int:
    return result.outcome.num_bytes if isinstance(result.outcome, EncodedLabelMap) else 0


class StoredResult(BaseModel):
    """A FrameResult at rest, without its timings."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", extra="forbid")

    frame_index: int
    timestamp_us: int
    num_memory_frames: int
    is_memory_reset: bool
    is_model_changed: bool = False
    degradation_level: int
    encoding: LabelMapEncoding | None = None
    width: int = 0
    height: int = 0
    data: bytes = b""
    digest: bytes = b""
    confidence: bytes = b""
    skip_reason: SkipReason | None = None
    is_memorised: bool = False

    @classmethod
    def of(cls, result: FrameResult) -> "StoredResult":
        """The record of a kept answer."""
        stored = cls(
            frame_index=result.frame_index,
            timestamp_us=result.timestamp_us,
            num_memory_frames=result.num_memory_frames,
            is_memory_reset=result.is_memory_reset,
            is_model_changed=result.is_model_changed,
            degradation_level=result.degradation_level,
        )
        outcome = result.outcome
        if isinstance(outcome, EncodedLabelMap):
            stored.encoding, stored.width, stored.height = (
                outcome.encoding,
                outcome.width,
                outcome.height,
            )
            stored.data, stored.digest = outcome.data, outcome.digest
            stored.confidence = outcome.confidence
        elif isinstance(outcome, Skipped):
            stored.skip_reason, stored.is_memorised = outcome.reason, outcome.is_memorised
        return stored

    def result(self) -> FrameResult:
        """The answer of this record."""
        outcome: EncodedLabelMap | Skipped
        if self.skip_reason is not None:
            outcome = Skipped(self.skip_reason, self.is_memorised)
        else:
            assert self.encoding is not None
            outcome = EncodedLabelMap(
                *(self.encoding, self.width, self.height, self.data, self.digest),
                confidence=self.confidence,
            )
        return FrameResult(
            self.frame_index,
            self.timestamp_us,
            outcome,
            self.num_memory_frames,
            is_memory_reset=self.is_memory_reset,
            is_model_changed=self.is_model_changed,
            degradation_level=self.degradation_level,
        )
