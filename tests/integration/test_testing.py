"""The test client, in every kind of test that applications have."""

from __future__ import annotations

import time
import warnings
from collections.abc import AsyncIterator
from typing import Any
from unittest import mock

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import User
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connections, transaction
from django.test import TestCase, TransactionTestCase, override_settings

from eventstream import (
    EventSpec,
    achannel_permission_changed,
    aget_current_event_id,
    asend_event,
    asend_events,
    make_subscribe_token,
    send_event,
    send_events,
)
from eventstream.channelmanager import DefaultChannelManager, InitialState
from eventstream.models import Event, EventKind
from eventstream.testing import EventStreamTestClient

READ = "/events/?channel=orders"
IDLE = "tests.support.targets.IdleDispatcher"


def place_orders() -> None:
    with transaction.atomic():
        send_event("orders", "message", {"item": "tea"})
        send_event("log", "line", "as it is", json_encode=False)
        send_event("live-x", "cursor", [1, 2])
        try:
            with transaction.atomic():
                send_event("orders", "message", "never")
                send_event("live-x", "cursor", "never")
                raise LookupError
        except LookupError:
            pass
        send_event("orders", "done", 1)


def check_orders(client: EventStreamTestClient) -> None:
    client.assert_sent("orders", ("message", {"item": "tea"}), ("done", mock.ANY))
    client.assert_sent("log", ("line", "as it is"))
    client.assert_sent("live-x", ("cursor", [1, 2]))
    client.assert_nothing_sent("other")
    assert [event.event_id for event in client.events("orders")] == [1, 2]
    assert [event.event_id for event in client.events("live-x")] == [None]


@override_settings(EVENTSTREAM_DISPATCHER=IDLE)
class InTestCase(TestCase):
    def test_sees_what_was_sent(self) -> None:
        client = EventStreamTestClient()
        place_orders()
        check_orders(client)

    def test_sees_it_once_where_the_commit_is_played(self) -> None:
        client = EventStreamTestClient()
        with self.captureOnCommitCallbacks(execute=True):
            place_orders()
        check_orders(client)

    def test_sees_only_what_came_after_it(self) -> None:
        place_orders()
        client = EventStreamTestClient()
        client.assert_nothing_sent()
        send_event("orders", "message", 2)
        client.assert_sent("orders", ("message", 2))

    async def test_sees_what_async_code_sends(self) -> None:
        client = await _make_client()
        await asend_event("orders", "message", 1)
        await asend_events([EventSpec("orders", "message", n) for n in (2, 3)])
        await _check(client)
        assert await aget_current_event_id(["orders"]) == "orders:3"


@override_settings(EVENTSTREAM_DISPATCHER=IDLE)
class InTransactionTestCase(TransactionTestCase):
    def test_sees_what_was_committed(self) -> None:
        client = EventStreamTestClient()
        place_orders()
        check_orders(client)


async def _make_client() -> EventStreamTestClient:
    return await sync_to_async(EventStreamTestClient)()


async def _check(client: EventStreamTestClient) -> None:
    numbers = [("message", n) for n in (1, 2, 3)]
    await sync_to_async(client.assert_sent)("orders", *numbers)


def test_fixture_gives_the_client(eventstream_client: EventStreamTestClient) -> None:
    place_orders()

    check_orders(eventstream_client)


def test_failure_says_what_differs(eventstream_client: EventStreamTestClient) -> None:
    send_events([EventSpec("orders", "message", n) for n in (1, 2)])
    send_event("log", "line", "x")

    with pytest.raises(AssertionError) as caught:
        eventstream_client.assert_sent(
            "orders", ("message", 1), ("message", 3), ("done", {})
        )

    assert str(caught.value).splitlines() == [
        "'orders': 3 expected, 2 sent",
        "    1  message 1",
        "  - 2  message 3",
        "  + 2  message 2",
        "  - 3  done {}",
        "  sent to other channels: log (1)",
    ]
    with pytest.raises(AssertionError, match=r"3 events were sent:\n  orders: message"):
        eventstream_client.assert_nothing_sent()


