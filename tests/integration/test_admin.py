"""The operators' admin."""

from __future__ import annotations

import datetime
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.contrib.admin import site
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client, RequestFactory
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from eventstream import EventState, jobs, send_event
from eventstream.admin import base, publishing
from eventstream.api import SentEvent, send_events
from eventstream.models import (
    Channel,
    Cursor,
    DeadLetter,
    Event,
    EventKind,
    Job,
    Partition,
)
from eventstream.rows import partition_of
from eventstream.specs import EventSpec
from eventstream.targets import get_targets
from eventstream.targets.grip import GripTarget

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "k" * 32
REFUSING = f"http://127.0.0.1:9/?key={KEY}"
EVENTS = "/admin/eventstream/event/"
CURSORS = "/admin/eventstream/cursor/"
CHANNELS = "/admin/eventstream/channel/"
LETTERS = "/admin/eventstream/deadletter/"
JOBS = "/admin/eventstream/job/"


class Proxy:
    """An HTTP server that records what is published, and answers as it is told."""

    def __init__(self) -> None:
        self.status = 200
        self.contents: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                items = json.loads(body)["items"]
                # What it is asked with whether it takes anything at all, it takes.
                is_probe = "%7Fprobe" in items[0]["channel"]
                status = 200 if is_probe and proxy.status == 400 else proxy.status
                if status == 200 and not is_probe:
                    for item in items:  # of one event or several
                        content = item["http-stream"]["content"]
                        proxy.contents += content.removesuffix("\n\n").split("\n\n")
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/?key={KEY}"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        for target in get_targets().values():
            target.close()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def proxy(settings: Settings) -> Iterator[Proxy]:
    """A proxy that is the only target."""
    found = Proxy()
    settings.GRIP_URL = found.url
    yield found
    found.close()


@pytest.fixture
def refusing(settings: Settings) -> str:
    """A target that takes no connection; its name."""
    settings.GRIP_URL = REFUSING
    return next(iter(get_targets()))


def staff(*permissions: str) -> Client:
    """Return the client of a staff user with these permissions of the app."""
    user = User.objects.create_user("staff", is_staff=True)
    chosen = Permission.objects.filter(
        content_type__app_label="eventstream", codename__in=permissions
    )
    assert len(chosen) == len(permissions)
    user.user_permissions.set(chosen)
    client = Client()
    client.force_login(user)
    return client


def shown(response: Any) -> list[Any]:
    """Return the primary keys on a list page."""
    assert response.status_code == 200
    return [row.pk for row in response.context["cl"].result_list]


def said(response: Any) -> list[str]:
    """Return the messages of a page."""
    return [str(message) for message in response.context["messages"]]


def act(client: Client, url: str, action: str, *keys: object) -> list[str]:
    """Run an action on rows; return the messages that follow."""
    data = {"action": action, "_selected_action": [str(key) for key in keys]}
    question = client.post(url, {**data, "index": "0"}, follow=True)
    if 'name="confirmed"' not in question.content.decode():
        return said(question)
    data["confirmed"] = "yes"
    response = client.post(url, {**data, "index": "0"}, follow=True)
    assert response.status_code == 200
    return said(response)


def send(channel: str = "orders", data: object = 1) -> Event:
    sent = send_event(channel, "message", data)
    return Event.objects.get(pk=sent.id or 0)


def state_of(event: Event) -> EventState:
    return SentEvent(event.pk, event.channel, "default").state()


# --- permissions


@pytest.mark.parametrize(
    "url", [EVENTS, CHANNELS, CURSORS, LETTERS, JOBS], ids=lambda url: url.split("/")[3]
)
def test_staff_without_view_permission_sees_no_list(url: str) -> None:
    client = staff()

    response = client.get(url)

    assert response.status_code == 403


def test_view_permission_shows_no_action(refusing: str) -> None:
    send()
    client = staff("view_event", "view_cursor")

    for url in (EVENTS, CURSORS):
        response = client.get(url)

        assert len(shown(response)) == 1
        assert response.context["action_form"] is None


def test_an_action_without_its_permission_does_nothing(refusing: str) -> None:
    event = send()
    client = staff("view_event", "view_cursor", "delete_event")
    before = Cursor.objects.get().attempts

    client.post(EVENTS, {"action": "publish", "_selected_action": [event.id]})
    client.post(CURSORS, {"action": "try_now", "_selected_action": [1], "index": 0})

    assert Cursor.objects.get().attempts == before


