"""The operators' pages in a browser: accessible, under a strict policy, live; and fast."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import psycopg
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Route, expect

from tests import settings as project
from tests.support.browser import browsing, watch
from tests.support.fault_proxy import FaultProxy, Mode
from tests.support.postgres import postgres
from tests.support.processes import free_port
from tests.support.stack import Stack, running

pytestmark = pytest.mark.timeout(180)

PAGES = {
    "landing": "",
    "undelivered": "undeliveredevent/",
    "overview": "sample/",
    "targets": "pausedtarget/",
    "channel": "channel/private-9/change/",
    "event": "event/1/change/",
    "channels": "channel/",
    "question": "pausedtarget/act/?action=pause&target={target}",
}
PREPARE = """
from django.contrib.auth.models import User
from eventstream import send_event
from eventstream.models import DeadLetter, Event
user = User.objects.create_superuser("ann")
for number in range(10):
    channel = ["orders", "private-9", "rooms/7"][number % 3]
    send_event(channel, "message", {"number": number, "html": "<b id=x>bold</b>"})
event = Event.objects.latest("pk")
print(user.pk)
"""
NUMBER = """
from eventstream.storage import get_storage
for partition in range(16):
    get_storage().number_all("default", partition)
"""
EXPIRED = """
import time
from unittest import mock
from django.contrib.auth.models import User
from eventstream.tokens import make_operator_token
with mock.patch("time.time", return_value=time.time() - 7200):
    print(make_operator_token(User.objects.get(), "private-9"))
"""
KEEP_PLOTS = """
window.plots = [];
Object.defineProperty(window, "uPlot", { configurable: true, set(Plot) {
  const construct = (Plot, options) => {
    const plot = Reflect.construct(Plot, options);
    plots.push(plot);
    return plot;
  };
  Object.defineProperty(window, "uPlot", { value: new Proxy(Plot, { construct }) });
} });
"""
LETTER = """
from eventstream.models import DeadLetter, Event
event = Event.objects.get(pk=2)
DeadLetter.objects.create(event_id=2, partition=event.partition, position=event.position,
    channel=event.channel, eid=event.eid, target="bus", error="refused: <b>bad</b>")
"""


@dataclass
class Office:
    """An installation whose one proxy is down, and an operator's session."""

    stack: Stack
    session: str
    target: str

    def url(self, name: str) -> str:
        path = PAGES[name].format(target=self.target)
        return f"{self.stack.url}/admin/eventstream/{path}"

    def open(self, browser: Browser, name: str, **options: Any) -> Page:
        context = browser.new_context(**options)
        key, _, value = self.session.partition("=")
        context.add_cookies([{"name": key, "value": value, "url": self.stack.url}])
        page = context.new_page()
        page.goto(self.url(name))
        return page


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with browsing() as browser:
        yield browser


def _settings(theme: str, port: int) -> dict[str, Any]:
    values: dict[str, Any] = {"GRIP_URL": f"http://127.0.0.1:{port}/?key={'k' * 32}"}
    if theme == "unfold":
        values["INSTALLED_APPS"] = ["unfold", *project.INSTALLED_APPS]
    else:
        policy = "tests.support.csp.StrictPolicyMiddleware"
        values["MIDDLEWARE"] = [*project.MIDDLEWARE, policy]
    return values


@pytest.fixture(scope="module", params=["django", "unfold"])
def office(request: pytest.FixtureRequest) -> Iterator[Office]:
    port = free_port()
    env = {"ES_SET": json.dumps(_settings(request.param, port))}
    with running(env=env) as stack:
        pk = int(stack.run(PREPARE).split()[-1])
        stack.run(NUMBER)
        stack.run(LETTER)
        target = f"grip:http://127.0.0.1:{port}"
        yield Office(stack, stack.log_in(pk), target)


def _note_error(errors: list[str], message: ConsoleMessage) -> None:
    if message.type == "error" and "favicon" not in message.location["url"]:
        errors.append(message.text)


def _violations(page: Page) -> list[tuple[str, list[str]]]:
    found = Axe().run(page, context=".es").response["violations"]
    return [(v["id"], [n["html"][:200] for n in v["nodes"]]) for v in found]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_accessible_and_run_under_a_strict_policy(
    office: Office, browser: Browser, scheme: Any
) -> None:
    for name in PAGES:
        page = office.open(browser, name, color_scheme=scheme)
        errors = watch(page)
        page.on("console", partial(_note_error, errors))
        page.reload()
        page.wait_for_selector(".es, #changelist, .readonly")
        if name == "overview":
            page.wait_for_selector("[data-es-drawn]")

        if page.locator(".es").count():  # the rest of a page is the theme's
            assert _violations(page) == [], f"{name}, {scheme}"
        assert errors == [], name
        page.context.close()