def test_failure_says_if_nothing_was_sent(
    eventstream_client: EventStreamTestClient,
) -> None:
    with pytest.raises(AssertionError, match="Nothing was sent at all"):
        eventstream_client.assert_sent("orders", ("message", 1))


@override_settings(EVENTSTREAM_DATABASES=["default", "other"])
def test_failure_says_which_of_several_outboxes_was_looked_at(
    eventstream_client: EventStreamTestClient,
) -> None:
    with pytest.raises(AssertionError, match=r"outbox 'default' only: .*using="):
        eventstream_client.assert_sent("orders", ("message", 1))


def test_what_is_no_pair_is_refused(eventstream_client: EventStreamTestClient) -> None:
    pair: Any = ("message", {"item": "tea"})

    with pytest.raises(
        TypeError, match=r"is a pair \(event_type, data\), not 'message'"
    ):
        eventstream_client.assert_sent("orders", *pair)


def test_order_matters(eventstream_client: EventStreamTestClient) -> None:
    send_events([EventSpec("orders", "message", n) for n in (1, 2)])

    with pytest.raises(AssertionError):
        eventstream_client.assert_sent("orders", ("message", 2), ("message", 1))


def test_user_receives_what_is_for_the_user(
    eventstream_client: EventStreamTestClient,
) -> None:
    ann, bob = User.objects.create(username="ann"), User.objects.create(username="bob")
    send_event("board", "message", 1, skip_user_ids=[ann.pk])
    send_event(f"private-{ann.pk}", "message", 2)

    eventstream_client.assert_received(ann, "board")
    eventstream_client.assert_received(bob, "board", ("message", 1))
    eventstream_client.assert_received(None, "board", ("message", 1))
    eventstream_client.assert_received(ann, f"private-{ann.pk}", ("message", 2))
    eventstream_client.assert_may_not_read(bob, f"private-{ann.pk}")
    with pytest.raises(AssertionError, match="bob may not read"):
        eventstream_client.assert_received(bob, f"private-{ann.pk}", ("message", 2))
    with pytest.raises(AssertionError, match="ann may read"):
        eventstream_client.assert_may_not_read(ann, "board")


@pytest.fixture
async def own_thread() -> AsyncIterator[None]:
    """Close the connection of the thread that asgiref keeps for async tests."""
    yield
    await sync_to_async(connections.close_all)()


@pytest.mark.usefixtures("own_thread")
@pytest.mark.django_db(transaction=True)
async def test_permission_changed_by_async_code_goes_through_the_outbox() -> None:
    ann = await User.objects.acreate(username="ann")

    await achannel_permission_changed(ann, "private-0")

    assert await Event.objects.filter(kind=EventKind.KICK).acount() == 1


@pytest.mark.usefixtures("own_thread")
@pytest.mark.django_db(transaction=True)
async def test_sync_send_in_an_event_loop_is_refused_by_django() -> None:
    with pytest.raises(SynchronousOnlyOperation):
        send_event("orders", "message", 1)


@pytest.mark.usefixtures("own_thread")
@pytest.mark.django_db(transaction=True)
async def test_async_code_sends_in_the_transaction_of_its_change() -> None:
    def change() -> None:
        with transaction.atomic():
            User.objects.create(username="ann")
            send_event("orders", "message", 1)
            raise LookupError

    with pytest.raises(LookupError):
        await sync_to_async(change)()

    assert not await Event.objects.aexists()
    assert not await User.objects.aexists()


# --- a stream, by its URL


class ReadInTestCase(TestCase):
    def test_stream_is_read_to_its_end(self) -> None:
        client = EventStreamTestClient()
        place_orders()
        send_event("orders", "note", "100 % %I\nand more", json_encode=False)

        events = client.read(READ, last_event_id="orders:1")

        assert [(e.type, e.data, e.event_id) for e in events] == [
            ("done", 1, 2),
            ("note", "100 % %I\nand more", 3),
        ]
        assert {event.channel for event in events} == {"orders"}
        assert client.read(READ) == []


