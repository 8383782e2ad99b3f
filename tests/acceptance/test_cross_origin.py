"""EventStream in a page of another origin, which may read, or may not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page

from tests.acceptance.test_browser import OPEN
from tests.support.browser import browsing
from tests.support.fault_proxy import FaultProxy
from tests.support.stack import Stack

MAKE_TOKEN = """
from django.contrib.auth.models import User
from eventstream import make_subscribe_token
user, _ = User.objects.get_or_create(pk=1, username="1")
print(make_subscribe_token(user, ["private-1"], lifetime=600))
"""


class Site:
    """A stack, and pages of another origin: the same host, another port."""

    def __init__(self, stack: Stack, pages: FaultProxy) -> None:
        self.stack = stack
        self.port = pages.port

    def open(self, page: Page, host: str, channel: str, **options: Any) -> None:
        """Open a page of this host, and in it a stream of the stack's."""
        page.goto(f"http://{host}:{self.port}/blank/")
        page.add_script_tag(url="/static/eventstream/eventstream.js")
        page.evaluate(OPEN, [f"{self.stack.url}/events/?channel={channel}", options])


@pytest.fixture(scope="module", params=["direct", "pushpin"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    stack = Stack(with_pushpin=request.param == "pushpin")
    pages = FaultProxy(stack.web_port)
    settings = {
        "EVENTSTREAM_ALLOW_ORIGINS": [f"http://127.0.0.1:{pages.port}"],
        "EVENTSTREAM_ALLOW_CREDENTIALS": True,
    }
    stack.env["ES_SET"] = json.dumps(settings)
    try:
        stack.start_web()
        stack.start_worker()
        yield Site(stack, pages)
    finally:
        pages.close()
        stack.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    yield context.new_page()
    context.close()


def until_seen(page: Page, last: int) -> list[str]:
    page.wait_for_function(f"seen.some(([id]) => id.endsWith(':{last}'))")
    ids: list[str] = page.evaluate("seen.map(([id]) => id)")
    return ids


def test_page_with_a_token_in_the_header_reads_and_comes_back(
    site: Site, page: Page
) -> None:
    token = site.stack.run(MAKE_TOKEN).strip()
    begin = int(site.stack.send("private-1", 0).rpartition(":")[2])
    site.open(page, "127.0.0.1", "private-1", token=token)
    page.wait_for_function("stream.status === 'live'")
    site.stack.send("private-1", 2)
    until_seen(page, begin + 2)
    page.evaluate("stream.reconnect()")
    site.stack.send("private-1", 2)

    expected = [f"private-1:{n}" for n in range(begin + 1, begin + 5)]
    assert until_seen(page, begin + 4) == expected


def test_page_with_cookies_reads_what_their_user_may(site: Site, page: Page) -> None:
    site.stack.run(MAKE_TOKEN)
    name, _, value = site.stack.log_in(1).partition("=")
    cookie = {"name": name, "value": value, "url": site.stack.url}
    page.context.add_cookies([cookie])  # type: ignore[list-item]
    begin = int(site.stack.send("private-1", 0).rpartition(":")[2])
    site.open(page, "127.0.0.1", "private-1", withCredentials=True)
    page.wait_for_function("stream.status === 'live'")
    site.stack.send("private-1")

    assert until_seen(page, begin + 1) == [f"private-1:{begin + 1}"]

    site.open(page, "127.0.0.1", "private-1")  # without them
    page.wait_for_function("stream.status === 'denied'")
    assert page.evaluate("kinds") == [["stream-error", ["private-1"], "forbidden"]]


@pytest.mark.parametrize("options", [{}, {"token": "t"}, {"withCredentials": True}])
def test_page_of_an_origin_that_is_not_named_reads_nothing(
    site: Site, page: Page, options: dict[str, object]
) -> None:
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text))
    site.open(page, "localhost", "open", **options)
    page.wait_for_function("stream.status === 'offline'")
    site.stack.send("open", 2)
    page.wait_for_timeout(1000)

    assert page.evaluate("seen") == []
    assert any("blocked by CORS policy" in error for error in errors)