def test_overview_works_on_a_page_that_was_opened_with_a_password_in_its_address(
    office: Office, browser: Browser
) -> None:
    page = office.open(browser, "landing")
    page.route("**/stream/*", lambda route: route.abort())  # so that it asks
    page.goto(office.url("overview").replace("//", "//anna:secret@"))

    page.wait_for_selector("[data-es-drawn]")
    page.wait_for_selector("html[data-es-live]")
    page.context.close()


def test_overview_is_accessible_before_its_points_are_there(
    office: Office, browser: Browser
) -> None:
    page = office.open(browser, "landing")
    page.route("**/series/*", lambda route: None)  # no answer
    page.goto(office.url("overview"))
    page.wait_for_selector(".es-plot")

    assert page.locator("[data-es-drawn]").count() == 0
    assert _violations(page) == []
    page.context.close()


def _points(count: int) -> dict[str, Any]:
    """Return what the plots load, a point a minute."""
    names = ("events", "oldest", "readers")
    at = [1_795_866_000 + 60 * minute for minute in range(count)]
    return {"at": at, "targets": {}, **{name: [1] * count for name in names}}


def test_plots_show_the_span_that_was_chosen_last(
    office: Office, browser: Browser
) -> None:
    page = office.open(browser, "overview")
    slow: list[Route] = []
    page.route(re.compile("hours=1$"), lambda route: slow.append(route))
    page.route(re.compile("hours=24$"), lambda route: route.fulfill(json=_points(3)))
    page.reload()
    page.get_by_label("24 hours").check()
    section = page.locator("[data-es-series]")
    expect(section).to_have_attribute("data-es-drawn", "3")

    slow[0].fulfill(json=_points(1))
    page.wait_for_timeout(500)

    expect(section).to_have_attribute("data-es-drawn", "3")
    page.context.close()


def test_plot_of_one_point_has_its_time_below_it(
    office: Office, browser: Browser
) -> None:
    page = office.open(browser, "overview")
    page.add_init_script(KEEP_PLOTS)
    page.route("**/series/*", lambda route: route.fulfill(json=_points(1)))
    page.reload()
    expect(page.locator("[data-es-series]")).to_have_attribute("data-es-drawn", "1")

    first, last = page.evaluate("[plots[0].scales.x.min, plots[0].scales.x.max]")

    # Not days, on which each time of the axis is midnight.
    assert (last - first, last) == (600, _points(1)["at"][0])
    page.context.close()


def test_operator_gives_an_event_up_by_keyboard(
    office: Office, browser: Browser
) -> None:
    page = office.open(browser, "landing")
    expect(page.locator(".es-head-line")).to_contain_text("not reached every target")
    expect(page.locator(".es-table")).to_contain_text("refused: <b>bad</b>")
    box = page.get_by_label(f"orders:1, {office.target}")
    box.focus()

    page.keyboard.press("Space")
    page.get_by_role("button", name="Give up").focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Give up 1 event?")).to_be_visible()
    page.get_by_label("Reason").focus()
    page.keyboard.type("it is bad")
    page.get_by_role("button", name="Yes, give up").focus()
    page.keyboard.press("Enter")

    expect(page.get_by_text("1 event was given up.")).to_be_visible()
    row = page.locator("tbody", has=page.get_by_label(f"orders:1, {office.target}"))
    expect(row).to_contain_text("Given up by ann: it is bad")
    page.context.close()


def test_all_on_the_page_can_be_ticked(office: Office, browser: Browser) -> None:
    page = office.open(browser, "undelivered")

    page.get_by_label("Tick all on this page").check()

    boxes = page.locator('input[name="item"]')
    assert boxes.count() >= 10
    assert all(box.is_checked() for box in boxes.all())
    boxes.first.uncheck()
    assert not page.get_by_label("Tick all on this page").is_checked()
    page.context.close()


DELIVER = """
from eventstream.models import Cursor, Partition
for number, head in Partition.objects.values_list("number", "last_position"):
    Cursor.objects.filter(partition=number).update(watermark=head)
"""


