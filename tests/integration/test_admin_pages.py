"""The operators' pages and what their buttons do: permission, question, action, history."""

from __future__ import annotations

import asyncio
import json
import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.contrib.sessions.models import Session
from django.db import connection
from django.http import HttpRequest
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.utils.deprecation import MiddlewareMixin
from pytest_django import Settings

from eventstream import EventSpec, holders, jobs, send_event, send_events
from eventstream.models import (
    Channel,
    Cursor,
    DeadLetter,
    Event,
    Partition,
    PausedTarget,
    Sample,
)
from eventstream.pausing import pause_target
from eventstream.relay import relay_all
from eventstream.storage import get_storage
from tests.support.targets import RecordingTarget, relay_now

pytestmark = pytest.mark.django_db(transaction=True)

INDEX = "/admin/eventstream/"
UNDELIVERED = f"{INDEX}undeliveredevent/"
ACT = f"{UNDELIVERED}act/"
OVERVIEW = f"{INDEX}sample/"
TARGETS = f"{INDEX}pausedtarget/"
TARGET_ACT = f"{TARGETS}act/"
CHANNELS = f"{INDEX}channel/"

Targets = dict[str, RecordingTarget]


def staff(*permissions: str) -> Client:
    """Return the client of a staff user with these permissions of the app."""
    user = User.objects.create_user("ann", is_staff=True)
    chosen = Permission.objects.filter(
        content_type__app_label="eventstream", codename__in=permissions
    )
    assert len(chosen) == len(permissions)
    user.user_permissions.set(chosen)
    client = Client()
    client.force_login(user)
    return client


class KnownByHeader(MiddlewareMixin):
    """Authentication by something other than the session."""

    def process_request(self, request: HttpRequest) -> None:
        request.user = User.objects.get(username=request.headers["x-user"])


def said(response: Any) -> list[str]:
    return [str(message) for message in response.context["messages"]]


def press(client: Client, action: str, *items: str, **fields: str) -> list[str]:
    """Press a button of the list and say yes; return the messages that follow."""
    data = {"action": action, "item": list(items), **fields}
    question = client.post(ACT, data)
    assert question.status_code == 200
    assert "Yes, " in question.content.decode()
    answer = client.post(ACT, {**data, "confirmed": "yes"}, follow=True)
    assert answer.redirect_chain[0][0].startswith(UNDELIVERED)
    return said(answer)


def press_target(client: Client, action: str, target: str, **fields: str) -> list[str]:
    data = {"action": action, "target": target, **fields}
    question = client.get(TARGET_ACT, data)
    assert question.status_code == 200
    assert "Yes, " in question.content.decode()
    return said(client.post(TARGET_ACT, {**data, "confirmed": "yes"}, follow=True))


def stuck(targets: Targets, count: int = 1) -> list[Event]:
    """Send events that target "a" does not take."""
    targets["a"].is_down = True
    send_events([EventSpec("orders", "message", n) for n in range(count)])
    relay_all("default")
    return list(Event.objects.order_by("pk"))


def history() -> list[tuple[str, str]]:
    """Return (object, message) of the admin's history, the newest first."""
    entries = LogEntry.objects.order_by("-pk")
    return [(entry.object_repr, entry.get_change_message()) for entry in entries]


# --- permissions


@pytest.mark.parametrize("url", [UNDELIVERED, OVERVIEW, TARGETS, CHANNELS])
def test_page_needs_its_view_permission(url: str) -> None:
    assert staff().get(url).status_code == 403


@pytest.mark.parametrize("name", ["status", "stream", "series"])
def test_what_pages_load_needs_a_view_permission(name: str) -> None:
    assert staff().get(f"{OVERVIEW}{name}/?hours=1").status_code == 403


def test_index_of_the_app_begins_with_undelivered_events(targets: Targets) -> None:
    stuck(targets)

    page = staff("view_event").get(INDEX).content.decode()

    assert "1 event has not reached every target" in page
    assert "a is down" in page


def test_index_shows_no_events_to_whoever_may_not_view_them(targets: Targets) -> None:
    stuck(targets)

    page = staff("view_job").get(INDEX)

    assert page.status_code == 200
    assert "a is down" not in page.content.decode()


