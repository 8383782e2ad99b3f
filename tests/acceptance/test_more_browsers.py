"""EventStream in Firefox, and in a tab of Chromium that is really in the background.

Firefox is Debian's, by WebDriver BiDi. For the tab, Chromium is driven without Playwright,
which tells every page that it is visible.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from urllib.parse import quote

import pytest

from tests.acceptance.test_browser import OPEN
from tests.support.browser import find_chromium
from tests.support.fault_proxy import FaultProxy, Mode
from tests.support.nginx import find
from tests.support.processes import Process, wait_for
from tests.support.remote import Remote, connecting
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(180)


class Page(Protocol):
    """What both browsers can do."""

    def goto(self, url: str) -> None: ...

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression, which must be one of JSON."""


class Tab:
    """A page with one stream."""

    def __init__(self, page: Page, base: str, channel: str, **options: Any) -> None:
        self.page = page
        page.goto(f"{base}/blank/")
        page.evaluate(
            "new Promise((resolve) => { const script = document.createElement('script');"
            f"script.src = '{base}/static/eventstream/eventstream.js';"
            "script.onload = () => resolve(1); document.head.append(script); })"
        )
        query = f"/events/?channel={quote(channel, safe='')}"
        page.evaluate(f"({OPEN})({json.dumps([query, options])}), 1")

    @property
    def status(self) -> str:
        return str(self.page.evaluate("stream.status"))

    def until(self, status: str) -> Tab:
        wait_for(lambda: self.status == status, f"status {status}", timeout=30)
        return self

    def ids(self) -> list[int]:
        seen = self.page.evaluate("seen.map(([id]) => id)")
        return [int(position.rpartition(":")[2]) for position in seen]

    def until_seen(self, last: int) -> list[int]:
        is_there = f"seen.some(([id]) => id.endsWith(':{last}'))"
        wait_for(lambda: self.page.evaluate(is_there), f"event {last}", timeout=45)
        return self.ids()


# --- Firefox