def test_list_refreshes_itself_and_keeps_what_is_ticked(browser: Browser) -> None:
    port = free_port()
    with running(
        env={"ES_SET": json.dumps(_settings("django", port))}, worker=False
    ) as stack:
        pk = int(stack.run(PREPARE).split()[-1])
        target = f"grip:http://127.0.0.1:{port}"
        page = Office(stack, stack.log_in(pk), target).open(browser, "landing")
        rows = page.locator("tbody[data-es-event]")
        expect(rows).to_have_count(10)
        ticked, focused = f'input[value="1:{target}"]', f'input[value="4:{target}"]'
        page.locator(ticked).check()
        page.locator(focused).focus()

        stack.send("orders", 2)  # come by themselves
        expect(rows).to_have_count(12, timeout=30_000)
        expect(page.locator(ticked)).to_be_checked()
        expect(page.locator(focused)).to_be_focused()
        assert page.locator('[name="item"]:checked').count() == 1

        stack.run("from eventstream.relay import relay_all; relay_all('default')")
        expect(page.locator("[data-es-table]")).not_to_contain_text(
            "bus", timeout=30_000
        )
        expect(page.locator(ticked)).to_be_checked()  # the proxy still lacks it
        expect(page.locator(focused)).to_be_focused()
        expect(rows).to_have_count(12)

        stack.run(DELIVER)
        expect(rows).to_have_count(2, timeout=30_000)
        for box in (ticked, focused):
            row = page.locator("tbody", has=page.locator(box))
            expect(row).to_contain_text("delivered, or on another page")

        page.locator(ticked).uncheck()
        page.get_by_label("Channel begins with").focus()
        expect(page.locator("[data-es-table]")).to_have_text(
            "Nothing is undelivered: every target has accepted every event.",
            timeout=30_000,
        )
        page.context.close()


def test_overview_refreshes_itself(office: Office, browser: Browser) -> None:
    page = office.open(browser, "overview")
    expect(page.locator("[data-es-drawn]")).to_be_attached()
    assert page.locator(".u-wrap").count() == 6
    pause = "from eventstream import pausing; pausing.{}({!r})"

    office.stack.run(pause.format("pause", office.target))
    expect(page.locator(".es-findings")).to_contain_text("Paused for", timeout=30_000)
    office.stack.run(pause.format("resume", office.target))

    expect(page.locator(".es-findings")).not_to_contain_text(
        "Paused for", timeout=30_000
    )
    page.context.close()


def test_page_says_that_it_is_old_when_the_server_hangs(browser: Browser) -> None:
    env = {"ES_SET": json.dumps(_settings("django", free_port()))}
    with running(env=env, worker=False) as stack:
        pk = int(stack.run(PREPARE).split()[-1])
        session = stack.log_in(pk)
        proxy = FaultProxy(stack.web_port)
        stack.url = f"http://127.0.0.1:{proxy.port}"
        try:
            page = Office(stack, session, "").open(browser, "landing")
            expect(page.locator("html[data-es-live]")).to_be_attached(timeout=30_000)
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))

            proxy.set_mode(Mode.BLACK_HOLE)  # nothing is refused, and nothing answered
            meta = page.locator(".es-meta")
            expect(meta).to_contain_text("what stands here is old", timeout=60_000)
            assert len(asked) <= 2  # else they would fill the browser's six connections

            proxy.set_mode(Mode.PASS)
            expect(meta).to_contain_text("As of", timeout=60_000)
            page.context.close()
        finally:
            proxy.close()


def test_tail_shows_any_channel_as_text(office: Office, browser: Browser) -> None:
    page = office.open(browser, "channel")
    tail = page.locator("[data-es-tail]")
    expect(tail).to_contain_text('"number": 1')  # what was there before

    office.stack.send("private-9", data="<img src=x onerror=alert(1)>")

    expect(tail).to_contain_text("<img src=x onerror=alert(1)>")
    assert tail.locator("img, b").count() == 0
    page.set_viewport_size({"width": 400, "height": 800})
    data = tail.locator("li span:last-child").first
    assert data.evaluate("cell => cell.clientWidth") > 250
    page.get_by_role("button", name="Stop").click()
    expect(page.locator("[data-es-tail-state]")).to_have_text("Stopped.")
    page.context.close()


