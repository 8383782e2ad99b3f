"""EventStream in Chromium, against the real installation: directly, behind Pushpin, and
behind the nginx that the project ships with Pushpin behind it, by HTTP/2 and TLS.

Whatever is done to page, network and servers: the page must show consecutive ids.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, Error, Page

from tests.support.browser import browsing
from tests.support.fault_proxy import FaultProxy, Mode
from tests.support.nginx import Nginx
from tests.support.processes import wait_for
from tests.support.sse import tidy
from tests.support.stack import Stack, running

pytestmark = pytest.mark.timeout(180)

OPEN = """([url, options]) => {
  window.seen = []; window.statuses = []; window.kinds = []; window.states = [];
  const stream = window.stream = new EventStream(url, options);
  stream.addEventListener("message", (e) => seen.push([e.lastEventId, e.data]));
  stream.addEventListener("initial-state", (e) => states.push(e.data));
  stream.addEventListener("stream-status", (e) => statuses.push(e.status));
  for (const kind of ["stream-reset", "stream-error"])
    stream.addEventListener(kind, (e) => kinds.push([kind, e.channels, e.condition ?? null]));
}"""

PLAIN = """([url]) => {
  window.seen ??= []; window.opened ??= []; window.failures ??= [];
  const source = new EventSource(url);
  const number = seen.push([]) - 1;
  opened[number] = false; failures[number] = 0;
  source.addEventListener("message", (e) => seen[number].push(e.lastEventId.split(",").at(-1)));
  source.addEventListener("stream-open", () => (opened[number] = true));
  source.addEventListener("error", () => (failures[number] += 1));
}"""

# Of this page's locks one has a name known to nobody else; it tells the page's client id.
IS_LEADING = """() => navigator.locks.request("mine", async () => {
  const { held } = await navigator.locks.query();
  const me = held.find((lock) => lock.name === "mine").clientId;
  return held.some((lock) => lock.clientId === me && lock.name !== "mine");
})"""


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


@pytest.fixture(scope="module", params=["direct", "pushpin", "nginx"])
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    env = {"ES_SET": '{"EVENTSTREAM_ALLOW_ORIGINS": "*"}'}
    with ExitStack() as exits:
        with_pushpin = request.param != "direct"
        stack = exits.enter_context(running(with_pushpin=with_pushpin, env=env))
        if request.param == "nginx":
            assert stack.pushpin
            nginx = Nginx(web_port=stack.web_port, streams_port=stack.pushpin.port)
            exits.callback(nginx.close)
            stack.url = nginx.url
        yield stack


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    context = browser.new_context(ignore_https_errors=True)
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
        # 2 MB in all: no browser hands over that much at once, when none would catch up.
        stack.send("many", 2000, data="x" * 200)
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
    tab.until("offline")  # as the browser says
    tab.page.evaluate("stream.reconnect()")  # and indeed
    tab.page.wait_for_function("statuses.filter((s) => s === 'offline').length > 1")
    stack.send("offline", 3)
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
    tab.page.evaluate(
        "addEventListener('pageshow', (e) => { window.isFromCache = e.persisted })"
    )
    stack.send("left", 2)
    tab.until_seen(2)
    tab.page.goto(f"{stack.url}/blank/?elsewhere")
    assert tab.page.evaluate("typeof seen") == "undefined"
    stack.send("left", 3)
    stack.wait_until_numbered("left", 5)
    tab.page.evaluate("history.back()")

    # The page as it was left, out of the back/forward cache.
    tab.page.wait_for_function("window.isFromCache")
    assert tab.until_seen(5) == [1, 2, 3, 4, 5]
    tab.until("live")


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


def test_stream_that_its_page_closes_when_it_is_lost_stays_closed(
    stack: Stack, context: BrowserContext
) -> None:
    tab = Tab(context, stack.url, "closed").until("live")
    tab.page.evaluate(
        "stream.addEventListener('stream-status', ({ status }) => {"
        " if (status !== 'closed') stream.close(); })"
    )
    requests: list[str] = []
    tab.page.on("request", lambda request: requests.append(request.url))
    stack.kill_and_restart_holders()
    tab.until("closed")
    tab.page.evaluate("dispatchEvent(new Event('online'))")
    tab.page.wait_for_timeout(5000)  # the first wait is of four seconds at most

    assert requests == []
    assert tab.page.evaluate("[stream.status, stream.readyState]") == ["closed", 2]


def test_server_that_is_killed_and_restarted_costs_no_event(
    stack: Stack, context: BrowserContext
) -> None:
    tab = Tab(context, stack.url, "killed").until("live")
    stack.send("killed", 2)
    tab.until_seen(2)
    stack.kill_and_restart_holders()
    stack.send("killed", 3)

    assert tab.until_seen(5) == [1, 2, 3, 4, 5]
    tab.until("live")


def test_plain_event_source_that_opens_while_servers_are_away_comes_back(
    stack: Stack, context: BrowserContext
) -> None:
    page = context.new_page()
    page.goto(f"{stack.url}/blank/")
    assert stack.web
    stack.web.kill()
    # Of another origin, a page takes no answer that does not name its own.
    origins = ["", stack.url.replace("127.0.0.1", "localhost")]

    def open_and_fail() -> None:
        for origin in origins:
            page.evaluate(PLAIN, [f"{origin}/events/?channel=away"])
        page.wait_for_function("failures.every((n) => n >= 1)", timeout=20_000)

    open_and_fail()  # Pushpin is still there
    if stack.pushpin:
        stack.pushpin.process.kill()
        open_and_fail()
        stack.pushpin.start()
    stack.start_web()

    page.wait_for_function("opened.every((is) => is)", timeout=45_000)
    stack.send("away", 2)
    page.wait_for_function(
        "seen.every((ids) => ids.join() === 'away:1,away:2')", timeout=20_000
    )


def test_connection_that_falls_silent_is_noticed(
    stack: Stack, context: BrowserContext
) -> None:
    address, _, port = stack.url.rpartition(":")
    proxy = FaultProxy(int(port))
    try:
        base = f"{address}:{proxy.port}"
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


@pytest.mark.parametrize("with_pushpin", [False, True], ids=["direct", "pushpin"])
def test_each_tab_that_shares_has_an_initial_state(
    browser: Browser, with_pushpin: bool
) -> None:
    manager = "tests.channels.StatefulChannelManager"
    env = {"ES_SET": json.dumps({"EVENTSTREAM_CHANNELMANAGER_CLASS": manager})}
    with running(with_pushpin=with_pushpin, env=env) as stack:
        context = browser.new_context()
        tabs = [Tab(context, stack.url, "groups", share=True) for _ in range(8)]
        for tab in tabs:
            tab.page.wait_for_function("states.length === 1")
        stack.send("groups", 3)

        for tab in tabs:
            assert tab.until_seen(3) == [1, 2, 3]
            assert tab.page.evaluate("states") == ["[]"]
        assert tabs[0].page.evaluate("fetch('/blank/').then((r) => r.status)") == 200
        context.close()


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

    # Its renderer dies, and cannot say good-bye.
    crashes: list[Page] = []
    leading = next(tab for tab in tabs[1:] if is_leading(tab))
    leading.page.on("crash", lambda page: crashes.append(page))
    with suppress(Error):
        leading.page.goto("chrome://crash", timeout=5000)
    left = [tab for tab in tabs[1:] if tab is not leading]
    stack.send("leader", 2)
    for tab in left:
        assert tab.until_seen(8) == list(range(1, 9))
    assert crashes == [leading.page]


def is_leading(tab: Tab) -> bool:
    """Say whether this tab has the lock that one tab of all has."""
    held: bool = tab.page.evaluate(IS_LEADING)
    return held


STRICT = """<!doctype html><title>strict</title>
<script nonce="n0nce" src="/static/eventstream/eventstream.js"></script>
<script nonce="n0nce">
  const seen = [], refused = [];
  addEventListener("securitypolicyviolation", (e) => refused.push(e.violatedDirective));
  const stream = new EventStream("/events/?channel=strict", { share: true });
  stream.addEventListener("message", (e) => seen.push(e.lastEventId));
</script>"""


def test_strict_content_security_policy_is_enough(
    stack: Stack, context: BrowserContext
) -> None:
    page = context.new_page()
    policy = "default-src 'none'; script-src 'nonce-n0nce'; connect-src 'self'"
    headers = {"Content-Security-Policy": policy, "Content-Type": "text/html"}
    page.route("**/strict/", lambda route: route.fulfill(headers=headers, body=STRICT))
    page.goto(f"{stack.url}/strict/")
    wait_for(lambda: page.evaluate("stream.status") == "live", "the stream is live")

    stack.send("strict", 1)

    wait_for(lambda: page.evaluate("seen"), "the event has come")
    assert page.evaluate("[seen, refused]") == [["strict:1"], []]


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
    # It hands the ids over as they came.
    seen = [tidy(text) for text in page.evaluate("seen")]
    assert seen == ["old:2", "old:3", "old:4"]