@pytest.mark.django_db
def test_stream_is_read_where_warnings_are_errors() -> None:
    """gripcontrol calls utcnow(), deprecated from Python 3.12 on."""

    def now() -> float:
        name = "gripcontrol.gripcontrol"
        warnings.warn_explicit("utcnow()", DeprecationWarning, "it", 1, module=name)
        return time.time()

    with mock.patch("gripcontrol.gripcontrol._timestamp_utcnow", now):
        client = EventStreamTestClient()
        send_event("orders", "message", 1)
        events = client.read(READ, last_event_id="orders:0")

    assert [event.data for event in events] == [1]


def test_stream_of_many_pages_and_channels_is_read(
    eventstream_client: EventStreamTestClient,
) -> None:
    for number in range(150):
        send_events(EventSpec(name, "message", number) for name in ("a", "b"))

    events = eventstream_client.read(
        "/events/?channel=a&channel=b", last_event_id="a:0,b:0"
    )

    for name in ("a", "b"):
        own = [(e.event_id, e.data) for e in events if e.channel == name]
        assert own == [(number + 1, number) for number in range(150)]


@override_settings(FORCE_SCRIPT_NAME="/shop")
def test_stream_of_many_pages_is_read_below_a_prefix(
    eventstream_client: EventStreamTestClient,
) -> None:
    large = "x" * 100_000
    send_events(EventSpec("orders", "message", [n, large]) for n in range(30))

    events = eventstream_client.read(READ, last_event_id="orders:0")

    assert [event.data[0] for event in events] == list(range(30))


def test_stream_is_read_as_its_user_may(
    eventstream_client: EventStreamTestClient, django_user_model: type[User]
) -> None:
    user = django_user_model.objects.create(username="ann")
    url = f"/events/?channel=private-{user.pk}"
    send_event(f"private-{user.pk}", "message", 1)
    send_event(f"private-{user.pk}", "message", 2, skip_user_ids=[user.pk])
    begin = f"private-{user.pk}:0"

    assert [
        e.data for e in eventstream_client.read(url, user=user, last_event_id=begin)
    ] == [1]
    [refusal] = eventstream_client.read(url)
    assert (refusal.type, refusal.data["condition"]) == ("stream-error", "forbidden")
    token = make_subscribe_token(user, [f"private-{user.pk}"])
    header = {"Authorization": f"Bearer {token}"}
    [event] = eventstream_client.read(url, headers=header, last_event_id=begin)
    assert event.data == 1


def test_position_that_is_gone_is_read_as_a_reset(
    eventstream_client: EventStreamTestClient,
) -> None:
    [reset] = eventstream_client.read(READ, last_event_id="orders:99")

    assert (reset.type, reset.data) == ("stream-reset", {"channels": ["orders"]})


class NoStateManager(DefaultChannelManager):
    def get_initial_state(self, user: object, channel: str) -> InitialState:
        return InitialState(User.objects.all())  # a list of dicts was meant


@override_settings(EVENTSTREAM_CHANNELMANAGER_CLASS=f"{__name__}.NoStateManager")
def test_initial_state_that_fails_is_no_empty_stream(
    eventstream_client: EventStreamTestClient,
) -> None:
    with pytest.raises(AssertionError, match=r"get_initial_state .* in the log"):
        eventstream_client.read(READ)


@override_settings(
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.auth.middleware.LoginRequiredMiddleware",
    ],
    LOGIN_URL="/enter/",
)
def test_redirection_is_said_with_where_it_leads(
    eventstream_client: EventStreamTestClient,
) -> None:
    with pytest.raises(AssertionError, match=r"status 302, to /enter/\?next=/events/"):
        eventstream_client.read(READ)


def test_what_is_no_stream_is_said(eventstream_client: EventStreamTestClient) -> None:
    with pytest.raises(AssertionError, match="GET /nowhere/: status 404"):
        eventstream_client.read("/nowhere/")