def test_viewer_sees_no_button(targets: Targets) -> None:
    stuck(targets)
    client = staff("view_event", "view_pausedtarget", "view_sample")

    for url in (UNDELIVERED, OVERVIEW, TARGETS, f"{TARGETS}a/change/"):
        page = client.get(url).content.decode()

        assert 'name="action"' not in page
        assert 'name="item"' not in page
        assert "act/?" not in page


@pytest.mark.parametrize(
    ("permission", "buttons"),
    [("publish_event", ["publish", "retry"]), ("give_up_event", ["give_up"])],
)
def test_button_needs_its_permission(
    targets: Targets, permission: str, buttons: list[str]
) -> None:
    stuck(targets)

    page = staff("view_event", permission).get(UNDELIVERED).content.decode()

    shown = [x for x in ("publish", "retry", "give_up") if f'value="{x}"' in page]
    assert shown == buttons


@pytest.mark.parametrize(
    ("action", "held"),
    [
        ("publish", "give_up_event"),
        ("retry", "give_up_event"),
        ("give_up", "publish_event"),
    ],
)
def test_forged_action_on_events_is_refused(
    targets: Targets, action: str, held: str
) -> None:
    [event] = stuck(targets)
    targets["a"].is_down = False
    client = staff("view_event", "view_pausedtarget", "pause_target", held)

    data = {"action": action, "item": [f"{event.pk}:a"], "confirmed": "yes"}
    response = client.post(ACT, data)

    assert response.status_code == 403
    assert targets["a"].received == []
    assert not DeadLetter.objects.exists()
    assert history() == []


@pytest.mark.parametrize(
    ("action", "held"),
    [
        ("publish", "pause_target"),
        ("pause", "publish_event"),
        ("resume", "publish_event"),
    ],
)
def test_forged_action_on_a_target_is_refused(
    targets: Targets, action: str, held: str
) -> None:
    stuck(targets)
    targets["a"].is_down = False
    if action == "resume":
        pause_target("default", "a")
    client = staff("view_event", "view_pausedtarget", "give_up_event", held)

    data = {"action": action, "target": "a", "confirmed": "yes"}
    response = client.post(TARGET_ACT, data)

    assert response.status_code == 403
    assert targets["a"].received == []
    assert PausedTarget.objects.exists() == (action == "resume")


def test_actions_need_the_csrf_token(targets: Targets) -> None:
    [event] = stuck(targets)
    client = Client(enforce_csrf_checks=True)
    client.force_login(User.objects.create_superuser("root"))

    data = {"action": "publish", "item": [f"{event.pk}:a"], "confirmed": "yes"}

    assert client.post(ACT, data).status_code == 403
    assert client.post(TARGET_ACT, {**data, "target": "a"}).status_code == 403


def test_a_link_alone_does_nothing(admin_client: Client, targets: Targets) -> None:
    data = {"action": "pause", "target": "a", "confirmed": "yes"}

    page = admin_client.get(TARGET_ACT, data)

    assert page.status_code == 200
    assert not PausedTarget.objects.exists()


# --- actions on events


def test_publish_now(admin_client: Client, targets: Targets) -> None:
    one, two = stuck(targets, 2)
    targets["a"].is_down = False

    messages = press(admin_client, "publish", f"{two.pk}:a")

    assert messages == ["a: confirmed 2 events."]  # in order: what is before it, too
    assert targets["a"].ids("orders") == [1, 2]
    assert history() == [("orders:2", "Published at an operator's request: a")]
    page = admin_client.get(f"{INDEX}event/{two.pk}/history/").content.decode()
    assert "Published at an operator" in page
    assert one.pk != two.pk


def test_retry_publishes_a_dead_letter(admin_client: Client, targets: Targets) -> None:
    targets["a"].poison = {"1"}
    send_events([EventSpec("orders", "message", n) for n in range(2)])
    relay_all("default")
    targets["a"].poison = set()
    event = Event.objects.get(eid=2)

    messages = press(admin_client, "retry", f"{event.pk}:a")

    assert messages == ["a: accepted 1 event."]
    assert targets["a"].ids("orders") == [1, 2]
    assert not DeadLetter.objects.exists()
    assert history() == [("orders:2", "Retried: a")]


