"""The web page of a service that asks for a key."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from segstream.doors.keys import revoke_key
from tests.support.browser import WebPage, needs_chromium, running_browser
from tests.support.doors import id_of, new_key
from tests.support.process import ServeProcess, serving

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with running_browser() as browser:
        yield browser


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "keys.json"
    new_key(path)
    return path


@pytest.fixture(scope="module")
def server(
    checkpoint: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServeProcess]:
    options = ("--model", checkpoint, "--api-keys", keys)
    with serving(tmp_path_factory.mktemp("server"), *options) as served:
        yield served


@pytest.fixture
def page(browser: Browser, server: ServeProcess) -> Iterator[WebPage]:
    context = browser.new_context(permissions=["camera"], viewport={"width": 1280, "height": 900})
    page = WebPage(context.new_page())
    page.page.goto(server.http_url)
    page.page.get_by_role("dialog", name="This service asks for a key").wait_for()
    yield page
    context.close()
    # That the service has refused is what the browser itself writes of it.
    assert {text for text in page.complaints if "401 (Unauthorized)" not in text} == set()


def give(page: WebPage, key: str) -> None:
    page.page.get_by_label("API key").fill(key)
    page.page.get_by_label("API key").press("Enter")


def test_the_page_asks_for_a_key_and_works_with_it(
    page: WebPage, browser: Browser, server: ServeProcess, keys: Path, clip: Path
) -> None:
    give(page, "no key")
    expect(page.page.get_by_role("alert").filter(has_text="no key of segstream")).to_be_visible()
    give(page, "segstream_000000000000_" + "A" * 43)
    expect(page.page.get_by_role("alert").filter(has_text="is not valid")).to_be_visible()
    give(page, valid_key(page, keys))
    expect(page.page.get_by_role("dialog")).to_be_hidden()
    page.page.locator("#legend button").first.wait_for()
    page.press("Open the camera")
    page.wait_for_results(3)
    page.press("Pause")
    expect(page.page.locator("#sessions tbody tr", has_text="this page")).to_have_count(1)
    page.press("Close")
    page.drop("ride.mp4", clip.read_bytes())
    page.press("Make an overlay video")
    link = page.page.get_by_role("link", name="Overlay video of ride.mp4")
    link.wait_for()
    # As from a download manager, or another browser that the link was given to.
    report = page.page.get_by_role("link", name="Report of ride.mp4").get_attribute("href")
    elsewhere = browser.new_page()
    elsewhere.goto(server.http_url + str(report))
    elsewhere.wait_for_function("() => document.querySelector('video').readyState > 0")
    assert elsewhere.request.get(server.http_url + str(link.get_attribute("href"))).ok
    elsewhere.close()


def valid_key(page: WebPage, keys: Path) -> str:
    """A new one, once the service knows it."""
    key = new_key(keys)
    url = page.page.url + "v1/models"
    headers = {"Authorization": f"Bearer {key}"}
    page.wait_for(lambda: page.page.request.get(url, headers=headers).ok)
    return key


def test_the_key_is_kept_in_the_tab_until_it_is_forgotten(page: WebPage, keys: Path) -> None:
    give(page, valid_key(page, keys))
    page.page.locator("#legend button").first.wait_for()
    assert page.page.evaluate("() => localStorage.length + document.cookie.length") == 0
    page.page.reload()
    page.page.locator("#legend button").first.wait_for()
    page.press("Forget the key")
    page.page.get_by_role("dialog").wait_for()
    assert page.page.evaluate("() => sessionStorage.length") == 0


def test_a_key_that_is_revoked_is_asked_for_again(page: WebPage, keys: Path) -> None:
    key = valid_key(page, keys)
    give(page, key)
    page.page.locator("#legend button").first.wait_for()
    revoke_key(keys, id_of(key))
    page.page.get_by_role("dialog").wait_for()
    expect(page.page.locator("#key-refusal")).to_contain_text("may have been revoked")


def test_the_description_of_the_api_is_shown(browser: Browser, server: ServeProcess) -> None:
    """Under a policy that lets only its own scripts run."""
    context = browser.new_context()
    page = WebPage(context.new_page())
    page.page.goto(f"{server.http_url}/docs")
    page.page.locator("#swagger-ui .opblock").first.wait_for()
    page.page.get_by_role("button", name="Authorize").wait_for()
    context.close()
    assert page.complaints == []