def test_publish_permission_shows_the_actions(refusing: str) -> None:
    send()
    client = staff("view_event", "view_cursor", "publish_event")

    events, cursors = client.get(EVENTS), client.get(CURSORS)

    assert _actions(events) == ["publish"]
    assert _actions(cursors) == ["try_now"]


def _actions(response: Any) -> list[str]:
    choices = response.context["action_form"].fields["action"].choices
    return [name for name, _ in choices if name]


@pytest.mark.parametrize(
    "url", [EVENTS, CHANNELS, CURSORS, LETTERS, JOBS], ids=lambda url: url.split("/")[3]
)
def test_nothing_can_be_added(admin_client: Client, url: str) -> None:
    response = admin_client.get(f"{url}add/")

    assert response.status_code == 403


def test_nothing_can_be_changed(admin_client: Client, refusing: str) -> None:
    send()
    jobs.republish("default")
    pages = {
        EVENTS: Event.objects.get().pk,
        CHANNELS: Channel.objects.get().pk,
        CURSORS: Cursor.objects.get().pk,
        JOBS: Job.objects.get().pk,
    }

    for url, key in pages.items():
        assert admin_client.get(f"{url}{key}/change/").status_code == 200
        response = admin_client.post(f"{url}{key}/change/", {"channel": "x"})

        assert response.status_code == 403


def test_deleting_an_event_is_refused_with_the_reason(admin_client: Client) -> None:
    event = send()

    page = admin_client.get(f"{EVENTS}{event.id}/delete/", follow=True)
    confirmed = admin_client.post(
        f"{EVENTS}{event.id}/delete/", {"post": "yes"}, follow=True
    )

    for response in (page, confirmed):
        assert "hole" in said(response)[0]
    assert Event.objects.filter(pk=event.id).exists()


def test_deleting_events_is_no_action(admin_client: Client) -> None:
    event = send()

    act(admin_client, f"{EVENTS}?state=all", "delete_selected", event.id)

    assert Event.objects.filter(pk=event.id).exists()


def test_a_user_who_may_not_view_is_not_told_why_not_to_delete() -> None:
    event = send()
    client = staff("delete_event")

    response = client.get(f"{EVENTS}{event.id}/delete/")

    assert response.status_code == 403


def test_deleting_a_channel_is_refused_with_the_reason(admin_client: Client) -> None:
    send("orders")

    response = admin_client.post(f"{CHANNELS}orders/delete/", follow=True)

    assert "begin again at 1" in said(response)[0]
    assert Channel.objects.filter(name="orders").exists()


# --- events


def test_the_list_shows_undelivered_events_first(
    admin_client: Client, proxy: Proxy
) -> None:
    send("orders")
    proxy.status = 503
    waiting = send("orders")
    unnumbered = Event.objects.create(channel="new", partition=0, type="t", data="1")

    response = admin_client.get(EVENTS)

    assert shown(response) == [unnumbered.pk, waiting.id]
    choices = list(
        response.context["cl"].filter_specs[0].choices(response.context["cl"])
    )
    assert [choice["display"] for choice in choices] == [
        "undelivered", "unnumbered", "confirmed", "dead", "all",
    ]  # fmt: skip
    assert [choice["selected"] for choice in choices] == [True, *[False] * 4]


@pytest.mark.parametrize("range_limit", [500, 0], ids=["by ranges", "by cursors"])
def test_each_state_can_be_filtered_and_is_named(
    admin_client: Client,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    range_limit: int,
) -> None:
    monkeypatch.setattr("eventstream.admin.events.RANGE_LIMIT", range_limit)
    proxy.status = 400
    dead = send("orders")
    proxy.status = 200
    confirmed = send("orders")
    proxy.status = 503
    waiting = send("orders")
    row = Event.objects.create(channel="new", partition=1, type="t", data="1")
    expected = {
        EventState.DEAD.value: [dead.id],
        EventState.CONFIRMED.value: [confirmed.id],
        EventState.UNDELIVERED.value: [row.pk, waiting.id],
        EventState.UNNUMBERED.value: [row.pk],
        "all": [row.pk, waiting.id, confirmed.id, dead.id],
        "no such state": [row.pk, waiting.id],
    }

    pages = {name: admin_client.get(EVENTS, {"state": name}) for name in expected}

    assert {name: shown(page) for name, page in pages.items()} == expected
    states = [row.delivery_state for row in pages["all"].context["cl"].result_list]
    assert states == [
        EventState.UNNUMBERED,
        state_of(waiting),
        state_of(confirmed),
        state_of(dead),
    ]


