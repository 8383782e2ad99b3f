"""EventStream in Chromium against a server that has no room for it at first."""

from __future__ import annotations

import json

import pytest
from playwright.sync_api import Response

from tests.acceptance.test_browser import Tab
from tests.support.browser import browsing
from tests.support.stack import running

pytestmark = pytest.mark.timeout(180)


def test_refused_tab_waits_for_as_long_as_it_was_told_and_misses_nothing() -> None:
    settings = {"EVENTSTREAM_STREAMS_PER_USER": 2}
    with running(env={"ES_SET": json.dumps(settings)}) as stack, browsing() as browser:
        pk = stack.run(
            "from django.contrib.auth.models import User\n"
            "print(User.objects.create(username='ann').pk)"
        )
        context = browser.new_context()
        name, _, value = stack.log_in(int(pk)).partition("=")
        context.add_cookies([{"name": name, "value": value, "url": stack.url}])
        stack.send("orders", 2)
        stack.wait_until_numbered("orders", 2)
        tabs = [Tab(context, stack.url, "orders").until("live") for _ in range(2)]

        answers: list[Response] = []
        context.on("response", lambda response: answers.append(response))
        late = Tab(context, stack.url, "orders", lastEventId="orders:1")
        late.until("offline")
        stack.send("orders", 3)
        # No reason to come earlier: a page that becomes visible, or the network back.
        late.page.evaluate("dispatchEvent(new Event('online'))")
        late.page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        tabs[0].page.close()

        assert late.until_seen(5) == [2, 3, 4, 5]
        late.until("live")
        stack.send("orders")
        assert late.until_seen(6) == [2, 3, 4, 5, 6]
        assert tabs[1].until_seen(6) == [3, 4, 5, 6]
        refused, taken = [each for each in answers if "/events/" in each.url]
        assert (refused.status, taken.status) == (429, 200)
        told = int(refused.headers["retry-after"])
        waited = taken.request.timing["startTime"] - refused.request.timing["startTime"]
        assert 10 < told <= waited / 1000
        assert late.page.evaluate("kinds") == []
