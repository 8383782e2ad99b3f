"""The browsable API's page of a stream, in a browser."""

from __future__ import annotations

import os

from playwright.sync_api import expect

from tests.support.browser import browsing
from tests.support.stack import running


def test_page_shows_events_as_they_come_and_as_text() -> None:
    with running(worker=False, with_valkey=False) as stack, browsing() as browser:
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        problems: list[str] = []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(f"{stack.url}/api/function/?format=api_sse")
        expect(page.locator("#eventstream-state")).to_have_text("open")

        stack.send("one", data={"number": 17, "item": "tea"})
        stack.send("two", data="<img src=x onerror=alert(1)>")

        rows = page.locator("#eventstream-events li.message")
        expect(rows).to_have_count(2)
        expect(rows.nth(0).locator(".data")).to_have_text(
            '{"number": 17, "item": "tea"}'
        )
        expect(rows.nth(1).locator(".data")).to_have_text(
            '"<img src=x onerror=alert(1)>"'
        )
        expect(rows.nth(1).locator(".id")).to_have_text("one:1,two:1")
        expect(page.locator("#eventstream-count")).to_have_text("2 events")
        assert page.locator("#eventstream-events img").count() == 0
        if path := os.environ.get("ES_SCREENSHOTS"):
            page.screenshot(path=f"{path}/drf.png")
        page.set_viewport_size({"width": 400, "height": 800})
        width = rows.nth(0).locator(".data").evaluate("cell => cell.clientWidth")
        assert width > 250  # a phone has no room for it beside the rest
        page.click("#eventstream-clear")
        expect(page.locator("#eventstream-events li")).to_have_count(0)

        page.goto(f"{stack.url}/api/any/private-1/")
        expect(page.locator("#eventstream-state")).to_have_text("closed")
        expect(page.locator("li.stream-error .data")).to_contain_text("forbidden")
        assert problems == []
