"""The examples, started as their documentation says and used in a browser."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import browsing
from tests.support.processes import free_port, is_listening, python


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    # No settings module: whoever follows the documentation does not name it, either.
    env = {"EXAMPLES_DIRECTORY": str(tmp_path_factory.mktemp("examples"))}
    port = free_port()
    with python("-m", "deploy.examples", "--port", str(port), env=env) as process:
        process.wait_until(lambda: is_listening(port), "the examples listen")
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as found:
        yield found


def shoot(page: Page, name: str) -> None:
    if directory := os.environ.get("ES_SCREENSHOTS"):
        page.screenshot(path=Path(directory) / f"{name}.png")


def say(page: Page, user: str, text: str) -> None:
    page.fill("[name=user]", user)
    page.fill("[name=text]", text)
    page.click("button")


def test_clock_ticks(address: str, browser: Browser) -> None:
    page = browser.new_page(viewport={"width": 800, "height": 600})
    page.goto(address)
    page.click("text=A clock")

    expect(page.locator("#state")).to_have_text("connected")
    expect(page.locator("#log li").nth(1)).to_be_visible(timeout=15_000)
    shoot(page, "clock")


@pytest.mark.parametrize("path", ["chat", "rest-chat"])
def test_two_people_talk_and_a_third_sees_what_was_said(
    address: str, browser: Browser, path: str
) -> None:
    room = f"{address}/{path}/room-of-{path}/"
    ann, bob = (
        browser.new_page(viewport={"width": 800, "height": 600}) for _ in range(2)
    )
    for page in (ann, bob):
        page.goto(room)
        expect(page.locator("#state")).to_have_text("connected")

    say(ann, "Ann", "Hello <b>Bob</b>")
    expect(bob.locator("#log li")).to_have_text(["Ann: Hello <b>Bob</b>"])
    say(bob, "Bob", "Hello Ann")

    said = ["Ann: Hello <b>Bob</b>", "Bob: Hello Ann"]
    expect(ann.locator("#log li")).to_have_text(said)
    expect(bob.locator("#log li")).to_have_text(said)
    late = browser.new_page()
    late.goto(room)
    expect(late.locator("#log li")).to_have_text(said)
    shoot(ann, path)


def test_room_that_missed_what_is_no_longer_stored_is_loaded_again(
    address: str, browser: Browser
) -> None:
    page = browser.new_page()
    reset = 'event: stream-reset\ndata: {"channels": ["room-reset"]}\n\n'
    page.route(
        "**/events/**",
        lambda route: route.fulfill(body=reset, content_type="text/event-stream"),
        times=1,
    )
    page.goto(f"{address}/chat/reset/", wait_until="commit")
    is_reload = "performance.getEntriesByType('navigation')[0].type === 'reload'"
    page.wait_for_function(is_reload, timeout=10_000)

    expect(page.locator("#state")).to_have_text("connected")


@pytest.mark.parametrize("path", ["clock/", "chat/refused/"])
def test_page_whose_stream_is_over_says_so(
    address: str, browser: Browser, path: str
) -> None:
    page = browser.new_page()
    page.route("**/events/**", lambda route: route.fulfill(status=502))
    page.goto(f"{address}/{path}")

    expect(page.locator("#state")).to_have_text("closed: load the page again")