def test_retry_says_what_readers_have_had_already(
    admin_client: Client, targets: Targets
) -> None:
    targets["a"].poison = {"0"}
    send_events([EventSpec("orders", "message", n) for n in range(2)])
    relay_all("default")

    messages = press(admin_client, "retry", f"{Event.objects.get(eid=1).pk}:a")

    assert "readers have had them from the log" in messages[0]
    assert targets["a"].ids("orders") == [2]


def test_retry_of_what_is_not_dead_says_so(
    admin_client: Client, targets: Targets
) -> None:
    [event] = stuck(targets)

    messages = press(admin_client, "retry", f"{event.pk}:a")

    assert messages == [
        "None of these is a dead letter (any more): nothing was retried."
    ]


def test_give_up_lets_the_rest_go_on(admin_client: Client, targets: Targets) -> None:
    poison, _ = stuck(targets, 2)
    targets["a"].is_down = False

    messages = press(admin_client, "give_up", f"{poison.pk}:a", reason=" it is\nbad ")
    press_target(admin_client, "publish", "a")

    assert messages == ["1 event was given up. Its readers get it from the log."]
    assert targets["a"].ids("orders") == [2]
    assert DeadLetter.objects.get().error == "Given up by admin: it is bad"
    assert ("orders:1", "Given up (it is bad): a") in history()


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ("1;DROP:a", "is not an event of this list"),
        ("999999999999999999999999:a", "is not an event of this list"),
        ("", "is not an event of this list"),
        ("4711:a", "Event 4711 is not stored"),
        ("1:gone", "gone is not in the settings"),
    ],
)
def test_forged_event_gets_a_clear_message(
    admin_client: Client, targets: Targets, item: str, words: str
) -> None:
    response = admin_client.post(
        ACT, {"action": "publish", "item": [item], "confirmed": "yes"}, follow=True
    )

    assert words in said(response)[0]


def test_action_without_events_or_of_no_name_says_so(
    admin_client: Client, targets: Targets
) -> None:
    nothing = admin_client.post(ACT, {"action": "publish"}, follow=True)
    unknown = admin_client.post(ACT, {"action": "explode"}, follow=True)
    read = admin_client.get(ACT, follow=True)

    assert "Nothing was chosen" in said(nothing)[0]
    assert "no action 'explode'" in said(unknown)[0]
    assert "no action" in said(read)[0]


def test_filters_come_back_after_an_action(
    admin_client: Client, targets: Targets
) -> None:
    [event] = stuck(targets)
    data = {
        "action": "publish", "item": [f"{event.pk}:a"], "confirmed": "yes",
        "query": "q=ord&order=newest&next=//evil.example",
    }  # fmt: skip

    response = admin_client.post(ACT, data)

    assert response["Location"] == f"{UNDELIVERED}?q=ord&order=newest"


# --- the list


def test_filters_that_make_no_sense_are_named(
    admin_client: Client, targets: Targets
) -> None:
    stuck(targets)
    query = {"target": "<b>", "state": "odd", "age": "7", "from": "x", "q": "a\0b"}

    page = admin_client.get(UNDELIVERED, query).content.decode()

    assert "There is no target &#x27;&lt;b&gt;&#x27;" in page
    assert "There is no state" in page
    assert "is no age to choose" in page


def test_payload_is_escaped_and_cut(admin_client: Client, targets: Targets) -> None:
    targets["a"].is_down = True
    html = "<script>alert(1)</script>"
    send_event(f"{html}c", f"{html}t", html + "x" * 500, json_encode=False)
    relay_all("default")

    page = admin_client.get(UNDELIVERED).content.decode()

    assert html not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;c" in page
    assert "x" * 120 not in page


def test_error_of_a_target_is_escaped_in_the_panel(
    admin_client: Client, targets: Targets
) -> None:
    stuck(targets)
    Cursor.objects.filter(target="a").update(last_error="<b>`<i>`</b>")

    page = admin_client.get(UNDELIVERED).content.decode()

    assert "<i>" not in page
    assert "&lt;b&gt;`&lt;i&gt;`" in page