def test_tail_that_waits_to_try_again_can_be_stopped(
    office: Office, browser: Browser
) -> None:
    page = office.open(browser, "channel")
    requests: list[str] = []

    def refuse(route: Route) -> None:
        requests.append(route.request.url)
        route.abort()

    page.route("**/events/**", refuse)
    page.reload()
    state = page.locator("[data-es-tail-state]")
    expect(state).to_contain_text("Trying again")
    page.get_by_role("button", name="Stop").click()
    page.wait_for_timeout(3000)  # it tries again after two seconds
    expect(state).to_have_text("Stopped.")
    assert len(requests) == 1

    page.get_by_role("button", name="Go on").click()
    expect(state).to_contain_text("Trying again")
    page.get_by_role("button", name="Stop").click()
    page.unroute("**/events/**")
    page.get_by_role("button", name="Go on").click()
    expect(state).to_have_text("Live.")
    page.wait_for_timeout(3000)  # the reader before this one would be back by now
    office.stack.send("private-9", data="only one reader")
    row = page.locator("[data-es-tail] li", has_text="only one reader")
    expect(row).not_to_have_count(0)
    page.wait_for_timeout(500)
    expect(row).to_have_count(1)
    page.context.close()


def test_tail_whose_token_has_expired_says_what_to_do(
    office: Office, browser: Browser
) -> None:
    page = office.open(browser, "channel")
    state = page.locator("[data-es-tail-state]")
    expect(state).to_have_text("Live.")
    token = office.stack.run(EXPIRED).split()[-1]
    page.get_by_role("button", name="Stop").click()
    page.locator("[data-es-tail]").evaluate(
        "(tail, token) => { tail.dataset.esToken = token }", token
    )

    page.get_by_role("button", name="Go on").click()

    expect(state).to_have_text("Ended: load the page again to go on.")
    expect(page.get_by_role("button", name="Go on")).to_be_visible()
    page.context.close()


def test_tail_that_is_refused_says_what_the_server_says(
    office: Office, browser: Browser
) -> None:
    page = office.open(browser, "channel")
    page.route(
        "**/events/**",
        lambda route: route.fulfill(
            status=501, content_type="text/plain", body="Use ASGI."
        ),
    )

    page.reload()

    state = page.locator("[data-es-tail-state]")
    expect(state).to_have_text("Ended: The server has answered 501. Use ASGI.")
    page.unroute("**/events/**")
    page.get_by_role("button", name="Go on").click()
    expect(state).to_have_text("Live.")
    page.context.close()


def test_tail_that_hears_nothing_comes_back_where_it_was(browser: Browser) -> None:
    settings = {**_settings("django", free_port()), "EVENTSTREAM_KEEP_ALIVE": 1}
    del settings["GRIP_URL"]
    with running(env={"ES_SET": json.dumps(settings)}, worker=False) as stack:
        pk = int(stack.run(PREPARE).split()[-1])
        stack.run(NUMBER)
        session = stack.log_in(pk)
        proxy = FaultProxy(stack.web_port)
        stack.url = f"http://127.0.0.1:{proxy.port}"
        try:
            page = Office(stack, session, "").open(browser, "channel")
            state = page.locator("[data-es-tail-state]")
            expect(page.locator("[data-es-tail]")).to_contain_text('"number": 1')
            expect(state).to_have_text("Live.")

            proxy.set_mode(Mode.BLACK_HOLE)
            expect(state).to_have_text("Cannot be read. Trying again.", timeout=30_000)
            stack.send("private-9", data="meanwhile")
            proxy.set_mode(Mode.PASS)

            expect(state).to_have_text("Live.", timeout=20_000)
            row = page.locator("[data-es-tail] li", has_text="meanwhile")
            expect(row).to_have_count(1, timeout=20_000)
            page.context.close()
        finally:
            proxy.close()


def test_tail_and_overview_are_live_behind_a_proxy(browser: Browser) -> None:
    with running(with_pushpin=True) as stack:
        pk = int(stack.run(PREPARE).split()[-1])
        stack.run(NUMBER)
        office = Office(stack, stack.log_in(pk), stack.env["ES_GRIP"])
        page = office.open(browser, "channel")
        tail = page.locator("[data-es-tail]")
        expect(tail).to_contain_text('"number": 1')
        stack.send("private-9", data="through the proxy")
        expect(tail).to_contain_text("through the proxy")
        page.context.close()

        page = office.open(browser, "overview")
        expect(page.locator("html[data-es-live]")).to_be_attached(timeout=30_000)
        page.context.close()


