"""send_event and its kin, in the caller's transaction."""

from __future__ import annotations

import threading
from collections.abc import Collection
from typing import Any

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Permission, User
from django.core.exceptions import SynchronousOnlyOperation
from django.db import connection, connections, transaction
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from eventstream import (
    EventSpec,
    EventState,
    asend_event,
    channel_permission_changed,
    get_current_event_id,
    send_event,
    send_events,
)
from eventstream.dispatch import Dispatcher
from eventstream.models import Event, EventKind
from eventstream.relay import relay_all
from eventstream.rows import OutboxRow
from eventstream.testing import drain_outbox
from tests.channels import ChannelManager
from tests.support.targets import IdleDispatcher, RecordingTarget, relay_now

pytestmark = pytest.mark.django_db(transaction=True)


def test_event_s_state_can_be_followed(targets: dict[str, RecordingTarget]) -> None:
    sent = send_event("orders", "message", {"a": 1})
    assert (sent.state(), sent.event_id) == (EventState.UNNUMBERED, None)

    targets["b"].is_down = True
    relay_all("default")
    assert (sent.state(), sent.event_id) == (EventState.UNDELIVERED, 1)

    targets["b"].is_down = False
    relay_now("default")
    assert sent.state() is EventState.CONFIRMED


class BrokenDispatcher(Dispatcher):
    """It must not raise, and does."""

    def wake(self, using: str, partitions: Collection[int]) -> None:
        raise RuntimeError("exploded")

    def publish_unstored(self, rows: list[OutboxRow]) -> None:
        raise RuntimeError("exploded")