class Firefox:
    """A running Firefox with one tab."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        remote.call("session.new", capabilities={})
        created = remote.call("browsingContext.create", type="tab")
        self.context: str = created["context"]

    def goto(self, url: str) -> None:
        self.remote.call(
            "browsingContext.navigate", context=self.context, url=url, wait="complete"
        )

    def evaluate(self, expression: str) -> Any:
        answer = self.remote.call(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await ({expression})))()",
            target={"context": self.context},
            awaitPromise=True,
        )
        assert answer["type"] == "success", answer
        return json.loads(answer["result"]["value"])

    def set_offline(self, is_offline: bool) -> None:
        self.remote.call(
            "emulation.setNetworkConditions",
            networkConditions={"type": "offline"} if is_offline else None,
            contexts=[self.context],
        )


@contextmanager
def remote(argv: list[str], path: str = "") -> Iterator[Remote]:
    """Start a browser that says where it can be reached."""
    with tempfile.TemporaryDirectory(
        prefix="es-browser-", ignore_cleanup_errors=True
    ) as home:
        argv = [part.replace("HOME", home) for part in argv]
        env = {"HOME": home, "MOZ_CRASHREPORTER_DISABLE": "1"}
        with Process([*argv, "--remote-debugging-port=0"], env=env) as process:
            found = process.wait_until(
                lambda: re.search(r"listening on (ws://\S+)", process.output()),
                "the browser listens",
            )
            with connecting(found.group(1) + path) as connection:
                yield connection


@pytest.fixture(scope="module")
def firefox() -> Iterator[Firefox]:
    program = find("firefox-esr", "firefox-esr")
    argv = [program, "--headless", "--no-remote", "--profile", "HOME"]
    with remote(argv, "/session") as connection:
        yield Firefox(connection)


def test_firefox_shows_what_was_sent_before_and_after_it_opened(
    stack: Stack, firefox: Firefox
) -> None:
    channel = "café ✓/%I"
    stack.send(channel, 3)
    stack.wait_until_numbered(channel, 3)
    position = f"{quote(channel, safe='')}:1"
    tab = Tab(firefox, stack.url, channel, lastEventId=position).until("live")
    texts = ["a\nb\r\nc\rd", "é ✓ 𝄞 \u2028 \ufeff", "", "100 % %I %(x)s"]
    for text in texts:
        stack.send(channel, data=text)

    assert tab.until_seen(7) == [2, 3, 4, 5, 6, 7]
    data = firefox.evaluate("seen.map(([, data]) => data)")
    assert [json.loads(each) for each in data[2:]] == texts


def test_firefox_catches_up_with_ten_thousand_events(
    stack: Stack, firefox: Firefox
) -> None:
    for _ in range(5):
        stack.send("fox-many", 2000)
    stack.wait_until_numbered("fox-many", 10_000)
    tab = Tab(firefox, stack.url, "fox-many", lastEventId="fox-many:0").until("live")

    assert tab.until_seen(10_000) == list(range(1, 10_001))


def test_firefox_is_told_that_it_may_not_read(stack: Stack, firefox: Firefox) -> None:
    Tab(firefox, stack.url, "private-1").until("denied")

    kinds = firefox.evaluate("kinds")
    assert kinds == [["stream-error", ["private-1"], "forbidden"]]


def test_firefox_that_was_offline_goes_on_where_it_was(
    stack: Stack, firefox: Firefox
) -> None:
    tab = Tab(firefox, stack.url, "fox-offline").until("live")
    stack.send("fox-offline", 2)
    tab.until_seen(2)
    firefox.set_offline(True)
    stack.send("fox-offline", 3)
    firefox.evaluate("stream.reconnect(), 1")
    tab.until("offline")
    firefox.set_offline(False)

    assert tab.until_seen(5) == [1, 2, 3, 4, 5]


def test_firefox_comes_back_to_a_server_that_was_killed(
    stack: Stack, firefox: Firefox
) -> None:
    tab = Tab(firefox, stack.url, "fox-killed").until("live")
    stack.send("fox-killed", 2)
    tab.until_seen(2)
    stack.kill_and_restart_holders()
    stack.send("fox-killed", 3)

    assert tab.until_seen(5) == [1, 2, 3, 4, 5]
    tab.until("live")


# --- a tab in the background


class Chromium:
    """One tab of a running Chromium."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        created = remote.call("Target.createTarget", url="about:blank")
        self.target: str = created["targetId"]
        attached = remote.call(
            "Target.attachToTarget", targetId=self.target, flatten=True
        )
        self.session: str = attached["sessionId"]

    def goto(self, url: str) -> None:
        self.remote.call("Page.navigate", self.session, url=url)
        wait_for(
            lambda: self.evaluate(
                f"document.readyState === 'complete' && location.href === '{url}'"
            ),
            "the page loads",
        )

    def evaluate(self, expression: str) -> Any:
        answer = self.remote.call(
            "Runtime.evaluate", self.session, expression=expression,
            awaitPromise=True, returnByValue=True,
        )  # fmt: skip
        assert "exceptionDetails" not in answer, answer
        return answer["result"]["value"]

    def show(self) -> None:
        self.remote.call("Target.activateTarget", targetId=self.target)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Remote]:
    argv = [find_chromium(), "--headless=new", "--disable-gpu", "--user-data-dir=HOME"]
    if os.geteuid() == 0:
        argv.append("--no-sandbox")
    with remote(argv) as connection:
        yield connection


def test_tab_in_the_background_receives_and_comes_back_when_it_is_shown(
    stack: Stack, chromium: Remote
) -> None:
    address, _, port = stack.url.rpartition(":")
    proxy = FaultProxy(int(port))
    try:
        base = f"{address}:{proxy.port}"
        page = Chromium(chromium)
        # A wait so long that only becoming visible can end it.
        tab = Tab(page, base, "hidden", max_retry_time=600_000).until("live")
        stack.send("hidden", 2)
        tab.until_seen(2)
        other = Chromium(chromium)
        other.show()
        wait_for(
            lambda: page.evaluate("document.visibilityState") == "hidden",
            "it is hidden",
        )

        stack.send("hidden", 2)
        assert tab.until_seen(4) == [1, 2, 3, 4]
        proxy.set_mode(Mode.BLACK_HOLE)
        stack.send("hidden", 2)
        stack.wait_until_numbered("hidden", 6)
        proxy.set_mode(Mode.PASS)  # resets the connection
        wait_for(lambda: tab.status != "live", "it has noticed")
        page.show()

        assert tab.until_seen(6) == [1, 2, 3, 4, 5, 6]
        assert page.evaluate("document.visibilityState") == "visible"
    finally:
        proxy.close()