MANY = """
INSERT INTO eventstream_event (partition, kind, channel, position, eid, type, data,
    skip_users, created)
SELECT n % 16, 0, 'room-' || n % 16, n / 16 + 1, n / 16 + 1, 'message',
    '{"number": ' || n || '}', '', now() - make_interval(secs => 3600 - n * 0.0036)
FROM generate_series(0, 999999) AS n;
INSERT INTO eventstream_partition SELECT p, 62500 FROM generate_series(0, 15) AS p;
INSERT INTO eventstream_channel
SELECT 'room-' || p, p, 62500 FROM generate_series(0, 15) AS p;
"""
CURSORS = """
INSERT INTO eventstream_cursor (partition, target, watermark, lease_token, attempts,
    failing_since, next_attempt, last_error)
SELECT p, %(target)s, %(mark)s, '', 3, now() - interval '1 hour',
    now() + interval '20 s', 'Connection refused'
FROM generate_series(0, 15) AS p
"""
EXPLAIN = """
import json, re
from django.contrib.auth.models import User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
client = Client(SERVER_NAME="localhost")
client.force_login(User.objects.get())
found = {}
for name, path in %r.items():
    with CaptureQueriesContext(connection) as queries:
        response = client.get("/admin/eventstream/" + path)
    assert response.status_code == 200, (name, response.status_code)
    plans = []
    for query in queries.captured_queries:
        if query["sql"].startswith(("SELECT", "(SELECT")):
            with connection.cursor() as cursor:
                cursor.execute("EXPLAIN (ANALYZE, FORMAT JSON) " + query["sql"])
                text = cursor.fetchone()[0]
            plan = text[0] if isinstance(text, list) else json.loads(text)[0]
            plans.append([query["sql"], plan["Plan"]])
    found[name] = [len(queries), plans]
print("PLANS" + json.dumps(found))
"""
QUICK = {
    "landing": "",
    "newest": "undeliveredevent/?order=newest",
    "last page": "undeliveredevent/?from=1000",
    "channel": "undeliveredevent/?q=room-7",
    "one target": "undeliveredevent/?target=bus&state=waiting",
    "old": "undeliveredevent/?age=600",
    "overview": "sample/",
    "too young": "undeliveredevent/?age=21600&state=waiting",
    "no such channel": "undeliveredevent/?q=nothing&state=dead",
    "targets": "pausedtarget/",
    "channels": "channel/",
    "a channel": "channel/room-3/change/",
}


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", []):
        yield from _nodes(inner)


# Watermarks of bus and proxy in each partition.
BACKLOGS = {
    "both lack all": (0, 0),
    "one lacks all": (62_500, 0),
    "one lacks a few": (62_500, 62_495),
    "none lacks any": (62_500, 62_500),
}


def _rows_read(plan: dict[str, Any]) -> float:
    count = 0.0
    for node in _nodes(plan):
        if node.get("Relation Name") == "eventstream_event":
            rows = node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
            count += node["Actual Loops"] * rows
    return count


def test_a_million_events_cost_a_page_no_more_than_ten(browser: Browser) -> None:
    """By plans rather than by time: no query of a page reads the table."""
    port, redis = free_port(), free_port()  # nobody listens there
    target = f"grip:http://127.0.0.1:{port}"
    grip = {"GRIP_URL": f"http://127.0.0.1:{port}/?key={'k' * 32}"}
    with postgres() as server:
        stack = Stack(
            database_url=server.create_database("many"),
            with_valkey=False,
            env={
                "ES_SET": json.dumps(grip),
                "ES_REDIS": f"redis://127.0.0.1:{redis}/0",
            },
        )
        try:
            user = "from django.contrib.auth.models import User as U"
            pk = int(stack.run(f"{user}; print(U.objects.create_superuser('a').pk)"))
            with psycopg.connect(stack.env["ES_DB"], autocommit=True) as connection:
                connection.execute(MANY)
                for backlog, marks in BACKLOGS.items():
                    connection.execute("DELETE FROM eventstream_cursor")
                    for name, mark in zip(("bus", target), marks, strict=True):
                        connection.execute(CURSORS, {"target": name, "mark": mark})
                    connection.execute("ANALYZE")
                    printed = stack.run(EXPLAIN % QUICK)
                    found = json.loads(printed.partition("PLANS")[2])
                    for name, (count, plans) in found.items():
                        assert count <= 45, (backlog, name)
                        for query, plan in plans:
                            rows = _rows_read(plan)
                            # One partition's, where a filter finds nothing in it.
                            assert rows < 65_000, (backlog, name, rows, query[:2000])

                connection.execute("UPDATE eventstream_cursor SET watermark = 0")
            stack.start_web()
            office = Office(stack, stack.log_in(pk), target)
            page = office.open(browser, "landing")
            expect(page.locator(".es-head-line")).to_contain_text("1,000,000 events")
            page.context.close()
        finally:
            stack.close()