@pytest.mark.parametrize("channel", ["orders", "live-orders"])
def test_dispatcher_that_raises_is_logged_and_harms_nobody(
    settings: Settings, caplog: pytest.LogCaptureFixture, channel: str
) -> None:
    settings.EVENTSTREAM_DISPATCHER = f"{__name__}.BrokenDispatcher"
    done = []

    with transaction.atomic():
        send_event(channel, "message", 1)
        transaction.on_commit(lambda: done.append("next"))
    send_event(channel, "message", 2)

    assert done == ["next"]
    errors = [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert [str(error) for error in errors] == ["exploded", "exploded"]


def test_event_whose_key_is_pruned_meanwhile_is_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send_event("orders", "message", 1, idempotency_key="k")
    bulk_create = QuerySet.bulk_create

    def prune_after(self: Any, *args: Any, **kwargs: Any) -> Any:
        found = bulk_create(self, *args, **kwargs)
        Event.objects.filter(data="1").delete()
        return found

    monkeypatch.setattr(QuerySet, "bulk_create", prune_after)
    again = send_event("orders", "message", 2, idempotency_key="k")

    assert Event.objects.get().pk == again.id
    assert Event.objects.get().data == "2"


def test_refused_event_is_dead(targets: dict[str, RecordingTarget]) -> None:
    targets["a"].poison = {"1"}
    sent = send_event("orders", "message", 1)

    relay_all("default")

    assert sent.state() is EventState.DEAD


def test_rollback_takes_the_event_with_it() -> None:
    with transaction.atomic():
        sent = send_event("orders", "message", 1)
        transaction.set_rollback(True)

    assert sent.state() is EventState.GONE
    assert send_event("orders", "message", 2).event_id == 1


def test_savepoint_takes_only_its_own(targets: dict[str, RecordingTarget]) -> None:
    with transaction.atomic():
        send_event("orders", "message", "before")
        with transaction.atomic():
            send_event("orders", "message", "inside")
            transaction.set_rollback(True)
        send_event("orders", "message", "after")

    relay_all("default")

    assert targets["a"].received == [
        ("orders", 1, '"before"'),
        ("orders", 2, '"after"'),
    ]


def test_nothing_is_published_before_the_commit() -> None:
    with transaction.atomic():
        sent = send_event("orders", "message", 1)
        assert sent.state() is EventState.UNNUMBERED

    assert sent.state() is EventState.CONFIRMED


def test_one_event_costs_one_insert(targets: dict[str, RecordingTarget]) -> None:
    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        send_event("orders", "message", 1)

    assert [query["sql"].split()[0] for query in queries] == ["INSERT"]


def test_many_events_cost_as_much_as_one(targets: dict[str, RecordingTarget]) -> None:
    specs = [EventSpec(f"c{n % 7}", "message", n) for n in range(200)]

    with transaction.atomic(), CaptureQueriesContext(connection) as queries:
        handles = send_events(specs)

    inserts = [q for q in queries if q["sql"].startswith("INSERT")]
    # SQLite takes 999 parameters a statement.
    assert len(inserts) <= (1 if connection.vendor == "postgresql" else 3)
    relay_all("default")
    assert [handle.event_id for handle in handles[:7]] == [1] * 7
    for channel in range(7):
        data = [int(d) for c, _, d in targets["a"].received if c == f"c{channel}"]
        assert data == list(range(channel, 200, 7))


def test_same_key_is_written_once(targets: dict[str, RecordingTarget]) -> None:
    first = send_event("orders", "message", "a", idempotency_key="k")
    again = send_event("orders", "message", "b", idempotency_key="k")
    other = send_event("elsewhere", "message", "c", idempotency_key="k")

    assert again == first
    assert other.id != first.id
    relay_all("default")
    assert sorted(targets["a"].received) == [
        ("elsewhere", 1, '"c"'),
        ("orders", 1, '"a"'),
    ]


def test_same_key_leaves_the_caller_s_transaction_usable() -> None:
    with transaction.atomic():
        send_event("orders", "message", "a", idempotency_key="k")
        send_event("orders", "message", "b", idempotency_key="k")
        send_event("orders", "message", "c")

    assert get_current_event_id(["orders"]) == "orders:2"


def test_same_key_from_many_threads_is_written_once() -> None:
    ids = []

    def send() -> None:
        ids.append(send_event("orders", "message", 1, idempotency_key="k").id)
        connections.close_all()

    threads = [threading.Thread(target=send) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(ids) == 8
    assert len(set(ids)) == 1
    assert Event.objects.count() == 1


async def test_async_code_can_send() -> None:
    sent = await asend_event("orders", "message", 1)

    row = await Event.objects.aget(channel="orders")
    assert (row.pk, row.eid) == (sent.id, 1)
    await sync_to_async(connections.close_all)()


async def test_async_code_is_told_what_to_call_for_best_effort_events_too(
    settings: Settings,
) -> None:
    settings.EVENTSTREAM_STORAGE_CLASS = None

    with pytest.raises(SynchronousOnlyOperation) as caught:
        send_event("orders", "message", 1)

    assert "asend_event" in caught.value.__notes__[0]


def test_without_storage_nothing_is_written(settings: Settings) -> None:
    settings.EVENTSTREAM_STORAGE_CLASS = None

    sent = send_event("orders", "message", 1)

    assert sent.state() is EventState.UNSTORED
    assert Event.objects.count() == 0


@pytest.mark.django_db(transaction=False)
def test_outbox_can_be_drained_in_a_test_that_never_commits() -> None:
    send_event("orders", "message", "a")
    send_event("orders", "message", "b")

    assert [(e.channel, e.eid, e.data) for e in drain_outbox()] == [
        ("orders", 1, '"a"'),
        ("orders", 2, '"b"'),
    ]
    assert drain_outbox() == []
    send_event("orders", "message", "c")
    assert [e.eid for e in drain_outbox()] == [3]


def test_position_names_each_channel_with_its_last_id() -> None:
    send_event("b c", "message", 1)

    position = get_current_event_id(["b c", "a", "live-x"])

    assert position == "a:0,b%20c:1"


def test_best_effort_events_of_a_transaction_keep_their_order(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[list[str]] = []

    class Recorder(IdleDispatcher):
        def publish_unstored(self, rows: list[OutboxRow]) -> None:
            batches.append([row.data for row in rows])

    monkeypatch.setattr("eventstream.unstored.get_dispatcher", Recorder)
    with transaction.atomic():
        send_event("live-x", "message", 1)
        send_event("orders", "message", "stored")
        send_event("live-y", "message", 2)
        with transaction.atomic():
            send_event("live-x", "message", "rolled back")
            transaction.set_rollback(True)
        send_event("live-x", "message", 3)
        with transaction.atomic():
            send_event("live-x", "message", 4)
        assert batches == []
    send_event("live-x", "message", 5)

    assert batches == [["1", "2", "3"], ["4"], ["5"]]


def test_account_that_is_not_active_any_more_is_kicked() -> None:
    user = User.objects.create_user("kim")
    channel = f"private-{user.pk}"
    channel_permission_changed(user, channel)
    assert not Event.objects.filter(kind=EventKind.KICK).exists()

    with transaction.atomic():
        user.is_active = False
        user.save()
        channel_permission_changed(user, channel)

    assert Event.objects.filter(kind=EventKind.KICK, channel=channel).count() == 1


def test_id_is_no_user_whose_permission_has_changed() -> None:
    pk: Any = 5
    with pytest.raises(TypeError, match="a user, AnonymousUser or None, not int"):
        channel_permission_changed(pk, "orders")


def test_permission_that_the_caller_s_object_remembers_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Django caches them in the object that was asked."""
    monkeypatch.setattr(
        ChannelManager,
        "can_read_channel",
        lambda self, user, channel: user.has_perm("auth.view_user"),
    )
    user = User.objects.create_user("kim")
    user.user_permissions.add(Permission.objects.get(codename="view_user"))
    assert user.has_perm("auth.view_user")

    with transaction.atomic():
        user.user_permissions.clear()
        channel_permission_changed(user, "orders")

    assert Event.objects.filter(kind=EventKind.KICK, channel="orders").count() == 1
