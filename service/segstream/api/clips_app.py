"""The HTTP wire of clips: upload, progress and cancellation."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from functools import partial
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from segstream.api.clip_results_app import ClipId, add_clip_results
from segstream.api.clip_schemas import ClipSchema, ClipsSchema
from segstream.api.clip_uploads import ClipReceiver, Received
from segstream.api.http_doors import CallerAccount
from segstream.api.schemas import ProblemSchema
from segstream.clips.jobs import ClipJobs
from segstream.clips.library import check_same, digest_of_key
from segstream.clips.records import Clip, ClipOptions, Submission, new_clip_id
from segstream.clips.threads import in_threads
from segstream.doors.accounts import Account
from segstream.doors.key_ring import KeyRing
from segstream.errors import ExhaustedError
from segstream.streaming import Segmenter
from segstream.trace_context import current_headers

_POLL_SECONDS = 0.4
_KEEPALIVE_SECONDS = 15.0
_RETRY_MILLISECONDS = 1000

_FILE = {"type": "string", "format": "binary"}
_CLIP_BODY = {
    "requestBody": {
        "required": True,
        "description": "The clip itself, or a form with one file named clip.",
        "content": {
            "application/octet-stream": {"schema": _FILE},
            "video/*": {"schema": _FILE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"clip": _FILE},
                    "required": ["clip"],
                }
            },
        },
    }
}
_SUBMITTED: dict[str, Any] = {
    "description": "The clip is stored and its job queued.",
    "headers": {
        "Location": {
            "description": "Where the clip tells how it fares",
            "schema": {"type": "string"},
        }
    },
}
_EVENTS: dict[str, Any] = {
    "description": "Server-sent events; the data of each is the clip, as GET tells it. "
    "The stream ends when the job has.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
}


def _problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ProblemSchema} for status in statuses}


def add_clips(
    app: FastAPI,
    jobs: ClipJobs,
    segmenter: Segmenter,
    receiver: ClipReceiver,
    key_ring: KeyRing,
) -> None:
    """Add the routes under ``/v1/clips``; each key sees its own clips only."""
    _add_submission(app, jobs, segmenter, receiver, key_ring)
    _add_status(app, jobs, key_ring)
    add_clip_results(app, jobs.library)


def _add_submission(
    app: FastAPI,
    jobs: ClipJobs,
    segmenter: Segmenter,
    receiver: ClipReceiver,
    key_ring: KeyRing,
) -> None:
    @app.post(
        "/v1/clips",
        status_code=202,
        openapi_extra=_CLIP_BODY,
        responses=_problems(400, 404, 408, 409, 413, 422, 429, 503) | {202: _SUBMITTED},
    )
    async def submit_clip(
        request: Request,
        response: Response,
        account: CallerAccount,
        model: Annotated[str, Query(description="Empty: the default model")] = "",
        name: Annotated[
            str, Query(max_length=200, description="For people; empty: the file's name in the form")
        ] = "",
        max_working_height: Annotated[
            int, Query(ge=0, le=2**31 - 1, description="In pixels; 0: the clip's own")
        ] = 0,
        opacity: Annotated[float, Query(ge=0, le=1, description="Of the overlay's colours")] = 0.55,
        idempotency_key: Annotated[
            str | None,
            Header(
                min_length=1,
                max_length=255,
                description="The same key with the same clip and options gives the same job",
            ),
        ] = None,
    ) -> ClipSchema:
        """Upload a clip to be segmented; its job is queued and survives restarts."""
        options = ClipOptions(
            model=segmenter.check_model(model),
            name=name,
            max_working_height=max_working_height,
            opacity=opacity,
        )
        await asyncio.to_thread(_check_minutes, jobs, account)
        key_digest = digest_of_key(idempotency_key, account.key_id) if idempotency_key else ""
        clip = await _submit_or_find(request, options, key_digest, account)
        response.headers["Location"] = f"/v1/clips/{clip.id}"
        return ClipSchema.of(clip, key_ring.ticket(account, clip.id))

    async def _submit_or_find(
        request: Request, options: ClipOptions, key_digest: str, account: Account
    ) -> Clip:
        library = jobs.library
        earlier = await asyncio.to_thread(library.find_by_key, key_digest) if key_digest else None
        if earlier is not None:
            received = await receiver.receive(request, None)
            check_same(earlier.submission, _submission("", options, received, key_digest, account))
            await jobs.enqueue(earlier)
            return earlier
        clip_id = new_clip_id()
        async with in_threads(library.upload(clip_id)) as file:
            received = await receiver.receive(request, file)
        return await jobs.submit(_submission(clip_id, options, received, key_digest, account))


def _submission(
    clip_id: str, options: ClipOptions, received: Received, key_digest: str, account: Account
) -> Submission:
    name = options.name or received.name[:200]
    return Submission(
        id=clip_id,
        options=options.model_copy(update={"name": name}),
        num_bytes=received.num_bytes,
        digest=received.digest,
        submitted_at=time.time(),
        key_digest=key_digest,
        key_id=account.key_id,
        max_minutes_per_day=account.limits.max_clip_minutes_per_day,
        trace=current_headers(),
    )


def _check_minutes(jobs: ClipJobs, account: Account) -> None:
    most = account.limits.max_clip_minutes_per_day
    if most is None:
        return
    try:
        jobs.library.usage.check(account.key_id, most)
    except ExhaustedError:
        account.clip_minutes_reached()
        raise


def _add_status(app: FastAPI, jobs: ClipJobs, key_ring: KeyRing) -> None:
    library = jobs.library

    def told(clip: Clip, account: Account) -> ClipSchema:
        return ClipSchema.of(clip, key_ring.ticket(account, clip.id))

    @app.get("/v1/clips", responses=_problems(422))
    async def list_clips(
        account: CallerAccount,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        before: Annotated[str, Query(max_length=32, description="Clips older than this id")] = "",
    ) -> ClipsSchema:
        """The clips of the API key, newest first, whichever replica took them."""
        clips, next_before = await asyncio.to_thread(
            library.page, limit=limit, before=before, key_id=account.key_id
        )
        return ClipsSchema(clips=[told(clip, account) for clip in clips], next_before=next_before)

    @app.get("/v1/clips/{clip_id}", responses=_problems(404, 422))
    async def get_clip(clip_id: ClipId, account: CallerAccount) -> ClipSchema:
        """How a clip's job fares."""
        return told(await asyncio.to_thread(library.get_own, clip_id, account.key_id), account)

    @app.get(
        "/v1/clips/{clip_id}/events",
        response_class=Response,
        responses=_problems(404, 422)
        | {200: _EVENTS, 204: {"description": "Last-Event-ID is the last event there was."}},
    )
    async def follow_clip(
        clip_id: ClipId,
        account: CallerAccount,
        last_event_id: Annotated[
            str | None, Header(description="Go on after this event; unknown ones are ignored")
        ] = None,
    ) -> Response:
        """Follow a job: an event for each change that is told."""
        clip = await asyncio.to_thread(library.get_own, clip_id, account.key_id)
        seen = _revision(last_event_id)
        if clip.is_over and seen >= clip.revision:
            return Response(status_code=204)
        return StreamingResponse(
            _events(jobs, clip, seen, partial(told, account=account)),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @app.delete("/v1/clips/{clip_id}", status_code=204, responses=_problems(404, 422))
    async def delete_clip(clip_id: ClipId, account: CallerAccount) -> None:
        """Cancel a job that is not over; remove a clip whose job is, with its results."""
        clip = await asyncio.to_thread(library.get_own, clip_id, account.key_id)
        await asyncio.to_thread(library.cancel_or_remove, clip.id)


async def _events(
    jobs: ClipJobs, clip: Clip, seen: tuple[int, ...], told: Callable[[Clip], ClipSchema]
) -> AsyncIterator[bytes]:
    last_sent = time.monotonic()
    while True:
        if clip.revision > seen:
            seen = clip.revision
            yield format_sse_event(
                data_str=told(clip).model_dump_json(),
                id=".".join(map(str, seen)),
                retry=_RETRY_MILLISECONDS,
            )
            last_sent = time.monotonic()
        elif time.monotonic() - last_sent > _KEEPALIVE_SECONDS:
            yield KEEPALIVE_COMMENT
            last_sent = time.monotonic()
        if clip.is_over or jobs.stopping.is_set():
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(_POLL_SECONDS):
                await jobs.stopping.wait()
        clip = await asyncio.to_thread(jobs.library.get, clip.id)


def _revision(event_id: str | None) -> tuple[int, ...]:
    """What an event id tells has been seen; less than any revision if it tells nothing."""
    try:
        attempt, num_frames, step = map(int, (event_id or "").split("."))
    except ValueError:
        return ()
    return (attempt, num_frames, step)
