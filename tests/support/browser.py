"""The web page in a real browser, and what goes over its WebSockets."""

import base64
import io
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import pytest
from numpy.typing import NDArray
from playwright.sync_api import Browser, Page, Route, WebSocket, sync_playwright

from segstream.media.label_maps import LabelMap, LabelMapEncoding, decode_label_map
from tests.support.websocket import Json, unpacked

CHROMIUM = shutil.which("chromium")
TIMEOUT_MS = 60_000
_PERIOD_MS = 50
# A frame that was captured is sent within so long.
_REST_MS = 300

_FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"),
)

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="Chromium is not installed; `make browser` does it as root on Debian"
)


@dataclass
class Socket:
    """What one session of the page sent and received, as far as it has gone."""

    sent: list[Json] = field(default_factory=list)
    received: list[tuple[Json, bytes]] = field(default_factory=list)

    def of_kind(self, kind: str) -> list[Json]:
        return [head[kind] for head, _ in self.received if kind in head]

    @property
    def config(self) -> Json:
        config: Json = self.sent[0]["config"]
        return config

    @property
    def results(self) -> list[Json]:
        return self.of_kind("result")

    @property
    def num_frames_sent(self) -> int:
        return sum("frame" in head for head in self.sent)

    def last_label_map(self) -> LabelMap:
        head, data = next(pair for pair in reversed(self.received) if "result" in pair[0])
        size = head["result"]["label_map"]["width"], head["result"]["label_map"]["height"]
        return decode_label_map(data, LabelMapEncoding.PNG, *size)


@dataclass
class WebPage:
    """The page, and all that it said."""

    page: Page
    sockets: list[Socket] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.set_default_timeout(TIMEOUT_MS)
        self.page.on("websocket", self._record)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("console", lambda message: self._note(message.type, message.text))

    def open(self, url: str) -> None:
        self.page.goto(url)
        self.page.locator("#service-state[data-state=ready]").wait_for()
        self.page.locator("#legend button").first.wait_for()

    def press(self, name: str) -> None:
        """Press a button as keyboards do."""
        self.page.get_by_role("button", name=name, exact=True).press("Enter")

    def socket(self, *, is_memoryless: bool = False) -> Socket:
        """The newest session of this kind."""
        return next(
            socket
            for socket in reversed(self.sockets)
            if socket.config.get("is_memoryless", False) is is_memoryless
        )

    def wait_for(self, is_so: Callable[[], bool]) -> None:
        waited = 0
        while not is_so():
            self.page.wait_for_timeout(_PERIOD_MS)
            waited += _PERIOD_MS
            assert waited < TIMEOUT_MS

    def wait_for_results(self, count: int, *, is_memoryless: bool = False) -> None:
        self.wait_for(lambda: len(self._results(is_memoryless)) >= count)

    def wait_for_answers(self) -> None:
        """Until the last frame is answered and drawn, and none comes after it."""
        for _ in range(2):
            self.wait_for(self._is_at_rest)
            self.page.wait_for_timeout(_REST_MS)
        self.wait_for(self._is_at_rest)

    def _is_at_rest(self) -> bool:
        panes = (("memory", False), ("memoryless", True))
        return all(each.num_frames_sent == len(each.results) for each in self.sockets) and all(
            self._is_drawn(pane, is_memoryless) for pane, is_memoryless in panes
        )

    def _is_drawn(self, pane: str, is_memoryless: bool) -> bool:
        figure = self.page.locator(f"[data-pane={pane}]")
        if figure.count() == 0:
            return True
        results = self._results(is_memoryless)
        return bool(results) and figure.get_attribute("data-frame") == results[-1]["frame_index"]

    def picture(self, pane: str = "memory") -> NDArray[np.uint8]:
        """The pixels of a pane, (H, W, 3)."""
        url: str = self.page.evaluate(
            "(name) => document.querySelector(`[data-pane=${name}] canvas`).toDataURL()", pane
        )
        png = base64.b64decode(url.partition(",")[2])
        return np.array(PIL.Image.open(io.BytesIO(png)).convert("RGB"))

    def point_at(self, x: int, y: int, pane: str = "memory") -> None:
        """Move the pointer to the middle of a pixel of a pane."""
        height, width = self.picture(pane).shape[:2]
        box = self.page.locator(f"[data-pane={pane}] canvas").bounding_box()
        assert box is not None
        scale = min(box["width"] / width, box["height"] / height)
        left = box["x"] + (box["width"] - scale * width) / 2
        top = box["y"] + (box["height"] - scale * height) / 2
        self.page.mouse.move(left + scale * (x + 0.5), top + scale * (y + 0.5))

    def drop(self, name: str, data: bytes) -> None:
        """Drop a file on the stage."""
        transfer = self.page.evaluate_handle(
            """([name, data]) => {
                const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], name));
                return transfer;
            }""",
            [name, base64.b64encode(data).decode()],
        )
        self.page.locator("#stage").dispatch_event("drop", {"dataTransfer": transfer})

    def notices(self) -> list[str]:
        return self.page.locator(".notice p").all_inner_texts()

    def _results(self, is_memoryless: bool) -> list[Json]:
        kind = [
            socket
            for socket in self.sockets
            if socket.sent and socket.config.get("is_memoryless", False) is is_memoryless
        ]
        return kind[-1].results if kind else []

    def _note(self, kind: str, text: str) -> None:
        if kind in ("error", "warning"):
            self.complaints.append(text)

    def _record(self, socket: WebSocket) -> None:
        record = Socket()
        self.sockets.append(record)
        socket.on("framesent", lambda message: record.sent.append(unpacked(message)[0]))
        socket.on("framereceived", lambda message: record.received.append(unpacked(message)))


@contextmanager
def running_browser() -> Iterator[Browser]:
    """Chromium without a window, whose camera is a test picture."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_FLAGS))
        yield browser
        browser.close()


@contextmanager
def web_page(
    browser: Browser,
    url: str,
    *,
    routes: Mapping[str, Callable[[Route], None]] | None = None,
    **options: Any,
) -> Iterator[WebPage]:
    """The page at ``url``; at the end it must have had nothing to complain of.

    ``routes``: by pattern of the address, what answers instead of the service.
    """
    context = browser.new_context(permissions=["camera"], **options)
    page = WebPage(context.new_page())
    for pattern, answer in (routes or {}).items():
        page.page.route(pattern, answer)
    page.open(url)
    yield page
    context.close()
    assert page.complaints == []
