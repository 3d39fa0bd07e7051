"""What the HTTP wire tells of clips, as the OpenAPI document shows it."""

from datetime import UTC, datetime

from pydantic import BaseModel, Field

from segstream.clips.records import Clip, ClipState


class ClipErrorSchema(BaseModel):
    """Why a job failed."""

    detail: str
    field: str | None = None


class ClipLinksSchema(BaseModel):
    """Where the rest is; results are there once the clip is done.

    Where API keys are needed, the links of results hold a ticket: they work for an hour or two
    without the key.
    """

    self: str
    events: str
    overlay: str | None = Field(None, description="MP4, H.264")
    label_maps: str | None = None
    report: str | None = Field(None, description="JSON")
    report_page: str | None = Field(None, description="HTML")


class ClipSchema(BaseModel):
    """A clip and how its job fares."""

    id: str
    name: str
    state: ClipState
    model: str
    num_bytes: int
    progress: float | None = Field(
        description="Part of the frames that is done, 0 to 1; null: the clip tells no length"
    )
    num_frames_done: int = Field(description="Frames whose results are stored")
    num_frames: int | None = Field(description="As the clip states it; null: not known")
    frames_per_second: float = Field(description="Speed of the worker; 0: not known")
    eta_seconds: float | None = Field(description="Until the last frame; null: not known")
    num_attempts: int = Field(description="Workers that took the job, one after the other")
    replica: str = Field(description="Where it is or was worked on; empty: nowhere yet")
    submitted_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    error: ClipErrorSchema | None
    links: ClipLinksSchema

    @classmethod
    def of(cls, clip: Clip, ticket: str = "") -> "ClipSchema":
        """The schema of a clip; ``ticket`` lets its results be read without a key."""
        submission, progress, outcome = clip.submission, clip.progress, clip.outcome
        error = None
        if outcome is not None and outcome.error:
            error = ClipErrorSchema(detail=outcome.error, field=outcome.field or None)
        return cls(
            id=clip.id,
            name=submission.options.name,
            state=clip.state,
            model=submission.options.model,
            num_bytes=submission.num_bytes,
            progress=clip.share_done,
            num_frames_done=progress.num_frames_done,
            num_frames=progress.num_frames,
            frames_per_second=progress.frames_per_second,
            eta_seconds=clip.eta_seconds,
            num_attempts=progress.attempt,
            replica=progress.replica,
            submitted_at=_time(submission.submitted_at),
            started_at=_time_if_known(progress.started_at),
            ended_at=None if outcome is None else _time(outcome.ended_at),
            error=error,
            links=_links(clip, ticket),
        )


class ClipsSchema(BaseModel):
    """Clips, newest first."""

    clips: list[ClipSchema]
    next_before: str | None = Field(
        description="Value of before for the next page; null: there is none"
    )


def _links(clip: Clip, ticket: str) -> ClipLinksSchema:
    base = f"/v1/clips/{clip.id}"
    links = ClipLinksSchema(self=base, events=f"{base}/events")
    if clip.state is ClipState.DONE:
        query = f"?ticket={ticket}" if ticket else ""
        links.overlay = f"{base}/overlay{query}"
        links.label_maps = f"{base}/label_maps{query}"
        links.report = f"{base}/report{query}"
        links.report_page = f"{base}/report.html{query}"
    return links


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _time_if_known(seconds: float | None) -> datetime | None:
    return None if seconds is None else _time(seconds)
