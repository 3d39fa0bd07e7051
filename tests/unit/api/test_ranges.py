import io
from typing import Any

import pytest
from fastapi import HTTPException
from fastapi.responses import StreamingResponse

from segstream.api.ranges import file_response, parse_range

DATA = bytes(range(100))


@pytest.mark.parametrize(
    ("header", "part"),
    [
        ("", None),
        ("bytes=0-", (0, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=99-", (99, 100)),
        ("bytes=90-500", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-500", (0, 100)),
        ("bytes=20-10", None),
        ("bytes=-", None),
        ("bytes=0-1,5-6", None),
        ("lines=1-2", None),
        ("bytes=a-b", None),
    ],
)
def test_ranges(header: str, part: tuple[int, int] | None) -> None:
    assert parse_range(header, 100) == part


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=200-300", "bytes=-0"])
def test_a_range_that_there_is_nothing_of(header: str) -> None:
    with pytest.raises(HTTPException, match="100 bytes") as caught:
        parse_range(header, 100)
    assert caught.value.status_code == 416
    assert caught.value.headers == {"Content-Range": "bytes */100"}


async def answer(**headers: str) -> tuple[int, dict[str, Any], bytes]:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    response = file_response(
        lambda: io.BytesIO(DATA), 100, given, etag='"v1"', media_type="video/mp4"
    )
    body = b""
    if isinstance(response, StreamingResponse):
        body = b"".join([bytes(piece) async for piece in response.body_iterator])  # type: ignore[arg-type]
    return response.status_code, dict(response.headers), body


async def test_the_whole_file() -> None:
    status, headers, body = await answer()
    assert (status, body, headers["content-length"]) == (200, DATA, "100")
    assert headers["accept-ranges"] == "bytes"


async def test_a_part_of_it() -> None:
    status, headers, body = await answer(range="bytes=5-8")
    assert (status, body) == (206, DATA[5:9])
    assert headers["content-range"] == "bytes 5-8/100"
    assert headers["content-length"] == "4"


async def test_a_part_only_of_what_the_client_has_begun() -> None:
    assert (await answer(range="bytes=5-8", if_range='"v1"'))[0] == 206
    assert (await answer(range="bytes=5-8", if_range='"v0"'))[::2] == (200, DATA)


async def test_what_the_client_has_is_not_sent_again() -> None:
    assert (await answer(if_none_match='"v1"'))[::2] == (304, b"")