def test_list_can_be_paged(admin_client: Client, targets: Targets) -> None:
    stuck(targets, 60)

    first = admin_client.get(UNDELIVERED).content.decode()
    second = admin_client.get(UNDELIVERED, {"from": "50"}).content.decode()

    assert "Events 1 to 50, the oldest first." in first
    assert "60 waiting and 0 dead letters" in first
    assert 'href="?from=50"' in first
    assert "Events 51 to 60" in second
    assert 'rel="next"' not in second


def test_list_costs_as_many_queries_for_60_events_as_for_one(
    admin_client: Client, targets: Targets
) -> None:
    stuck(targets)
    with CaptureQueriesContext(connection) as one:
        admin_client.get(UNDELIVERED)
    send_events([EventSpec("orders", "message", n) for n in range(59)])
    relay_now("default")

    with CaptureQueriesContext(connection) as many:
        admin_client.get(UNDELIVERED)

    assert len(many) <= len(one) <= 32


# --- targets


def test_pause_and_resume(admin_client: Client, targets: Targets) -> None:
    paused = press_target(admin_client, "pause", "a", reason="mending")
    send_event("orders", "message", 1)
    relay_all("default")
    page = admin_client.get(TARGETS).content.decode()
    resumed = press_target(admin_client, "resume", "a")
    relay_all("default")

    assert paused == ["a is paused. What is sent to it from now on waits."]
    assert "mending (admin)" in page
    assert resumed == ["a is resumed, and gets what waits for it."]
    assert targets["a"].ids("orders") == [1]
    assert history() == [("a", "Resumed"), ("a", "Paused: mending")]
    log = admin_client.get(f"{TARGETS}a/history/").content.decode()
    assert "Paused: mending" in log


def test_pausing_twice_and_resuming_what_is_not_paused_are_told(
    admin_client: Client, targets: Targets
) -> None:
    press_target(admin_client, "pause", "a", reason="first")

    again = press_target(admin_client, "pause", "a", reason="second")
    other = press_target(admin_client, "resume", "b")

    assert again == ["a was paused already; its reason stays."]
    assert other == ["b was not paused."]
    assert PausedTarget.objects.get().reason == "first (admin)"


def test_nothing_is_published_to_a_paused_target(
    admin_client: Client, targets: Targets
) -> None:
    [event] = stuck(targets)
    targets["a"].is_down = False
    pause_target("default", "a", reason="mending")

    messages = press(admin_client, "publish", f"{event.pk}:a")

    assert messages[0].startswith("Nothing was published: a is paused since ")
    assert "Resume it first." in messages[0]
    assert targets["a"].received == []


@pytest.mark.parametrize("action", ["publish", "pause", "resume"])
def test_target_that_left_the_settings_gets_a_clear_message(
    admin_client: Client, targets: Targets, action: str
) -> None:
    data = {"action": action, "target": "grip:gone", "confirmed": "yes"}

    response = admin_client.post(TARGET_ACT, data, follow=True)

    assert "'grip:gone' is not a target of the settings" in said(response)[0]


def test_removed_target_can_be_resumed(admin_client: Client, targets: Targets) -> None:
    Cursor.objects.create(target="old", partition=1)
    pause_target("default", "old")

    messages = press_target(admin_client, "resume", "old")

    assert messages == ["old is resumed, and gets what waits for it."]


def test_unknown_action_and_target_page_are_told(
    admin_client: Client, targets: Targets
) -> None:
    action = admin_client.post(TARGET_ACT, {"action": "explode"}, follow=True)
    page = admin_client.get(f"{TARGETS}nobody/change/", follow=True)

    assert "no action 'explode'" in said(action)[0]
    assert "There is no target 'nobody'" in said(page)[0]


def test_target_page_shows_its_troubled_partitions(
    admin_client: Client, targets: Targets
) -> None:
    stuck(targets, 3)

    page = admin_client.get(f"{TARGETS}a/change/").content.decode()

    assert "3 events, the oldest for" in page
    assert "a is down" in page
    assert "Partitions that are behind or failing" in page


def test_no_target_is_told(admin_client: Client, targets: Targets) -> None:
    targets.clear()

    assert "No target is configured" in admin_client.get(TARGETS).content.decode()


