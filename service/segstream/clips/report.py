"""The report on a clip: what was seen when, how steadily, and how fast."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from segstream.clips.figures import FrameFigures, class_shares, stage_percentiles
from segstream.clips.records import ClipFacts, Submission
from segstream.engine import ModelInfo

_MAX_POINTS: Final = 240


class ReportedClass(BaseModel):
    """A class of the label set, and how much of the clip it took, over all and over time."""

    model_config = ConfigDict(frozen=True)

    train_id: int
    label_id: int
    name: str
    colour: str = Field(description="#rrggbb, as in the overlay")
    share: float = Field(description="Part of all pixels of the clip, 0 to 1")
    shares: list[float] = Field(description="Part of the pixels at each point of the timeline")


class ReportedLatency(BaseModel):
    """How long frames spent in a stage, in seconds."""

    model_config = ConfigDict(frozen=True)

    p50_seconds: float
    p95_seconds: float
    p99_seconds: float


class ClipReport(BaseModel):
    """What was made of a clip, in figures.

    Consistency is the part of the pixels that stood still from one frame to the next which kept
    their class: 1 where nothing flickers. It needs no labels. None: nothing stood still.
    """

    model_config = ConfigDict(frozen=True)

    clip_id: str
    name: str
    model: str
    label_set: str
    memory_length: int = Field(description="Frames the memory holds, T")
    width: int
    height: int
    frames_per_second: float
    num_frames: int
    num_attempts: int = Field(description="Workers that took the job, one after the other")
    classes: list[ReportedClass] = Field(description="All of the label set, in train-id order")
    timeline_seconds: list[float] = Field(
        description="Times of the clip for which there are figures, each the mean up to the next"
    )
    consistency: float | None
    consistencies: list[float | None] = Field(description="At each point of the timeline")
    latency: dict[str, ReportedLatency] = Field(description="By stage; total is the whole way")


def make_report(
    submission: Submission,
    facts: ClipFacts,
    model: ModelInfo,
    figures: Sequence[FrameFigures],
    num_attempts: int,
) -> ClipReport:
    """Of a clip with at least one frame."""
    bounds = _bin_bounds(len(figures))
    pixels = np.array([frame.num_pixels for frame in figures], np.int64)
    timeline = np.add.reduceat(pixels, bounds, axis=0)
    shares = np.array([class_shares(counts) for counts in timeline.tolist()])
    total = class_shares(pixels.sum(axis=0).tolist())
    consistencies = [frame.consistency for frame in figures]
    labels = enumerate(model.label_set.labels)
    return ClipReport(
        clip_id=submission.id,
        name=submission.options.name,
        model=model.name,
        label_set=model.label_set.name,
        memory_length=model.memory_length,
        width=facts.width,
        height=facts.height,
        frames_per_second=float(facts.frames_per_second),
        num_frames=len(figures),
        num_attempts=num_attempts,
        classes=[
            ReportedClass(
                train_id=train_id,
                label_id=label.label_id,
                name=label.name,
                colour="#{:02x}{:02x}{:02x}".format(*label.colour),
                share=total[train_id],
                shares=[round(share, 6) for share in shares[:, train_id].tolist()],
            )
            for train_id, label in labels
        ],
        timeline_seconds=[float(bound / facts.frames_per_second) for bound in bounds],
        consistency=_mean(consistencies),
        consistencies=[
            _mean(consistencies[start:end])
            for start, end in zip(bounds, [*bounds[1:], len(figures)], strict=True)
        ],
        latency=_latency(figures),
    )


def _latency(figures: Sequence[FrameFigures]) -> dict[str, ReportedLatency]:
    seconds = {
        stage: [frame.stage_seconds.get(stage, 0.0) for frame in figures]
        for stage in figures[0].stage_seconds
    }
    return {
        stage: ReportedLatency.model_validate(times, from_attributes=True)
        for stage, times in stage_percentiles(seconds).items()
    }


def _bin_bounds(num_frames: int) -> list[int]:
    """First frames of at most ``_MAX_POINTS`` bins of about one size."""
    num_bins = min(num_frames, _MAX_POINTS)
    return [index * num_frames // num_bins for index in range(num_bins)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