def test_an_event_is_undelivered_until_the_last_target_has_it(
    admin_client: Client, proxy: Proxy, settings: Settings
) -> None:
    settings.GRIP_PROXIES = [{"control_uri": "http://127.0.0.1:9", "key": KEY}]
    event = send()

    response = admin_client.get(EVENTS)

    assert shown(response) == [event.id]
    assert len(proxy.contents) == 1


def test_a_removed_targets_watermark_does_not_count(admin_client: Client) -> None:
    event = send()
    Cursor.objects.create(target="grip:old", partition=partition_of("orders"))

    response = admin_client.get(f"{EVENTS}?state=confirmed")

    assert shown(response) == [event.id]


def test_the_channel_is_searched_by_exact_prefix(
    admin_client: Client, refusing: str
) -> None:
    first, second, _ = send("room-1 a"), send("room-10"), send("a-room-1")
    new = Event.objects.create(channel="room-1x", partition=0, type="t", data="1")

    response = admin_client.get(EVENTS, {"q": "room-1"})
    with_space = admin_client.get(EVENTS, {"q": "room-1 a"})

    assert shown(response) == [new.pk, second.id, first.id]
    assert shown(with_space) == [first.id]


def test_a_prefix_of_very_many_channels_finds_all(
    admin_client: Client, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstream.admin.events.CHANNEL_LIMIT", 2)
    for number in range(4):
        send(f"room-{number}")

    response = admin_client.get(EVENTS, {"q": "room-"})

    assert len(shown(response)) == 4


@pytest.mark.parametrize(
    "page",
    [
        f"{EVENTS}?type=%00",
        f"{EVENTS}?state=all&channel=a%00b",
        f"{CURSORS}?target=%00",
        f"{LETTERS}?target=%00",
        f"{JOBS}?name=%00",
    ],
)
def test_filter_by_what_no_text_has_shows_all(admin_client: Client, page: str) -> None:
    answer = admin_client.get(page, follow=True)

    assert answer.status_code == 200
    assert answer.redirect_chain == [(f"{page.partition('?')[0]}?e=1", 302)]


def test_type_and_kind_are_filters(admin_client: Client, refusing: str) -> None:
    send_event("orders", "message", 1)
    paid = send_event("orders", "paid", 1)
    kick = Event.objects.create(
        kind=EventKind.KICK, channel="orders", partition=0, type="kick", data="7"
    )

    by_type = admin_client.get(EVENTS, {"type": "paid"})
    by_kind = admin_client.get(EVENTS, {"kind__exact": EventKind.KICK})
    unknown = admin_client.get(EVENTS, {"type": "nothing"})

    assert shown(by_type) == [paid.id]
    assert shown(by_kind) == [kick.pk]
    assert shown(unknown) == []


def test_a_page_costs_as_many_queries_for_60_events_as_for_one(
    admin_client: Client, refusing: str, django_assert_max_num_queries: Any
) -> None:
    send()
    with CaptureQueriesContext(connection) as one:
        shown(admin_client.get(EVENTS))
    specs = [EventSpec(f"room-{number}", "message", number) for number in range(59)]
    send_events(specs)

    with django_assert_max_num_queries(len(one)):
        response = admin_client.get(EVENTS)

    assert len(shown(response)) == 60
    assert len(one) <= 14


def test_a_list_is_not_counted_to_its_end(
    admin_client: Client, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "COUNT_LIMIT", 5)
    send_events([EventSpec("orders", "message", number) for number in range(8)])

    with CaptureQueriesContext(connection) as queries:
        response = admin_client.get(EVENTS, {"state": "all"})

    assert response.context["cl"].result_count == 5
    assert "of the first 5" in response.context["title"]
    counts = [q["sql"] for q in queries if "COUNT(" in q["sql"].upper()]
    assert len(counts) == 1
    assert "LIMIT 6" in counts[0]


def test_the_list_reads_no_more_of_the_data_than_it_shows(
    admin_client: Client, refusing: str
) -> None:
    send("orders", "x" * 5000)

    with CaptureQueriesContext(connection) as queries:
        response = admin_client.get(EVENTS)

    assert "x" * 79 + "…" in response.content.decode()
    assert "x" * 90 not in response.content.decode()
    read = [q["sql"].partition(" FROM ")[0] for q in queries]
    assert not [
        columns for columns in read if ', "eventstream_event"."data"' in columns
    ]


def test_data_is_escaped_and_whole_in_detail(
    admin_client: Client, refusing: str
) -> None:
    html = "<script>alert(1)</script>"
    data = html + "y" * 300
    event = send_event(f"{html}-channel", f"{html}-type", data, json_encode=False)

    pages = [
        admin_client.get(EVENTS),
        admin_client.get(f"{EVENTS}{event.id}/change/"),
        admin_client.get(CHANNELS),
        admin_client.get(f"{EVENTS}?type={html}-type"),
    ]

    for page in pages:
        assert html not in page.content.decode()
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page.content.decode()
    assert "y" * 300 in pages[1].content.decode()


def test_an_error_with_html_is_escaped(admin_client: Client, refusing: str) -> None:
    event = send()
    html = "<b>bad</b>"
    cursor = Cursor.objects.get()
    Cursor.objects.update(last_error=html)
    DeadLetter.objects.create(
        event_id=event.id, partition=cursor.partition, position=1, channel=html,
        target=html, error=html,
    )  # fmt: skip

    for url in (
        CURSORS,
        f"{CURSORS}{cursor.pk}/change/",
        LETTERS,
        f"{EVENTS}{event.id}/change/",
    ):
        text = admin_client.get(url).content.decode()

        assert html not in text
        assert "&lt;b&gt;bad" in text


def test_the_detail_page_shows_the_state_at_each_target(
    admin_client: Client, proxy: Proxy, settings: Settings
) -> None:
    settings.GRIP_PROXIES = [{"control_uri": "http://127.0.0.1:9", "key": KEY}]
    proxy.status = 400
    dead = send()
    proxy.status = 200
    waiting = send()
    failing, working = get_targets()

    dead_page = admin_client.get(f"{EVENTS}{dead.id}/change/").content.decode()
    waiting_page = admin_client.get(f"{EVENTS}{waiting.id}/change/").content.decode()

    assert f"{failing}: waiting; last error: " in dead_page
    assert f"<br>{working}: refused: " in dead_page
    assert f"<br>{working}: confirmed</div>" in waiting_page


def test_the_detail_page_tells_of_a_target_that_is_newer(
    admin_client: Client, settings: Settings
) -> None:
    event = send()
    without = admin_client.get(f"{EVENTS}{event.id}/change/").content.decode()
    settings.GRIP_URL = REFUSING

    page = admin_client.get(f"{EVENTS}{event.id}/change/").content.decode()

    assert "None is configured" in without
    assert "it is older than the target" in page


# --- publish now


def test_publish_now_reports_the_failure(admin_client: Client, refusing: str) -> None:
    event = send()

    messages = act(admin_client, EVENTS, "publish", event.id)

    partition = partition_of("orders")
    assert len(messages) == 1
    assert messages[0].startswith(f"{refusing}: failed in partition {partition}: ")
    assert "refused" in messages[0]
    assert Cursor.objects.get().attempts == 2


def test_publish_now_delivers_once_the_proxy_is_back(
    admin_client: Client, proxy: Proxy
) -> None:
    proxy.status = 503
    events = [send("orders", number) for number in range(3)]

    messages = act(admin_client, EVENTS, "publish", events[0].id)
    proxy.status = 200
    again = act(admin_client, EVENTS, "publish", *(event.id for event in events))

    name = next(iter(get_targets()))
    assert "503" in messages[0]
    assert again == [f"{name}: confirmed 3 events."]
    assert [content.split("data: ")[1].strip() for content in proxy.contents] == [
        "0", "1", "2",
    ]  # fmt: skip
    assert {state_of(event) for event in events} == {EventState.CONFIRMED}


def test_publish_now_tries_every_target(
    admin_client: Client, proxy: Proxy, settings: Settings
) -> None:
    settings.GRIP_PROXIES = [{"control_uri": "http://127.0.0.1:9", "key": KEY}]
    proxy.status = 503
    event = send()
    proxy.status = 200
    failing, working = get_targets()

    messages = act(admin_client, EVENTS, "publish", event.id)

    assert messages[0].startswith(f"{failing}: failed in ")
    assert messages[1:] == [f"{working}: confirmed 1 event."]


def test_publish_now_reports_what_is_refused_for_good(
    admin_client: Client, proxy: Proxy
) -> None:
    proxy.status = 503
    event = send()
    proxy.status = 400

    messages = act(admin_client, EVENTS, "publish", event.id)

    name = next(iter(get_targets()))
    assert messages == [f"{name}: refused 1 event for good; see the dead letters."]


def test_publish_now_reports_another_relay_at_work(
    admin_client: Client, refusing: str
) -> None:
    event = send()
    until = timezone.now() + datetime.timedelta(seconds=60)
    Cursor.objects.update(lease_token="another", lease_until=until)

    messages = act(admin_client, EVENTS, "publish", event.id)

    assert "busy" in messages[0]


def test_publish_now_without_targets_numbers(admin_client: Client) -> None:
    row = Event.objects.create(channel="new", partition=3, type="t", data="1")

    messages = act(admin_client, EVENTS, "publish", row.pk)

    row.refresh_from_db()
    assert row.eid == 1
    assert messages == ["No target is configured: numbered 1 event."]


def test_publish_now_of_events_delivered_meanwhile_says_so(
    admin_client: Client, proxy: Proxy
) -> None:
    event = send()

    undelivered = act(admin_client, EVENTS, "publish", event.id)
    everything = act(admin_client, f"{EVENTS}?state=all", "publish", event.id)

    name = next(iter(get_targets()))
    assert undelivered == ["These events do not wait any more."]
    assert everything == [f"{name}: nothing was waiting."]


def test_publish_now_of_all_pages_takes_every_partition(
    admin_client: Client, proxy: Proxy
) -> None:
    proxy.status = 503
    send_events([EventSpec(f"room-{n}", "message", n) for n in range(120)])
    proxy.status = 200

    first = Event.objects.earliest("pk").pk
    data = {"action": "publish", "select_across": "1", "_selected_action": first}
    data["confirmed"] = "yes"
    admin_client.post(EVENTS, {**data, "index": "0"})

    assert len(proxy.contents) == 120


def test_a_target_that_takes_too_long_is_given_up(
    admin_client: Client, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send("a"), send("b")
    assert partition_of("a") != partition_of("b")
    monkeypatch.setattr(publishing, "TARGET_SECONDS", 0)
    keys = Event.objects.values_list("pk", flat=True)

    messages = act(admin_client, EVENTS, "publish", *keys)

    assert "failed in partition" in messages[0]
    assert "not tried in partition" in messages[1]


def test_an_unexpected_error_is_reported(
    admin_client: Client, refusing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = send()

    def fail(*args: object) -> None:
        raise RuntimeError("what is this")

    monkeypatch.setattr(GripTarget, "publish", fail)
    messages = act(admin_client, EVENTS, "publish", event.id)

    assert "RuntimeError: what is this" in messages[0]
    assert Cursor.objects.get().lease_until is None


@pytest.mark.parametrize(("url", "action"), [(EVENTS, "publish"), (CURSORS, "try_now")])
def test_nothing_is_published_inside_a_transaction(
    admin_client: Client,
    refusing: str,
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    action: str,
) -> None:
    event = send()
    key = event.id if url == EVENTS else Cursor.objects.get().pk
    seen: list[bool] = []

    def record(*args: object) -> None:
        seen.append(connection.in_atomic_block)

    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)
    monkeypatch.setattr(GripTarget, "publish", record)
    act(admin_client, url, action, key)

    assert seen == [False]


# --- deliveries


def test_deliveries_show_the_troubled_first(
    admin_client: Client, refusing: str
) -> None:
    Partition.objects.bulk_create(
        [Partition(number=n, last_position=10) for n in range(4)]
    )
    fine, behind, further, failing = (
        Cursor.objects.create(target=refusing, partition=0, watermark=10),
        Cursor.objects.create(target=refusing, partition=1, watermark=9),
        Cursor.objects.create(target=refusing, partition=2, watermark=2),
        Cursor.objects.create(
            target=refusing, partition=3, watermark=10, failing_since=timezone.now()
        ),
    )

    response = admin_client.get(CURSORS)

    assert shown(response) == [failing.pk, further.pk, behind.pk, fine.pk]
    rows = response.context["cl"].result_list
    assert [row.behind for row in rows] == [0, 8, 1, 0]
    assert [row.head for row in rows] == [10] * 4


def test_deliveries_can_be_sorted_by_each_sortable_column(
    admin_client: Client, refusing: str
) -> None:
    send("a"), send("b")

    for column in range(1, 12):
        response = admin_client.get(CURSORS, {"o": f"-{column}"})

        assert len(shown(response)) == 2


def test_deliveries_show_the_state_of_the_lease(
    admin_client: Client, refusing: str
) -> None:
    now, minute = timezone.now(), datetime.timedelta(minutes=1)
    for partition, until in enumerate([None, now + minute, now - minute]):
        Cursor.objects.create(target="t", partition=partition, lease_until=until)

    text = admin_client.get(CURSORS).content.decode()

    for words in (">free<", ">held until ", ">expired "):
        assert text.count(words) == 1


def test_deliveries_cost_as_many_queries_for_60_rows_as_for_one(
    admin_client: Client, refusing: str, django_assert_max_num_queries: Any
) -> None:
    Cursor.objects.create(target=refusing, partition=0)
    with CaptureQueriesContext(connection) as one:
        shown(admin_client.get(CURSORS))
    Cursor.objects.bulk_create(
        [Cursor(target=refusing, partition=number) for number in range(1, 60)]
    )

    with django_assert_max_num_queries(len(one)):
        response = admin_client.get(CURSORS)

    assert len(shown(response)) == 60


def test_try_now_publishes_that_partition_to_that_target(
    admin_client: Client, proxy: Proxy
) -> None:
    proxy.status = 503
    send("a"), send("b")
    proxy.status = 200
    cursor = Cursor.objects.get(partition=partition_of("a"))

    messages = act(admin_client, CURSORS, "try_now", cursor.pk)

    assert messages == [f"{cursor.target}: confirmed 1 event."]
    assert len(proxy.contents) == 1


def test_try_now_of_a_removed_target_says_so(admin_client: Client) -> None:
    cursor = Cursor.objects.create(target="grip:old", partition=0)

    messages = act(admin_client, CURSORS, "try_now", cursor.pk)

    assert messages == ["grip:old is not in the settings: nothing is published there."]


def test_the_cursor_of_a_removed_target_can_be_deleted(
    admin_client: Client, refusing: str
) -> None:
    one, two = (Cursor.objects.create(target="old", partition=n) for n in range(2))

    response = admin_client.post(f"{CURSORS}{one.pk}/delete/", {"post": "yes"})
    page = admin_client.post(
        CURSORS, {"action": "delete_selected", "_selected_action": [two.pk]}
    )
    admin_client.post(
        CURSORS,
        {"action": "delete_selected", "_selected_action": [two.pk], "post": "yes"},
    )

    assert response.status_code == 302
    assert "Are you sure" in page.content.decode()
    assert not Cursor.objects.exists()


def test_the_cursor_of_a_configured_target_cannot_be_deleted(
    admin_client: Client, refusing: str
) -> None:
    send()
    cursor = Cursor.objects.get()

    response = admin_client.post(
        f"{CURSORS}{cursor.pk}/delete/", {"post": "yes"}, follow=True
    )
    messages = act(admin_client, CURSORS, "delete_selected", cursor.pk)

    assert f"{refusing} is still in the settings" in said(response)[0]
    assert f"{refusing} is still in the settings" in messages[0]
    assert Cursor.objects.filter(pk=cursor.pk).exists()


def test_of_selected_cursors_only_those_of_removed_targets_are_deleted(
    admin_client: Client, refusing: str
) -> None:
    send()
    kept = Cursor.objects.get()
    removed = Cursor.objects.create(target="old", partition=kept.partition)
    keys = [kept.pk, removed.pk]

    admin_client.post(
        CURSORS, {"action": "delete_selected", "_selected_action": keys, "post": "yes"}
    )

    assert list(Cursor.objects.all()) == [kept]


def test_deleting_a_cursor_needs_the_permission() -> None:
    cursor = Cursor.objects.create(target="old", partition=0)
    client = staff("view_cursor", "publish_event")

    response = client.post(f"{CURSORS}{cursor.pk}/delete/", {"post": "yes"})

    assert response.status_code == 403
    assert Cursor.objects.exists()


# --- channels, dead letters, jobs


def test_a_channels_page_shows_floor_and_stored_events(admin_client: Client) -> None:
    for number in range(5):
        send("a/b c", number)
    Event.objects.filter(eid__lte=2).delete()

    listed = admin_client.get(CHANNELS, {"q": "a/b c"})
    text = admin_client.get(
        f"{CHANNELS}a_2Fb c/change/"  # the admin's own quoting
    ).content.decode()

    assert shown(listed) == ["a/b c"]
    row = listed.context["cl"].result_list[0]
    admin: Any = site.get_model_admin(Channel)
    assert (admin.floor(row), admin.stored(row)) == (2, 3)
    assert "<dt>Floor</dt><dd>2 " in text
    assert "<dt>Stored</dt><dd>3 events</dd>" in text
    assert f'href="{EVENTS}?q=a%2Fb+c&amp;state=all"' in text


def test_channels_cost_as_many_queries_for_60_rows_as_for_one(
    admin_client: Client, django_assert_max_num_queries: Any
) -> None:
    Channel.objects.create(name="first", partition=0)
    with CaptureQueriesContext(connection) as one:
        shown(admin_client.get(CHANNELS))
    Channel.objects.bulk_create(
        [Channel(name=f"room-{number}", partition=0) for number in range(59)]
    )

    with django_assert_max_num_queries(len(one)):
        response = admin_client.get(CHANNELS)

    assert len(shown(response)) == 60


def test_a_dead_letter_leads_to_its_event(admin_client: Client, proxy: Proxy) -> None:
    proxy.status = 400
    event = send()
    letter = DeadLetter.objects.get()

    listed = admin_client.get(LETTERS).content.decode()
    detail = admin_client.get(f"{LETTERS}{letter.pk}/change/").content.decode()

    link = f'<a href="{EVENTS}{event.id}/change/">'
    for text in (listed, detail):
        assert link in text
        assert "400" in text
    assert admin_client.get(f"{EVENTS}{event.id}/change/").status_code == 200


def test_a_dead_letter_cannot_be_deleted(admin_client: Client, proxy: Proxy) -> None:
    proxy.status = 400
    send()
    letter = DeadLetter.objects.get()

    response = admin_client.post(f"{LETTERS}{letter.pk}/delete/", {"post": "yes"})

    assert response.status_code == 403


def test_jobs_that_never_ran_are_named(admin_client: Client) -> None:
    before = said(admin_client.get(JOBS))
    jobs.republish("default")
    jobs.prune("default")

    after = said(admin_client.get(JOBS))

    assert [text.partition(" ")[0] for text in before] == ["republish", "prune"]
    assert after == []


@pytest.mark.parametrize(
    ("finished", "leased", "is_overdue"),
    [
        (10, None, False),
        (301, None, True),
        (None, None, True),
        (None, 60, False),
        (301, 60, True),
    ],
    ids=["lately", "long ago", "never finished", "running", "killed each time"],
)
def test_a_job_is_overdue_when_it_has_not_finished_lately(
    admin_client: Client,
    finished: int | None,
    leased: int | None,
    is_overdue: bool,
) -> None:
    def seconds(number: int | None) -> datetime.datetime | None:
        if number is None:
            return None
        return timezone.now() + datetime.timedelta(seconds=number)

    Job.objects.create(
        name=Job.REPUBLISH,
        finished_at=seconds(finished and -finished),
        lease_until=seconds(leased),
    )

    response = admin_client.get(JOBS)

    assert [row.overdue for row in response.context["cl"].result_list] == [is_overdue]
    assert (">overdue<" in response.content.decode()) is is_overdue


# --- several databases


def test_the_admin_shows_the_first_outbox(
    rf: RequestFactory, settings: Settings
) -> None:
    settings.EVENTSTREAM_DATABASES = ["other", "default"]
    request = rf.get("/")

    admins = [
        site.get_model_admin(m) for m in (Event, Channel, Cursor, DeadLetter, Job)
    ]

    assert {a.get_queryset(request).db for a in admins} == {"other"}
