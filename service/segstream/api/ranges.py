"""Files over HTTP, whole or in part (RFC 9110, section 14)."""

import re
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from typing import IO

from fastapi import HTTPException, Response
from fastapi.responses import StreamingResponse

from segstream.clips.storage import copy_blocks

_BLOCK_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


def file_response(
    open_file: Callable[[], IO[bytes]],
    size: int,
    request_headers: Mapping[str, str],
    *,
    etag: str,
    media_type: str,
) -> Response:
    """The file, or the one range of it that is asked for.

    Several ranges at once are answered with the whole file, as the standard allows. Raises 416 for
    a range that the file has nothing of.
    """
    headers = {"Accept-Ranges": "bytes", "ETag": etag, "Cache-Control": "private, no-cache"}
    if request_headers.get("if-none-match") == etag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    wanted = request_headers.get("range", "")
    if request_headers.get("if-range", etag) != etag:
        wanted = ""
    part = parse_range(wanted, size)
    start, end = part or (0, size)
    headers["Content-Length"] = str(end - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return StreamingResponse(
        _blocks(open_file, start, end),
        HTTPStatus.OK if part is None else HTTPStatus.PARTIAL_CONTENT,
        headers,
        media_type,
    )


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """First byte and the one after the last; None for the whole file. Raises 416."""
    found = _RANGE.fullmatch(header.strip())
    if found is None or not any(found.groups()):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return None
    if start >= size or start >= end:
        raise HTTPException(
            HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE,
            f"Range is {header!r}, but there are {size} bytes",
            {"Content-Range": f"bytes */{size}"},
        )
    return start, end


def _blocks(open_file: Callable[[], IO[bytes]], start: int, end: int) -> Iterator[bytes]:
    with open_file() as file:
        file.seek(start)
        yield from copy_blocks(file, end - start, _BLOCK_BYTES)
