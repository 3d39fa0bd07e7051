"""The web page's files: all there, and nothing from elsewhere."""

import re

import httpx
import pytest

from tests.integration.test_http import assert_problem
from tests.support.service import RunningService

_REFERENCE = re.compile(r"""(?:src|href)="([^"]+)"|from "(\./[^"]+)"|url\(([^)]+)\)""")
_MEDIA_TYPES = {
    "html": "text/html",
    "css": "text/css",
    "js": "text/javascript",
    "svg": "image/svg+xml",
}


async def page_files(service: RunningService) -> dict[str, httpx.Response]:
    """The page and all that it refers to, by path."""
    found: dict[str, httpx.Response] = {}
    wanted = ["/"]
    while wanted:
        path = wanted.pop()
        if path in found or path == "/docs":
            continue
        found[path] = response = await service.http.get(path)
        assert response.status_code == 200, path
        for groups in _REFERENCE.findall(response.text):
            reference = "".join(groups)
            if not reference.startswith("#"):
                wanted.append(str(httpx.URL(path).join(reference)))
    return found


async def test_the_page_needs_no_other_host(service: RunningService) -> None:
    files = await page_files(service)
    assert {"/web/js/main.js", "/web/js/session.js", "/web/css/tokens.css"} <= files.keys()
    for path, response in files.items():
        addresses = re.findall(r"https?://[^\s\"'`]+|@import", response.text)
        assert set(addresses) <= {"http://www.w3.org/2000/svg"}, path


async def test_the_files_have_their_media_types(service: RunningService) -> None:
    for path, response in (await page_files(service)).items():
        suffix = path.rpartition(".")[2] if "." in path else "html"
        assert response.headers["content-type"].startswith(_MEDIA_TYPES[suffix]), path


async def test_the_page_runs_its_own_scripts_only(service: RunningService) -> None:
    for path, response in (await page_files(service)).items():
        policy = response.headers["content-security-policy"]
        assert "default-src 'none'" in policy, path
        assert "script-src 'self'" in policy
        assert "unsafe" not in policy
        assert response.headers["x-content-type-options"] == "nosniff"
    html = (await service.http.get("/")).text
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|javascript:", html)


@pytest.mark.parametrize(
    "path", ["/web/nothing.js", "/web/", "/web/../api/service.py", "/web/%2e%2e/wire.py"]
)
async def test_only_the_pages_files_are_served(service: RunningService, path: str) -> None:
    assert_problem(await service.http.get(path), 404)


async def test_a_file_that_is_known_is_not_sent_again(service: RunningService) -> None:
    first = await service.http.get("/web/js/main.js")
    known = {"If-None-Match": first.headers["etag"]}
    again = await service.http.get("/web/js/main.js", headers=known)
    assert (again.status_code, again.content) == (304, b"")
