"""The web page in Chromium against ``segstream serve``."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Route, WebSocketRoute, expect

from segstream.label_sets import CITYSCAPES
from segstream.media.label_maps import LabelMap
from segstream.media.video import VideoReader
from tests.e2e.conftest import HEIGHT, NUM_FRAMES, WIDTH
from tests.support.browser import WebPage, needs_chromium, running_browser, web_page
from tests.support.models import MEMORY_LENGTH
from tests.support.process import ServeProcess
from tests.support.websocket import Json

pytestmark = needs_chromium

STREAM_SECONDS = 30
COLOURS = np.array([label.colour for label in CITYSCAPES.labels], np.uint8)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser, server: ServeProcess) -> Iterator[WebPage]:
    with web_page(browser, server.http_url) as page:
        page.page.get_by_label("Height of frames").select_option("240")
        yield page


def show_classes_only(page: WebPage) -> None:
    page.page.get_by_role("slider", name="Opacity").press("End")
    expect(page.page.locator("#opacity-value")).to_have_text("100 %")


def assert_shows(page: WebPage, pane: str, label_map: LabelMap) -> None:
    """Every pixel has the colour of its class."""
    np.testing.assert_array_equal(page.picture(pane), COLOURS[label_map])


def test_the_camera_is_segmented_for_half_a_minute(page: WebPage) -> None:
    page.press("Open the camera")
    show_classes_only(page)
    page.wait_for_results(2)
    page.page.wait_for_timeout(1000 * STREAM_SECONDS)
    page.press("Pause")
    page.wait_for_answers()
    [socket] = page.sockets
    indices = [int(result["frame_index"]) for result in socket.results]
    assert indices == list(range(len(indices)))
    depths = [result["num_memory_frames"] for result in socket.results]
    assert depths[:5] == [0, 1, 2, MEMORY_LENGTH, MEMORY_LENGTH]
    assert_shows(page, "memory", socket.last_label_map())
    figures = page.page.locator("[data-pane=memory]")
    expect(figures.locator("[data-figure=rate]")).to_contain_text("fps")
    expect(figures.locator("[data-figure=latency]")).to_contain_text("ms")
    expect(figures.locator("[data-figure=memory]")).to_have_text(
        f"{MEMORY_LENGTH} of {MEMORY_LENGTH}"
    )


def test_the_session_without_memory_comes_and_goes(page: WebPage) -> None:
    page.press("Open the camera")
    show_classes_only(page)
    page.wait_for_results(2)
    compare = page.page.get_by_role("switch", name="Compare without memory")
    compare.press("Space")
    page.wait_for_results(3, is_memoryless=True)
    page.press("Pause")
    page.wait_for_answers()
    with_memory, memoryless = page.socket(), page.socket(is_memoryless=True)
    assert {result["num_memory_frames"] for result in memoryless.results} == {0}
    assert with_memory.results[-1]["num_memory_frames"] > 0
    assert with_memory.results[-1]["frame_index"] == memoryless.results[-1]["frame_index"]
    assert_shows(page, "memory", with_memory.last_label_map())
    assert_shows(page, "memoryless", memoryless.last_label_map())
    compare.press("Space")
    expect(page.page.locator("[data-pane=memoryless]")).to_have_count(0)
    expect(page.page.locator("#sessions tbody tr", has_text="this page")).to_have_count(1)
    [ended] = memoryless.of_kind("ended")
    assert ended["reason"] == "SESSION_END_REASON_CLIENT_CLOSED"
    assert with_memory.of_kind("ended") == []


def test_a_clip_that_is_dropped_is_segmented_to_its_end(page: WebPage, clip: Path) -> None:
    show_classes_only(page)
    page.drop("ride.mp4", clip.read_bytes())
    again = page.page.get_by_role("button", name="Play again")
    again.wait_for()
    expect(page.page.locator("#source-name")).to_have_text("ride.mp4")
    page.wait_for_answers()
    socket = page.socket()
    assert 2 <= len(socket.results) <= NUM_FRAMES
    assert socket.last_label_map().shape == (HEIGHT, WIDTH)
    assert_shows(page, "memory", socket.last_label_map())
    assert socket.of_kind("ended")
    again.press("Enter")
    page.wait_for(lambda: len(page.sockets) == 2)
    page.wait_for_results(2)


def test_a_class_is_hidden_and_shown_again(page: WebPage) -> None:
    page.press("Open the camera")
    show_classes_only(page)
    page.wait_for_results(2)
    page.press("Pause")
    page.wait_for_answers()
    ids = page.socket().last_label_map()
    largest = int(np.bincount(ids.ravel()).argmax())
    row = page.page.get_by_role("button", name=CITYSCAPES.labels[largest].name)
    row.first.press("Enter")
    expect(row.first).to_have_attribute("aria-pressed", "false")
    row.first.blur()
    picture = page.picture()
    np.testing.assert_array_equal(picture[ids != largest], COLOURS[ids[ids != largest]])
    assert (picture[ids == largest] != COLOURS[largest]).any(axis=-1).mean() > 0.9
    page.press("Show all")
    assert_shows(page, "memory", ids)


def test_a_class_that_is_pointed_at_stands_out(page: WebPage) -> None:
    page.press("Open the camera")
    show_classes_only(page)
    page.wait_for_results(2)
    page.press("Pause")
    page.wait_for_answers()
    ids = page.socket().last_label_map()
    largest = int(np.bincount(ids.ravel()).argmax())
    page.page.locator(f"#legend [data-train-id='{largest}']").hover()
    picture = page.picture()
    assert (picture[ids == largest] == COLOURS[largest]).all()
    assert (picture[ids != largest] != COLOURS[ids[ids != largest]]).any(axis=-1).mean() > 0.9
    y, x = (side // 2 for side in ids.shape)
    page.point_at(x, y)
    pointed = page.page.locator("[data-pane=memory] .pointed-class")
    expect(pointed).to_have_text(CITYSCAPES.labels[ids[y, x]].name)
    assert_shows(page, "memory", ids)


def test_a_session_whose_socket_breaks_goes_on(page: WebPage) -> None:
    routes: list[WebSocketRoute] = []

    def connect(route: WebSocketRoute) -> None:
        route.connect_to_server()
        routes.append(route)

    page.page.route_web_socket(re.compile(r"/v1/stream\b"), connect)
    page.press("Open the camera")
    page.wait_for_results(4)
    routes[0].close(code=1011)
    expect(page.page.locator("#announcements")).to_have_text("The connection is back")
    page.wait_for(lambda: len(page.sockets) == 2)
    page.wait_for_results(3)
    first, second = page.sockets
    [ready] = second.of_kind("ready")
    assert ready["origin"] == "SESSION_ORIGIN_RESUMED"
    assert second.config["session_id"] == first.config["session_id"]
    assert second.results[-1]["num_memory_frames"] == MEMORY_LENGTH
    assert page.notices() == []


def test_a_session_is_listed_and_can_be_closed(page: WebPage) -> None:
    page.press("Open the camera")
    page.wait_for_results(2)
    session_id = page.socket().config["session_id"]
    row = page.page.locator("#sessions tbody tr", has_text="this page")
    expect(row).to_contain_text("streaming")
    page.press(f"Close session {session_id}")
    expect(page.page.locator(".notice p")).to_have_text("The session was closed by its operator.")
    expect(page.page.locator("#drop-zone")).to_be_visible()
    page.press("Dismiss")
    assert page.notices() == []


def test_a_clip_is_handed_in_and_its_overlay_downloaded(
    page: WebPage, clip: Path, tmp_path: Path
) -> None:
    page.drop("ride.mp4", clip.read_bytes())
    page.press("Make an overlay video")
    link = page.page.get_by_role("link", name="Overlay video of ride.mp4")
    link.wait_for()
    answer = page.page.request.get(page.page.url + (link.get_attribute("href") or "").lstrip("/"))
    assert answer.ok
    overlay = tmp_path / "overlay.mp4"
    overlay.write_bytes(answer.body())
    with VideoReader(overlay) as video:
        assert len(list(video)) == NUM_FRAMES
    page.press("Remove ride.mp4")
    expect(page.page.locator(".job")).to_have_count(0)


def test_clips_that_were_handed_in_are_listed(browser: Browser, server: ServeProcess) -> None:
    clips = [
        clip("c", "queued", "drive.mp4"),
        clip("b", "running", "ride.mp4", progress=0.25, num_frames_done=25, eta_seconds=3.2),
        clip("a", "done", "walk.mp4", links={"overlay": "/v1/clips/a/overlay"}),
        clip("9", "failed", "", error={"detail": "not a video", "field": "body"}),
    ]
    removed: list[str] = []
    num_listings = 0

    def answer(route: Route) -> None:
        nonlocal num_listings
        if route.request.method == "DELETE":
            removed.append(route.request.url.rpartition("/")[2])
            route.fulfill(status=204)
        else:
            num_listings += 1
            route.fulfill(json={"clips": clips, "next_before": None})

    routes = {
        "**/openapi.json": lambda route: route.fulfill(json={"paths": {"/v1/clips": {}}}),
        "**/v1/clips{,/*}": answer,
    }
    with web_page(browser, server.http_url, routes=routes) as page:
        jobs = page.page.locator(".job")
        expect(jobs).to_have_count(4)
        expect(jobs.nth(0)).to_contain_text("queued")
        expect(jobs.nth(1)).to_contain_text("running, 25 frames, 4 s left")
        bar = page.page.get_by_role("progressbar", name="Progress of ride.mp4")
        expect(bar).to_have_js_property("value", 0.25)
        link = page.page.get_by_role("link", name="Overlay video of walk.mp4")
        expect(link).to_have_attribute("href", "/v1/clips/a/overlay")
        expect(jobs.nth(3)).to_contain_text("not a video")
        button = page.page.get_by_role("button", name="Remove walk.mp4")
        button.focus()
        enough = num_listings + 2
        page.wait_for(lambda: num_listings >= enough)
        expect(button).to_be_focused()
        page.press("Cancel ride.mp4")
        page.press("Remove walk.mp4")
        page.wait_for(lambda: removed == ["b", "a"])


def clip(clip_id: str, state: str, name: str, **fields: Any) -> Json:
    empty = {"progress": None, "num_frames_done": 0, "eta_seconds": None, "error": None}
    return {"id": clip_id, "state": state, "name": name, "links": {}} | empty | fields


def test_a_file_that_is_no_video_is_told(page: WebPage) -> None:
    page.drop("notes.txt", b"no video")
    expect(page.page.get_by_role("alert")).to_contain_text(
        "notes.txt is no video that this browser can play."
    )
    expect(page.page.locator("#drop-zone")).to_be_visible()


def test_a_camera_that_is_not_allowed_is_told(page: WebPage) -> None:
    page.page.evaluate(
        """() => navigator.mediaDevices.getUserMedia = async () => {
            throw new DOMException("", "NotAllowedError");
        }"""
    )
    page.press("Open the camera")
    expect(page.page.get_by_role("alert")).to_contain_text("The camera is not allowed")


@pytest.mark.parametrize("width", [320, 390, 768, 1360])
def test_the_page_fits_its_window(browser: Browser, server: ServeProcess, width: int) -> None:
    with web_page(browser, server.http_url, viewport={"width": width, "height": 800}) as page:
        assert page.page.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_follows_the_colour_scheme(
    browser: Browser, server: ServeProcess, scheme: str
) -> None:
    with web_page(browser, server.http_url, color_scheme=scheme) as page:
        ground = page.page.evaluate("getComputedStyle(document.body).backgroundColor")
    red = int(ground.removeprefix("rgb(").split(",")[0])
    assert (red > 128) is (scheme == "light")


def test_everything_is_reached_by_keyboard(page: WebPage) -> None:
    """In the order of the page, each with a name and an outline that shows where one is."""
    reached = []
    for _ in range(9):
        page.page.keyboard.press("Tab")
        reached.append(
            page.page.evaluate(
                """() => [
                    document.activeElement.id || document.activeElement.textContent.trim(),
                    getComputedStyle(document.activeElement).outlineStyle,
                ]"""
            )
        )
    assert [name for name, _ in reached] == [
        *("Skip to the picture", "model", "API", "choose-clip", "open-camera"),
        *("opacity", "compare", "frame-height", CITYSCAPES.labels[0].name),
    ]
    assert {outline for _, outline in reached} == {"solid"}


def test_the_client_of_the_documentation(page: WebPage, server: ServeProcess) -> None:
    text = (Path(__file__).parents[2] / "docs" / "websocket.md").read_text()
    [code] = re.findall(r"```js\n(.*?)```", text, re.DOTALL)
    address = "ws://127.0.0.1:8080/v1/stream"
    assert address in code
    code = code.replace(address, server.http_url.replace("http", "ws") + "/v1/stream")
    said: list[str] = []
    page.page.on("console", lambda message: said.append(message.text))
    page.page.evaluate(f"() => {{ {code}; Object.assign(window, {{ segment }}); }}")
    page.wait_for(lambda: bool(page.sockets and page.sockets[0].of_kind("ready")))
    page.page.evaluate("() => segment(0, document.createElement('canvas'))")
    page.wait_for(lambda: len(said) == 2)
    assert said[1].startswith("0 300 150 Uint8Array(45000)")