def test_buttons_work_where_numbers_are_grouped(
    admin_client: Client, targets: Targets, settings: Settings
) -> None:
    settings.LANGUAGE_CODE = "de"
    settings.USE_THOUSAND_SEPARATOR = True
    Event(id=1_234_567, channel="orders", partition=3, type="message", data="1").save()
    page = admin_client.get(UNDELIVERED).content.decode()

    items = re.findall(r'name="item" value="([^"]*)"', page)
    said = press(admin_client, "publish", items[0])

    assert items == ["1234567:a", "1234567:b"]
    assert 'data-es-event="1234567"' in page
    assert targets["a"].received == [("orders", 1, "1")], said


def test_no_attribute_is_written_as_a_number_is_read(
    admin_client: Client, targets: Targets, settings: Settings
) -> None:
    settings.LANGUAGE_CODE = "de"
    settings.USE_THOUSAND_SEPARATOR = True
    number = 1_234_567
    Partition.objects.update_or_create(number=3, defaults={"start_eid": number - 1})
    Event(id=number, channel="orders", partition=3, type="message", data="1").save()
    get_storage().number_all("default", 3)
    for name in targets:
        Cursor.objects.create(target=name, partition=3, attempts=number)
    DeadLetter.objects.create(
        event_id=number, partition=3, position=1, channel="orders", eid=number,
        target="a", error="why",
    )  # fmt: skip
    jobs.republish("default")
    urls = [
        INDEX, UNDELIVERED, OVERVIEW, TARGETS, f"{TARGETS}a/change/", CHANNELS,
        f"{CHANNELS}orders/change/", f"{INDEX}event/?state=all",
        f"{INDEX}event/{number}/change/", f"{INDEX}deadletter/", f"{INDEX}cursor/",
    ]  # fmt: skip
    data = {"action": "give_up", "item": f"{number}:b"}

    pages = [admin_client.get(url) for url in urls] + [admin_client.post(ACT, data)]

    texts = [page.content.decode() for page in pages]
    assert any(">1.234.567<" in text for text in texts)
    for url, page, text in zip([*urls, ACT], pages, texts, strict=True):
        assert page.status_code == 200, url
        assert re.findall(r'[\w-]+="[^"]*1[.,]234[^"]*"', text) == [], url


# --- overview


def test_overview_says_what_to_start(admin_client: Client, targets: Targets) -> None:
    stuck(targets)

    page = admin_client.get(OVERVIEW).content.decode()

    assert "No sweep has ever run" in page
    assert "Next step:" in page
    assert "<script>" not in page.replace('<script src="', "")


def test_overview_without_target_or_beat_says_what_sweeps(admin_client: Client) -> None:
    page = admin_client.get(OVERVIEW).content.decode()

    assert "Sweep, by relay" in page
    assert "Keep <code>python manage.py eventstream relay</code> running" in page


def test_status_is_what_the_panel_shows(admin_client: Client, targets: Targets) -> None:
    stuck(targets)

    state = admin_client.get(f"{OVERVIEW}status/").json()

    assert state["level"] == "error"
    assert "1 event has not reached every target" in state["html"]
    assert "Dead letters" in state["parts"]


def test_series_are_columns(admin_client: Client, targets: Targets) -> None:
    stuck(targets)
    jobs.republish("default")
    sample = Sample.objects.get()
    Sample.objects.create(
        minute=sample.minute.replace(minute=(sample.minute.minute - 1) % 60),
        event_count=0,
        targets={},
    )

    data = admin_client.get(f"{OVERVIEW}series/", {"hours": "24"}).json()
    wrong = admin_client.get(f"{OVERVIEW}series/", {"hours": "<b>"})

    assert set(data) == {"at", "events", "oldest", "readers", "targets"}
    assert wrong.status_code == 400
    assert "hours must be one of 1, 24" in json.loads(wrong.content)["error"]


def test_stream_under_wsgi_says_that_it_cannot(
    admin_client: Client, targets: Targets
) -> None:
    response = admin_client.get(f"{OVERVIEW}stream/")

    assert response.status_code == 501
    assert "cannot stream" in response.content.decode()


def log_out(client: AsyncClient, user: User) -> None:
    client.logout()


def end_sessions(client: AsyncClient, user: User) -> None:
    Session.objects.all().delete()


def change_password(client: AsyncClient, user: User) -> None:
    user.set_password("another")
    user.save()


