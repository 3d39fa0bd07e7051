"""The HTTP wire of what is made of clips."""

import asyncio
from functools import partial
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Path, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse

from segstream.api.http_doors import TICKET, CallerAccount
from segstream.api.ranges import file_response
from segstream.api.schemas import ProblemSchema
from segstream.clips.label_map_export import (
    MEDIA_TYPES,
    SUFFIXES,
    Ids,
    LabelMapFormat,
    export_label_maps,
)
from segstream.clips.library import ClipLibrary
from segstream.clips.report import ClipReport
from segstream.clips.report_page import report_page
from segstream.clips.results import ClipResults
from segstream.doors.accounts import Account

_NOT_THERE: dict[int | str, dict[str, Any]] = {
    404: {"model": ProblemSchema},
    409: {"model": ProblemSchema, "description": "The clip is not done."},
    422: {"model": ProblemSchema},
}
_VIDEO: dict[str, Any] = {"content": {"video/mp4": {}}}
_RANGES: dict[int | str, dict[str, Any]] = {
    200: _VIDEO | {"description": "The whole video"},
    206: _VIDEO | {"description": "The part that Range asks for"},
    304: {"description": "If-None-Match is the video's ETag."},
    416: {"model": ProblemSchema, "description": "The video has nothing of the range."},
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; media-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'",
    "X-Content-Type-Options": "nosniff",
}

ClipId = Annotated[str, Path(description="As the service gave it: 32 hexadecimal digits")]


def add_clip_results(app: FastAPI, library: ClipLibrary) -> None:
    """Add the routes of results; all of them answer 409 until the clip is done."""
    _add_overlay(app, library)
    _add_label_maps(app, library)
    _add_report(app, library)


def _results(library: ClipLibrary, clip_id: str, account: Account) -> ClipResults:
    return ClipResults.of(library, library.get_own(clip_id, account.key_id))


def _add_overlay(app: FastAPI, library: ClipLibrary) -> None:
    @app.get(
        "/v1/clips/{clip_id}/overlay",
        response_class=Response,
        responses=_NOT_THERE | _RANGES,
    )
    async def get_overlay(clip_id: ClipId, request: Request, account: CallerAccount) -> Response:
        """The clip with its classes drawn over it: MP4, H.264; takes Range requests."""
        results = await asyncio.to_thread(_results, library, clip_id, account)
        path = results.path("overlay.mp4")
        return file_response(
            partial(library.storage.open, path),
            await asyncio.to_thread(library.storage.size, path),
            request.headers,
            etag=f'"{clip_id}"',
            media_type="video/mp4",
        )


def _add_label_maps(app: FastAPI, library: ClipLibrary) -> None:
    content: dict[str, Any] = {media_type: {} for media_type in MEDIA_TYPES.values()}

    @app.get(
        "/v1/clips/{clip_id}/label_maps",
        response_class=Response,
        responses=_NOT_THERE
        | {200: {"content": content, "description": "All label maps in one file"}},
    )
    async def get_label_maps(
        clip_id: ClipId,
        account: CallerAccount,
        format: LabelMapFormat = LabelMapFormat.PNG_ZIP,
        ids: Ids = Ids.TRAIN_ID,
    ) -> Response:
        """The label map of every frame, made while it is sent.

        `png_zip`: `000000.png` and so on, of one channel with a palette, or RGB where `ids` is
        `colour`. `coco_rle`: NDJSON, a line for each frame with a compressed COCO RLE for each
        class seen. `npy_zst`: a uint8 array (frames, height, width), (frames, height, width, 3)
        for colours. Pixels without a class are 255, black, or left out.
        """
        results = await asyncio.to_thread(_results, library, clip_id, account)
        label_maps = await asyncio.to_thread(results.label_maps)
        file_name = f"{clip_id}{SUFFIXES[format]}"
        return StreamingResponse(
            export_label_maps(label_maps, format, ids),
            media_type=MEDIA_TYPES[format],
            headers={"Content-Disposition": f'attachment; filename="{file_name}"'},
        )


def _add_report(app: FastAPI, library: ClipLibrary) -> None:
    @app.get("/v1/clips/{clip_id}/report", responses=_NOT_THERE)
    async def get_report(clip_id: ClipId, account: CallerAccount) -> ClipReport:
        """Classes over time, temporal consistency and latency."""
        results = await asyncio.to_thread(_results, library, clip_id, account)
        return await asyncio.to_thread(results.report)

    @app.get("/v1/clips/{clip_id}/report.html", response_class=HTMLResponse, responses=_NOT_THERE)
    async def get_report_page(
        clip_id: ClipId, request: Request, account: CallerAccount
    ) -> HTMLResponse:
        """The report as a page, with the overlay."""
        results = await asyncio.to_thread(_results, library, clip_id, account)
        report = await asyncio.to_thread(results.report)
        ticket = request.query_params.get(TICKET)
        video = f"overlay?{urlencode({TICKET: ticket})}" if ticket else "overlay"
        return HTMLResponse(report_page(report, video), headers=_PAGE_HEADERS)
