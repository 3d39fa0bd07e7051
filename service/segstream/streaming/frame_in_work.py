"""A frame on its way through a session, and what is noted of it on the way."""

import asyncio
import time
from dataclasses import dataclass, field

from segstream.engine import StepResult
from segstream.errors import SegstreamError
from segstream.media.images import Image
from segstream.media.temporal_consistency import View
from segstream.streaming.frame_codec import Decoding, Timing
from segstream.streaming.frame_trace import FrameTrace
from segstream.streaming.messages import EncodedLabelMap, Frame, FrameResult, Skipped
from segstream.streaming.stream import Stream


@dataclass(slots=True, eq=False)
class FrameInWork:
    """A frame of a stream; its pixels are let go as soon as they are used.

    ``seconds`` by stage; ``frame_size`` is (width, height) in pixels, None until it is memorised.
    """

    frame: Frame
    stream: Stream
    trace: FrameTrace
    decoding: "asyncio.Task[tuple[Decoding, Timing]] | None" = None
    arrived: float = field(default_factory=time.perf_counter)
    seconds: dict[str, float] = field(default_factory=dict)
    frame_size: tuple[int, int] | None = None
    num_memory_frames: int = 0
    is_memory_reset: bool = False
    is_model_changed: bool = False
    degradation_level: int = 0
    views: tuple[View, View] | None = None
    consistency: float | None = None
    outcome: StepResult | FrameResult | Skipped | SegstreamError | None = None
    full_image: Image | None = None  # for an overlay
    kept: EncodedLabelMap | None = None  # where it is not what is sent

    def seconds_in_work(self) -> float:
        """What has passed since the frame arrived."""
        return time.perf_counter() - self.arrived

    def seconds_since_decoded(self) -> float:
        """The same, less the time that decoding took."""
        return self.seconds_in_work() - self.seconds["image_decode"]

    def coded(self, stage: str, timing: Timing) -> None:
        """A codec thread has done its part."""
        self.seconds[stage] = timing.seconds
        self.trace.stage(stage, timing.seconds, ended_ns=timing.ended_ns)

    def result(self, outcome: EncodedLabelMap | Skipped, batch_size: int = 0) -> FrameResult:
        """The answer with this outcome and all that was noted."""
        return FrameResult(
            self.frame.index,
            self.frame.timestamp_us,
            outcome,
            self.num_memory_frames,
            batch_size,
            is_memory_reset=self.is_memory_reset,
            is_model_changed=self.is_model_changed,
            degradation_level=self.degradation_level,
            stage_seconds=self.seconds,
        )