def deactivate(client: AsyncClient, user: User) -> None:
    User.objects.update(is_active=False)


@pytest.mark.parametrize("end", [log_out, end_sessions, change_password, deactivate])
async def test_stream_of_the_overview_ends_with_the_session(
    targets: Targets,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[AsyncClient, User], None],
) -> None:
    monkeypatch.setattr("eventstream.admin.overview.REFRESH_SECONDS", 0)
    user = await sync_to_async(User.objects.create_superuser)("ann", password="one")
    client = AsyncClient()
    await client.aforce_login(user)
    response: Any = await client.get(f"{OVERVIEW}stream/")
    looks = aiter(response.streaming_content)
    before = [await anext(looks) for _ in range(3)]

    await sync_to_async(end)(client, user)

    assert all(b"event: status" in text for text in before)
    async with asyncio.timeout(10):
        after = [text async for text in looks]
    assert b'"condition": "forbidden"' in after[-1]


async def test_stream_of_the_overview_needs_no_session_of_the_user(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """A project may know its users by something else, such as a header."""
    monkeypatch.setattr("eventstream.admin.overview.REFRESH_SECONDS", 0)
    await sync_to_async(User.objects.create_superuser)("ann")
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.{KnownByHeader.__name__}"]

    response: Any = await AsyncClient().get(
        f"{OVERVIEW}stream/", headers={"x-user": "ann"}
    )

    looks = aiter(response.streaming_content)
    for _ in range(2):
        assert b"event: status" in await anext(looks)


async def test_stream_of_the_overview_is_not_compressed(
    targets: Targets, settings: Settings
) -> None:
    """Each look would be a file of its own, and browsers read the first."""
    gzip = "django.middleware.gzip.GZipMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, gzip]
    user = await sync_to_async(User.objects.create_superuser)("ann")
    client = AsyncClient()
    await client.aforce_login(user)

    response: Any = await client.get(
        f"{OVERVIEW}stream/", headers={"Accept-Encoding": "gzip"}
    )

    assert response.streaming
    assert "Content-Encoding" not in response


# --- channels


def test_channel_page_shows_the_lag_of_each_target(
    admin_client: Client, targets: Targets
) -> None:
    stuck(targets, 3)

    response = admin_client.get(f"{CHANNELS}orders/change/")

    assert response.context["lags"] == [
        {"target": "a", "count": 3, "is_more": False},
        {"target": "b", "count": 0, "is_more": False},
    ]


def test_channel_that_is_none_gets_a_clear_message(
    admin_client: Client, targets: Targets
) -> None:
    response = admin_client.get(f"{CHANNELS}nothing/change/", follow=True)

    assert "There is no channel 'nothing'" in said(response)[0]
    assert not Channel.objects.exists()


def test_viewers_of_nothing_but_events_see_no_other_tab(targets: Targets) -> None:
    page = staff("view_event").get(UNDELIVERED).content.decode()

    assert f'href="{TARGETS}"' not in page
    assert f'href="{UNDELIVERED}" aria-current="page"' in page


def test_settings_of_atomic_requests_do_not_reach_the_relay(
    admin_client: Client,
    targets: Targets,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
) -> None:
    [event] = stuck(targets)
    targets["a"].is_down = False
    seen: list[bool] = []
    targets["a"].before = lambda: seen.append(connection.in_atomic_block)
    monkeypatch.setitem(connection.settings_dict, "ATOMIC_REQUESTS", True)

    press(admin_client, "publish", f"{event.pk}:a")

    assert seen == [False]


# --- the lists' own actions


@pytest.mark.parametrize(
    ("model", "action"),
    [("event", "publish"), ("cursor", "try_now"), ("deadletter", "retry")],
)
def test_action_of_a_list_asks_first_and_is_in_the_history(
    admin_client: Client, targets: Targets, model: str, action: str
) -> None:
    targets["a"].poison = {"1"}
    send_events([EventSpec("orders", "message", n) for n in range(2)])
    relay_all("default")
    targets["a"].poison = set()
    rows = {"event": Event, "cursor": Cursor, "deadletter": DeadLetter}[model]
    key = rows.objects.latest("pk").pk  # type: ignore[attr-defined]
    url = f"{INDEX}{model}/?{'state=all' if model == 'event' else ''}"
    data = {"action": action, "_selected_action": [key], "index": "0"}

    question = admin_client.post(url, data)
    before = history()
    answer = admin_client.post(url, {**data, "confirmed": "yes"}, follow=True)

    assert "Yes, " in question.content.decode()
    assert before == []
    assert len(said(answer)) >= 1
    assert len(history()) == 1
    assert DeadLetter.objects.exists() == (action != "retry")


def test_list_action_needs_its_permission(targets: Targets) -> None:
    targets["a"].poison = {"1"}
    send_events([EventSpec("orders", "message", n) for n in range(2)])
    relay_all("default")
    client = staff("view_deadletter")
    key = DeadLetter.objects.get().pk
    data = {"action": "retry", "_selected_action": [key], "confirmed": "yes"}

    client.post(f"{INDEX}deadletter/", {**data, "index": "0"})

    assert DeadLetter.objects.exists()


def test_payload_is_shown_as_indented_json_and_cut(
    admin_client: Client, targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstream.admin.events.PAYLOAD_LENGTH", 100)
    send_event("orders", "message", {"a": "<b>"})
    send_event("orders", "message", "y" * 300, json_encode=False)
    short, long = Event.objects.order_by("pk")

    pages = [
        admin_client.get(f"{INDEX}event/{event.pk}/change/").content.decode()
        for event in (short, long)
    ]

    assert "<pre>{\n  &quot;a&quot;: &quot;&lt;b&gt;&quot;\n}</pre>" in pages[0]
    assert (
        f"<pre>{'y' * 100}</pre>The first 100 characters; 300 are stored." in pages[1]
    )


@pytest.mark.parametrize("data", ["\ud800", "é" * 40 + "\udfff"])
def test_payload_that_no_page_can_hold_is_shown_as_json_has_it(
    targets: Targets, admin_client: Client, data: str
) -> None:
    """Half of a pair is no text, but a client's JSON may have one."""
    event = send_event("orders", "message", {"a": data})

    page = admin_client.get(f"{INDEX}event/{event.id}/change/").content.decode()

    shown = data.encode(errors="backslashreplace").decode()
    assert f"&quot;a&quot;: &quot;{shown}&quot;" in page


def test_payload_that_is_long_when_indented_is_indented_no_further_than_shown(
    targets: Targets, admin_client: Client
) -> None:
    """Of a quarter of a megabyte, 80 MB were made."""
    deep = "[" * 300 + "0," * 130_000 + "0" + "]" * 300
    event = send_event("orders", "message", deep, json_encode=False)

    tracemalloc.start()
    try:
        page = admin_client.get(f"{INDEX}event/{event.id}/change/").content.decode()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most < 30_000_000
    assert "<pre>[\n  [\n    [" in page
    assert f"The first 20,000 characters; {len(deep):,} are stored." in page


def test_event_waits_for_the_partition_that_tries_its_target(
    targets: Targets, admin_client: Client
) -> None:
    stuck(targets)
    send_event("another", "message", 1)
    relay_all("default")

    page = admin_client.get(UNDELIVERED, {"q": "another"}).content.decode()

    assert "failing" in page
    assert "a is down" in page


@pytest.mark.parametrize(
    ("addresses", "count", "words"),
    [
        ({}, None, "To count its readers, set"),
        ({"http://pushpin:5561": "http://pushpin:7998/metrics"}, None, "has had no answer"),
        ({"http://pushpin:5561": "http://pushpin:7998/metrics"}, 1, "1 reader."),
    ],
)  # fmt: skip
def test_overview_says_how_a_proxys_readers_come_to_be_known(
    admin_client: Client,
    settings: Settings,
    addresses: dict[str, str],
    count: int | None,
    words: str,
) -> None:
    settings.GRIP_URL = "http://pushpin:5561/?key=" + "k" * 32
    settings.EVENTSTREAM_PROXY_METRICS = addresses
    if count is not None:
        holders.report("grip:http://pushpin:5561", stream_count=count, readers={})

    page = admin_client.get("/admin/eventstream/sample/").content.decode()

    assert words in page
    assert ("those of 1 proxy are not counted" in page) == (count is None)
