"""EventStream in Chromium, against the real installation, directly and behind Pushpin.

Whatever is done to page, network and servers: the page must show consecutive ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Page

from tests.support.browser import browsing
from tests.support.fault_proxy import FaultProxy, Mode
from tests.support.processes import wait_for
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(180)

OPEN = """([url, options]) => {
  window.seen = []; window.statuses = []; window.kinds = [];
  const stream = window.stream = new EventStream(url, options);
  stream.addEventListener("message", (e) => seen.push([e.lastEventId, e.data]));
  stream.addEventListener("stream-status", (e) => statuses.push(e.status));
  for (const kind of ["stream-reset", "stream-error"])
    stream.addEventListener(kind, (e) => kinds.push([kind, e.channels, e.condition ?? null]));
}"""


class Tab:
    """A page of its own with one stream."""

    def __init__(
        self, context: BrowserContext, base: str, channel: str, **options: Any
    ) -> None:
        self.page: Page = context.new_page()
        self.page.goto(f"{base}/blank/")
        self.page.add_script_tag(url=f"{base}/static/eventstream/eventstream.js")
        query = f"/events/?channel={quote(channel, safe='')}"
        self.page.evaluate(OPEN, [query, options])

    def seen(self) -> list[list[str]]:
        seen: list[list[str]] = self.page.evaluate("seen")
        return seen

    def ids(self) -> list[int]:
        return [int(position.rpartition(":")[2]) for position, _ in self.seen()]

    def status(self) -> str:
        status: str = self.page.evaluate("stream.status")
        return status

    def until(self, status: str, timeout: float = 30) -> Tab:
        self.page.wait_for_function(
            f"stream.status === '{status}'", timeout=timeout * 1000
        )
        return self

    def until_seen(self, last: int, timeout: float = 45) -> list[int]:
        """Wait for the event with this id; return all ids."""
        self.page.wait_for_function(
            f"seen.some(([id]) => id.endsWith(':{last}'))", timeout=timeout * 1000
        )
        return self.ids()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context()
    yield context
    context.close()


def test_page_shows_what_was_sent_before_and_after_it_opened(
    stack: Stack, context: BrowserContext
) -> None:
    stack.send("page", 3)
    stack.wait_until_numbered("page", 3)
    tab = Tab(context, stack.url, "page", lastEventId="page:1").until("live")
    stack.send("page", 4)

    assert tab.until_seen(7) == [2, 3, 4, 5, 6, 7]
    assert tab.page.evaluate("statuses").count("live") == 1


def test_text_of_any_kind_arrives_as_it_was(
    stack: Stack, context: BrowserContext
) -> None:
    channel = "café ✓/%I"
    tab = Tab(context, stack.url, channel).until("live")
    texts = ["a\nb\r\nc\rd", "é ✓ 𝄞 \u2028 \ufeff", "", "100 % %I %(x)s"]
    for text in texts:
        stack.send(channel, data=text)

    assert tab.until_seen(4) == [1, 2, 3, 4]
    assert [json.loads(data) for _, data in tab.seen()] == texts


def test_ten_thousand_events_are_caught_up_with(
    stack: Stack, context: BrowserContext
) -> None:
    for _ in range(5):
        stack.send("many", 2000)
    stack.wait_until_numbered("many", 10_000)
    tab = Tab(context, stack.url, "many", lastEventId="many:0").until("live")

    assert tab.until_seen(10_000) == list(range(1, 10_001))
    assert tab.page.evaluate("statuses") == ["catching-up", "live"]


def test_position_that_is_gone_is_reset_and_the_stream_goes_on(
    stack: Stack, context: BrowserContext
) -> None:
    stack.send("gone", 3)
    stack.wait_until_numbered("gone", 3)
    tab = Tab(context, stack.url, "gone", lastEventId="gone:99").until("live")
    stack.send("gone")

    assert tab.until_seen(4) == [4]
    assert tab.page.evaluate("kinds") == [["stream-reset", ["gone"], None]]


def test_denied_page_is_told_and_does_not_come_back(
    stack: Stack, context: BrowserContext
) -> None:
    tab = Tab(context, stack.url, "private-1").until("denied")
    requests: list[str] = []
    tab.page.on("request", lambda request: requests.append(request.url))
    tab.page.wait_for_timeout(3000)

    assert tab.page.evaluate("kinds") == [["stream-error", ["private-1"], "forbidden"]]
    assert requests == []


def test_kicked_page_is_told(stack: Stack, context: BrowserContext) -> None:
    stack.run(
        "from django.contrib.auth.models import User, Group\n"
        "group, _ = Group.objects.get_or_create(name='members')\n"
        "User.objects.get_or_create(pk=1, username='1')[0].groups.add(group)"
    )
    name, _, value = stack.log_in(1).partition("=")
    context.add_cookies([{"name": name, "value": value, "url": stack.url}])
    tab = Tab(context, stack.url, "members").until("live")
    stack.run(
        "from django.contrib.auth.models import User\n"
        "from django.db import transaction\n"
        "from eventstream import channel_permission_changed\n"
        "user = User.objects.get(pk=1)\n"
        "with transaction.atomic():\n"
        "    user.groups.clear()\n"
        "    channel_permission_changed(user, 'members')\n"
    )

    tab.until("denied")
    assert tab.page.evaluate("kinds") == [["stream-error", ["members"], "forbidden"]]


def test_page_that_was_offline_goes_on_where_it_was(
    stack: Stack, context: BrowserContext
) -> None:
    tab = Tab(context, stack.url, "offline").until("live")
    stack.send("offline", 2)
    tab.until_seen(2)
    context.set_offline(True)
    stack.send("offline", 3)
    tab.page.evaluate("stream.reconnect()")
    tab.until("offline")
    context.set_offline(False)

    assert tab.until_seen(5, timeout=15) == [1, 2, 3, 4, 5]


def test_frozen_page_lets_go_and_comes_back(
    stack: Stack, context: BrowserContext
) -> None:
    tab = Tab(context, stack.url, "frozen").until("live")
    stack.send("frozen", 2)
    tab.until_seen(2)
    session = context.new_cdp_session(tab.page)
    session.send("Page.enable")
    session.send("Page.setWebLifecycleState", {"state": "frozen"})
    stack.send("frozen", 3)
    session.send("Page.setWebLifecycleState", {"state": "active"})

    assert tab.until_seen(5) == [1, 2, 3, 4, 5]


def test_page_that_was_left_and_returned_to_goes_on(
    stack: Stack, context: BrowserContext
) -> None:
    tab = Tab(context, stack.url, "left").until("live")
    stack.send("left", 2)
    tab.until_seen(2)
    # What a page gets that goes into the back/forward cache, and comes out of it.
    tab.page.evaluate(
        "dispatchEvent(new PageTransitionEvent('pagehide', {persisted: true}))"
    )
    stack.send("left", 3)
    tab.page.wait_for_timeout(300)
    assert tab.ids() == [1, 2]
    tab.page.evaluate(
        "dispatchEvent(new PageTransitionEvent('pageshow', {persisted: true}))"
    )

    assert tab.until_seen(5) == [1, 2, 3, 4, 5]


def test_handler_that_throws_loses_nothing(
    stack: Stack, context: BrowserContext
) -> None:
    tab = Tab(context, stack.url, "throws").until("live")
    tab.page.evaluate(
        "stream.addEventListener('message', () => { throw new Error('oops'); })"
    )
    stack.send("throws", 3)

    assert tab.until_seen(3) == [1, 2, 3]
    assert tab.status() == "live"


def test_server_that_is_killed_and_restarted_costs_no_event(
    stack: Stack, context: BrowserContext
) -> None:
    tab = Tab(context, stack.url, "killed").until("live")
    stack.send("killed", 2)
    tab.until_seen(2)
    assert stack.web
    stack.web.kill()
    if stack.pushpin:
        stack.pushpin.process.kill()
        stack.pushpin.start()
    stack.start_web()
    stack.send("killed", 3)

    assert tab.until_seen(5) == [1, 2, 3, 4, 5]
    tab.until("live")


def test_connection_that_falls_silent_is_noticed(
    stack: Stack, context: BrowserContext
) -> None:
    port = int(stack.url.rpartition(":")[2])
    proxy = FaultProxy(port)
    try:
        base = f"http://127.0.0.1:{proxy.port}"
        tab = Tab(context, base, "silent", silenceTimeout=3000).until("live")
        stack.send("silent", 2)
        tab.until_seen(2)
        proxy.set_mode(Mode.BLACK_HOLE)
        stack.send("silent", 3)
        wait_for(lambda: tab.status() != "live", "it is noticed", timeout=20)
        proxy.set_mode(Mode.PASS)

        assert tab.until_seen(5) == [1, 2, 3, 4, 5]
    finally:
        proxy.close()


# --- several tabs


def test_eight_tabs_share_a_connection_where_six_are_the_most(
    stack: Stack, context: BrowserContext
) -> None:
    tabs = [Tab(context, stack.url, "tabs", share=True) for _ in range(8)]
    for tab in tabs:
        tab.until("live")
    stack.send("tabs", 3)
    for tab in tabs:
        assert tab.until_seen(3) == [1, 2, 3]

    late = Tab(context, stack.url, "tabs", share=True, lastEventId="tabs:1")
    assert late.until_seen(3) == [2, 3]
    assert late.page.evaluate("fetch('/blank/').then((r) => r.status)") == 200


def test_leading_tab_that_is_closed_or_frozen_or_crashes_is_succeeded(
    stack: Stack, context: BrowserContext
) -> None:
    tabs = [Tab(context, stack.url, "leader", share=True) for _ in range(4)]
    for tab in tabs:
        tab.until("live")
    stack.send("leader", 2)
    for tab in tabs:
        tab.until_seen(2)

    tabs[0].page.close()
    stack.send("leader", 2)
    for tab in tabs[1:]:
        assert tab.until_seen(4) == [1, 2, 3, 4]
    session = context.new_cdp_session(tabs[1].page)
    session.send("Page.enable")
    session.send("Page.setWebLifecycleState", {"state": "frozen"})
    stack.send("leader", 2)
    for tab in tabs[2:]:
        assert tab.until_seen(6) == list(range(1, 7))
    session.send("Page.setWebLifecycleState", {"state": "active"})
    assert tabs[1].until_seen(6) == list(range(1, 7))

    tabs[2].page.goto("about:blank")
    stack.send("leader", 2)
    for tab in (tabs[1], tabs[3]):
        assert tab.until_seen(8) == list(range(1, 9))


def test_other_client_that_is_shipped_still_works(
    stack: Stack, context: BrowserContext
) -> None:
    page = context.new_page()
    page.goto(f"{stack.url}/blank/")
    name = "reconnecting-eventsource.min.js"
    page.add_script_tag(url=f"{stack.url}/static/eventstream/{name}")
    stack.send("old", 2)
    stack.wait_until_numbered("old", 2)
    page.evaluate(
        "() => { window.seen = []; const s = new ReconnectingEventSource("
        "'/events/?channel=old', {lastEventId: 'old:1'});"
        "s.addEventListener('message', (e) => seen.push(e.lastEventId)) }"
    )
    stack.send("old", 2)

    page.wait_for_function("seen.length >= 3")
    assert page.evaluate("seen") == ["old:2", "old:3", "old:4"]
