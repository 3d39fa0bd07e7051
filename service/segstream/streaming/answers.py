"""The answers of a session: made from what became of its frames, counted, and kept for a while."""

from dataclasses import replace

from segstream.engine import ModelInfo, StepResult
from segstream.errors import SegstreamError
from segstream.media.label_maps import LabelMapEncoding
from segstream.media.temporal_consistency import temporal_consistency
from segstream.streaming.frame_codec import Base, EncodedResult, encode_result, timed
from segstream.streaming.frame_in_work import FrameInWork
from segstream.streaming.messages import EncodedLabelMap, FrameResult, Skipped
from segstream.streaming.recent_results import StoredResult
from segstream.streaming.resources import Resources
from segstream.streaming.session_state import SessionState


class Answers:
    """An answer is made, and given once it is sure that it may be.

    The model may be replaced meanwhile, but only by one of the same name and classes.
    """

    def __init__(self, resources: Resources, model: ModelInfo, state: SessionState) -> None:
        self.num_label_maps = state.num_label_maps
        self._resources = resources
        self._model = model
        self._recent = state.recent_results()

    def again(self, work: FrameInWork) -> FrameResult | None:
        """The answer to a frame of an earlier stream; within a stream, indices rise."""
        stream, index = work.stream, work.frame.index
        is_resend = stream.config.resume_from is not None and index < stream.first_index
        return self._recent.again(index) if is_resend else None

    async def make(self, work: FrameInWork) -> FrameResult:
        """Encode the label map, or pass on what there is instead."""
        outcome = work.outcome
        assert outcome is not None, "advance() comes first"
        if isinstance(outcome, FrameResult):
            return outcome
        if isinstance(outcome, SegstreamError):
            return FrameResult(work.frame.index, work.frame.timestamp_us, outcome)
        if isinstance(outcome, Skipped):
            return work.result(outcome)
        encoded = await self._encode(work, outcome)
        work.seconds["total"] = work.seconds_in_work()
        return work.result(encoded, outcome.batch_size)

    def give(self, work: FrameInWork, result: FrameResult) -> None:
        """Keep and count an answer that goes out."""
        self._recent.add(result if work.kept is None else replace(result, outcome=work.kept))
        self._count(work, result)
        if work.consistency is not None:
            self._resources.metrics.label_maps_compared(self._model.name, work.consistency)
            work.stream.compared(work.consistency)

    def stored(self) -> tuple[StoredResult, ...]:
        """Those that can be given again, as they go with a snapshot."""
        return tuple(StoredResult.of(result) for result in self._recent.results)

    async def _encode(self, work: FrameInWork, result: StepResult) -> EncodedLabelMap:
        assert work.frame_size is not None
        frame_size, base = work.frame_size, self._base(work)

        def encode() -> EncodedResult:
            if work.views is not None:
                work.consistency = temporal_consistency(*work.views)
                work.views = None
            return encode_result(
                *(result, frame_size, work.stream.config, self._model.label_set),
                image=work.full_image,
                base=base,
            )

        encoded, timing = await self._resources.off_loop(timed, encode)
        work.coded("label_map_encode", timing)
        if encoded.kept is not encoded.sent:
            work.kept = encoded.kept
        return encoded.sent

    def _base(self, work: FrameInWork) -> Base | None:
        """What a delta may be told against: a label map that client and session both hold."""
        index = work.frame.held_frame_index
        if index is None or work.stream.config.label_map_encoding is not LabelMapEncoding.DELTA:
            return None
        held = self._recent.label_map(index)
        return None if held is None else Base(index, held)

    def _count(self, work: FrameInWork, result: FrameResult) -> None:
        metrics, model, outcome = self._resources.metrics, self._model.name, result.outcome
        if isinstance(outcome, SegstreamError):
            metrics.frame_failed(model, outcome)
        elif isinstance(outcome, Skipped):
            metrics.frame_skipped(model, outcome.reason.value)
        elif not result.is_duplicate:
            self.num_label_maps += 1
            is_offline = work.stream.config.is_offline
            metrics.frame_answered(model, work.seconds, result.batch_size, is_offline=is_offline)
