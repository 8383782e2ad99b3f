"""Lease → number → publish → confirm, and what happens when a step fails."""

from __future__ import annotations

import datetime
import threading
import time
from collections import Counter
from functools import partial
from typing import Any

import pytest
from celery.exceptions import SoftTimeLimitExceeded
from django.db import OperationalError, connection, connections
from django.db.backends.utils import CursorWrapper
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from eventstream import EventSpec, jobs, pruning, send_event, send_events
from eventstream.cursors import Lease, LeaseLostError
from eventstream.deadletters import give_up
from eventstream.exceptions import (
    CannotGiveUpError,
    PublishRejectedError,
    PublishUnavailableError,
)
from eventstream.models import Cursor, DeadLetter, Event, EventKind, Job, Partition
from eventstream.positions import MAX_EVENT_ID
from eventstream.relay import (
    MAX_REST,
    Outcome,
    WakeFlag,
    ask_again,
    pending,
    publish_unstored,
    relay_all,
    relay_partition,
)
from eventstream.retrying import RetryReport, retry_dead_letters
from eventstream.rows import Batch, OutboxRow, join_users, partition_of, split_users
from eventstream.signals import event_dead_lettered
from eventstream.storage import DjangoModelStorage, get_storage
from eventstream.targets.base import Item
from eventstream.targets.bus import BusTarget
from eventstream.targets.grip import MAX_KICKED
from eventstream_tasks.tasks import republish
from tests.support.targets import IdleDispatcher, RecordingTarget, relay_now

pytestmark = pytest.mark.django_db(transaction=True)

PARTITION = partition_of("orders")
Targets = dict[str, RecordingTarget]


def send(count: int = 1, channel: str = "orders") -> None:
    send_events([EventSpec(channel, "message", n) for n in range(count)])


def ago(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=seconds)


def cursor(target: str) -> Cursor:
    return Cursor.objects.get(partition=PARTITION, target=target)


def test_every_target_gets_every_event_once_in_order(targets: Targets) -> None:
    send(5)

    reports = relay_all("default")

    assert {report.outcome for report in reports.values()} == {Outcome.DONE}
    for target in targets.values():
        assert target.ids("orders") == [1, 2, 3, 4, 5]
    assert pending("default") == []
    assert relay_all("default") == {}


def test_ids_are_committed_before_anything_is_published(targets: Targets) -> None:
    seen: list[object] = []

    def look() -> None:
        def read() -> None:
            seen.append(list(Event.objects.values_list("eid", flat=True)))
            connections.close_all()

        thread = threading.Thread(target=read)  # a connection of its own
        thread.start()
        thread.join()

    targets["a"].before = look
    send(2)

    relay_partition("default", PARTITION, "a")

    assert seen == [[1, 2]]


def test_failing_target_holds_up_no_other(targets: Targets) -> None:
    targets["a"].is_down = True
    send(3)

    relay_all("default")

    assert targets["b"].ids("orders") == [1, 2, 3]
    row = cursor("a")
    assert (row.watermark, row.attempts, row.last_error) == (0, 1, "a is down")
    assert row.next_attempt is not None
    assert row.failing_since is not None
    assert (row.lease_token, row.lease_until) == ("", None)


def test_failed_target_is_left_alone_until_it_is_due(targets: Targets) -> None:
    targets["a"].is_down = True
    send()
    relay_all("default")
    targets["a"].is_down = False
    Cursor.objects.update(next_attempt=Now() + ago(30))

    early = relay_partition("default", PARTITION, "a")
    Cursor.objects.update(next_attempt=Now() - ago(1))
    due = relay_partition("default", PARTITION, "a")

    assert (early.outcome, early.error) == (Outcome.WAITING, "a is down")
    assert (due.outcome, due.event_count) == (Outcome.DONE, 1)
    row = cursor("a")
    assert (row.attempts, row.next_attempt, row.failing_since) == (0, None, None)
    assert row.last_error == ""


def test_operator_can_have_it_tried_now(targets: Targets) -> None:
    targets["a"].is_down = True
    send()
    relay_all("default")
    targets["a"].is_down = False
    Cursor.objects.update(next_attempt=Now() + ago(30))

    report = relay_partition("default", PARTITION, "a", force=True)

    assert report.outcome is Outcome.DONE
    assert targets["a"].ids("orders") == [1]


def test_published_but_unconfirmed_is_repeated_under_the_same_ids(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(2)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("eventstream.cursors.Lease.confirm", crash)
        with pytest.raises(KeyboardInterrupt):
            relay_partition("default", PARTITION, "a")
    send(1)
    relay_partition("default", PARTITION, "a")

    assert targets["a"].ids("orders") == [1, 2, 1, 2, 3]


def test_one_event_costs_five_statements(targets: Targets) -> None:
    send()
    relay_all("default")
    send()

    with CaptureQueriesContext(connection) as queries:
        relay_partition("default", PARTITION, "a")

    # Lease, number and read, confirm, release, look again. On SQLite through Django.
    # There without the query of the metrics, which are kept with prometheus-client.
    sql = [query["sql"] for query in queries if 'AS "age"' not in query["sql"]]
    most = 5 if connection.vendor == "postgresql" else 17
    assert targets["a"].ids("orders") == [1, 2]
    assert len(sql) <= most, sql


def test_leased_partition_is_left_to_its_relay(targets: Targets) -> None:
    send()
    relay_all("default")
    send()
    Cursor.objects.update(lease_token="other", lease_until=Now() + ago(5))

    assert relay_partition("default", PARTITION, "a").outcome is Outcome.BUSY
    assert targets["a"].ids("orders") == [1]

    Cursor.objects.update(lease_until=Now() - ago(1))
    assert relay_partition("default", PARTITION, "a").outcome is Outcome.DONE
    assert targets["a"].ids("orders") == [1, 2]


def test_relay_that_lost_its_lease_confirms_nothing(targets: Targets) -> None:
    send()

    def take_over() -> None:
        Cursor.objects.filter(target="a").update(lease_token="other")

    targets["a"].before = take_over

    report = relay_partition("default", PARTITION, "a")

    assert report.outcome is Outcome.BUSY
    assert (cursor("a").watermark, cursor("a").lease_token) == (0, "other")


def test_only_the_holder_of_a_lease_gives_it_back(targets: Targets) -> None:
    relay_partition("default", PARTITION, "a")  # makes the cursor
    lease = Lease(get_storage(), "default", PARTITION, "a")
    assert lease.take(force=False)
    Cursor.objects.filter(target="a").update(lease_token="other")

    lease.release()

    assert cursor("a").lease_token == "other"
    assert cursor("a").lease_until is not None


def note_leases(name: str, targets: Targets) -> list[bool]:
    """Note at each call whether the lease is almost over, which it is then made."""
    noted: list[bool] = []

    def look() -> None:
        mine = Cursor.objects.filter(target=name)
        noted.append(mine.filter(lease_until__lt=Now() + ago(5)).exists())
        mine.update(lease_until=Now() + ago(1))

    targets[name].before = look
    return noted


def test_each_confirmation_renews_the_lease(
    targets: Targets, settings: Settings
) -> None:
    """Else a long series of batches would outlive it, and another do the same work."""
    settings.EVENTSTREAM_BATCH_BYTES = 10_000
    send_events([EventSpec("orders", "message", "x" * 6000) for _ in range(3)])
    almost_over = note_leases("a", targets)

    relay_partition("default", PARTITION, "a")

    assert targets["a"].batches == [1, 1, 1]
    assert almost_over == [False] * 3


def test_search_for_what_is_refused_renews_the_lease(targets: Targets) -> None:
    targets["a"].poison = {"2"}
    send(4)
    almost_over = note_leases("a", targets)

    relay_partition("default", PARTITION, "a")

    assert targets["a"].ids("orders") == [1, 2, 4]
    assert almost_over == [False] * 5  # all, two halves, two of one


@pytest.mark.parametrize("attempts", [0, 1])
def test_relay_that_lost_its_lease_records_no_failure(
    targets: Targets, attempts: int
) -> None:
    """The target may take what the other relay publishes by now."""
    relay_partition("default", PARTITION, "a")  # makes the cursor
    Cursor.objects.update(attempts=attempts)
    send()

    def take_over() -> None:
        Cursor.objects.filter(target="a").update(lease_token="other")

    targets["a"].before = take_over
    targets["a"].is_down = True

    report = relay_partition("default", PARTITION, "a", force=True)

    assert report.outcome is Outcome.FAILED
    row = cursor("a")
    assert (row.attempts, row.failure_count) == (attempts, 0)
    assert (row.failing_since, row.next_attempt) == (None, None)
    assert row.lease_token == "other"


def test_watermark_never_goes_back(targets: Targets) -> None:
    send()

    def move_on() -> None:
        Cursor.objects.filter(target="a").update(watermark=9)

    targets["a"].before = move_on

    relay_partition("default", PARTITION, "a")

    assert cursor("a").watermark == 9


def test_event_sent_meanwhile_is_not_left_behind(targets: Targets) -> None:
    sent = threading.Event()

    def send_once() -> None:
        if not sent.is_set():
            sent.set()
            send_event("orders", "message", "late")

    targets["a"].before = send_once
    send()

    relay_partition("default", PARTITION, "a")

    assert targets["a"].ids("orders") == [1, 2]


def test_event_whose_wake_up_found_the_lease_taken_is_not_left_behind(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = Lease.release
    found: list[Outcome] = []

    def send_first(lease: Lease) -> None:
        if not found:
            send()
            found.append(relay_partition("default", PARTITION, "a").outcome)
        release(lease)

    monkeypatch.setattr(Lease, "release", send_first)
    send()

    relay_partition("default", PARTITION, "a")

    assert found == [Outcome.BUSY]
    assert targets["a"].ids("orders") == [1, 2]


@pytest.mark.parametrize(("count", "rests"), [(0, 0), (1, 0), (2, 1), (5, 4)])
def test_relay_rests_only_while_more_keeps_coming(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, count: int, rests: int
) -> None:
    """Once more at 100 events/s is chance, and would be late for nothing."""
    rested: list[float] = []
    monkeypatch.setattr("eventstream.relay.time.sleep", rested.append)
    left = [send] * count
    targets["a"].before = lambda: left.pop()() if left else None
    send()

    relay_partition("default", PARTITION, "a")

    assert targets["a"].ids("orders") == list(range(1, count + 2))
    assert len([seconds for seconds in rested if seconds <= MAX_REST]) == rests


def test_batches_are_cut_by_bytes(targets: Targets, settings: Settings) -> None:
    settings.EVENTSTREAM_BATCH_BYTES = 10_000
    send_events([EventSpec("orders", "message", "x" * 3000) for _ in range(7)])

    relay_partition("default", PARTITION, "a")

    assert targets["a"].batches == [3, 3, 1]
    assert targets["a"].ids("orders") == [1, 2, 3, 4, 5, 6, 7]


def test_bus_gets_no_more_at_once_than_web_processes_keep(
    targets: Targets, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_QUEUE_LENGTH = 3
    monkeypatch.setattr(RecordingTarget, "most_events", BusTarget.most_events)
    send(7)

    relay_partition("default", PARTITION, "a")

    assert targets["a"].batches == [3, 3, 1]
    assert targets["a"].ids("orders") == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize(
    ("sizes", "expected", "told"),
    [
        ([9_000] * 7, [5, 2], [5, 2]),
        ([1] * 7, [2, 5], [7]),
        ([1, *[15_000] * 6], [2, 3, 2], [4, 3]),
    ],
    ids=["large", "small", "small, then large"],
)
def test_relay_that_is_behind_reads_more_at_once_if_that_is_not_large(
    targets: Targets,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[int],
    expected: list[int],
    told: list[int],
) -> None:
    settings.EVENTSTREAM_BATCH_BYTES = 10_000
    monkeypatch.setattr("eventstream.relay.FEW", 2 if sizes[0] == 1 else 9)
    send_events([EventSpec("orders", "message", "x" * size) for size in sizes])
    read = DjangoModelStorage.number_and_read
    counts = []

    def note(*args: Any, **kwargs: Any) -> Batch:
        found = read(*args, **kwargs)
        counts.append(len(found.rows))
        return found

    monkeypatch.setattr(DjangoModelStorage, "number_and_read", note)
    relay_partition("default", PARTITION, "a")

    # On PostgreSQL it is told so by the lease.
    assert counts == (told if connection.vendor == "postgresql" else expected)
    assert targets["a"].ids("orders") == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("failed_before", [None, 31.0])
def test_backlog_that_takes_longer_than_a_statement_may_is_taken_in_smaller_parts(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, failed_before: float | None
) -> None:
    """Else the same ten thousand are tried again and again, for ever."""
    monkeypatch.setattr("eventstream.relay.FEW", 3)
    monkeypatch.setattr("eventstream.numbering.FEW", 3)
    execute = CursorWrapper.execute
    tried: list[int] = []

    def take_too_long(cursor: CursorWrapper, sql: str, values: Any = None) -> Any:
        is_numbering = isinstance(values, dict) and "limit" in values
        if is_numbering and ("last_position" in sql or "last_eid" in sql):
            tried.append(values["limit"])
            if values["limit"] > 3:
                raise OperationalError("canceling statement due to statement timeout")
        return execute(cursor, sql, values)

    monkeypatch.setattr(CursorWrapper, "execute", take_too_long)
    relay_partition("default", PARTITION, "a")
    send(10)

    if failed_before:
        since = Now() - ago(failed_before)
        Cursor.objects.filter(target="a").update(failing_since=since)

    report = relay_partition("default", PARTITION, "a")

    assert report.outcome is Outcome.DONE
    assert targets["a"].ids("orders") == ([10] if failed_before else [*range(1, 11)])
    assert 1 <= tried.count(10_000) <= 2  # a backlog's numbering, and reading


def test_best_effort_events_are_cut_for_calls_as_well(
    targets: Targets, settings: Settings
) -> None:
    settings.EVENTSTREAM_BATCH_BYTES = 10_000
    rows = [
        OutboxRow(0, 0, 0, f"cursor-{n}", None, "message", str(n).ljust(3000), "")
        for n in range(8)
    ]
    left = list(rows)

    def fail_second() -> None:
        targets["a"].is_down = targets["a"].batches == [3]

    targets["a"].before = fail_second
    with pytest.raises(PublishUnavailableError):
        publish_unstored("a", left)
    assert left == rows[3:]  # to be tried again: no other would come twice
    targets["a"].before = lambda: None
    targets["a"].is_down = False
    targets["a"].poison = {rows[4].data}
    with pytest.raises(PublishRejectedError):
        publish_unstored("a", left)

    assert left == []
    assert [name for name, _, _ in targets["a"].received] == [
        f"cursor-{n}" for n in (0, 1, 2, 6, 7)
    ]


def test_best_effort_events_for_a_target_that_is_gone_are_dropped(
    targets: Targets,
) -> None:
    """A task may be older than the settings."""
    rows = [OutboxRow(0, 0, 0, "cursor-1", None, "message", "1", "")]

    publish_unstored("gone", rows)

    assert all(target.received == [] for target in targets.values())


def test_refused_event_is_buried_and_the_rest_delivered(targets: Targets) -> None:
    targets["a"].poison = {"3"}
    send(6)

    relay_all("default")

    assert targets["a"].ids("orders") == [1, 2, 3, 5, 6]
    assert targets["b"].ids("orders") == [1, 2, 3, 4, 5, 6]
    (letter,) = DeadLetter.objects.all()
    assert (letter.target, letter.channel, letter.eid) == ("a", "orders", 4)
    assert letter.error == "bad content"
    assert pending("default") == []


@pytest.mark.parametrize("count", [1, 3])
def test_target_that_refuses_everything_is_at_fault_itself(
    targets: Targets, count: int
) -> None:
    targets["a"].refuses_all = True
    send(count)

    report = relay_partition("default", PARTITION, "a")

    assert report.outcome is Outcome.FAILED
    assert "it refuses whatever is published: bad content" in report.error
    assert not DeadLetter.objects.exists()
    assert cursor("a").watermark == 0


def test_batch_of_nothing_but_refused_events_holds_up_nothing(
    targets: Targets,
) -> None:
    targets["a"].poison = {"0", "1"}
    send(2)

    relay_all("default")

    assert DeadLetter.objects.count() == 2
    assert pending("default") == []


def test_one_partition_tries_a_failing_target_for_all(targets: Targets) -> None:
    targets["a"].is_down = True
    tried: list[object] = []
    targets["a"].before = lambda: tried.append(1)
    for number in range(20):
        send_event(f"room-{number}", "message", number)

    reports = relay_all("default")

    assert len(tried) == 1
    outcomes = Counter(r.outcome for (_, name), r in reports.items() if name == "a")
    assert outcomes[Outcome.FAILED] == 1
    assert outcomes[Outcome.WAITING] == len(reports) // 2 - 1
    assert sum(len(targets["b"].ids(f"room-{number}")) for number in range(20)) == 20


def test_partition_that_waits_for_another_s_attempts_has_a_backlog_as_well(
    targets: Targets,
) -> None:
    number = (PARTITION + 1) % 16
    other = next(f"c{n}" for n in range(999) if partition_of(f"c{n}") == number)
    targets["a"].is_down = True
    send()
    relay_partition("default", PARTITION, "a")
    send(3, channel=other)
    assert relay_partition("default", number, "a").outcome is Outcome.WAITING
    waiting = Cursor.objects.filter(target="a", partition=number)
    assert waiting.filter(failing_since__isnull=False, attempts=0).exists()

    Cursor.objects.filter(target="a").update(
        failing_since=Now() - ago(31), next_attempt=None
    )
    targets["a"].is_down = False
    relay_partition("default", number, "a")

    assert targets["a"].ids(other) == [3]
    assert not waiting.filter(failing_since__isnull=False).exists()


def rooms(count: int) -> list[str]:
    """Return channels of different partitions, none of them that of "orders"."""
    found = {partition_of(f"room-{n}"): f"room-{n}" for n in range(999)}
    del found[PARTITION]
    return list(found.values())[:count]


def test_event_that_its_target_never_takes_holds_up_its_partition_alone(
    targets: Targets,
) -> None:
    """Once it has failed again, and the target takes something else."""
    room, other = rooms(2)
    targets["a"].chokes_on = {"666"}
    send_event("orders", "message", 666)
    for name in (room, other):
        send_event(name, "message", 1)
    first = relay_partition("default", PARTITION, "a")
    waiting = relay_partition("default", partition_of(room), "a")
    Cursor.objects.filter(target="a").update(failing_since=Now() - ago(5))

    again = relay_partition("default", PARTITION, "a", force=True)

    assert (first.outcome, again.outcome) == (Outcome.FAILED, Outcome.FAILED)
    assert waiting.outcome is Outcome.WAITING
    assert (cursor("a").attempts, cursor("a").fails_alone) == (2, True)
    assert relay_partition("default", partition_of(room), "a").outcome is Outcome.DONE
    assert targets["a"].ids(room) == [1]
    # If then the target is away, it is the one that finds out which speaks for it.
    targets["a"].is_down = True
    send(channel=room)
    assert relay_partition("default", partition_of(room), "a").outcome is Outcome.FAILED
    found = relay_partition("default", partition_of(other), "a")
    assert (found.outcome, found.error) == (Outcome.WAITING, "a is down")
    # Whatever is given up no longer holds up anything.
    targets["a"].is_down = False
    give_up("default", "a", Event.objects.get(data="666").pk, "")
    relay_now("default")
    assert pending("default") == []
    assert not cursor("a").fails_alone


def test_partitions_wait_for_one_that_fails_again(targets: Targets) -> None:
    """The target takes nothing at all, so it is one that tries for all."""
    (room,) = rooms(1)
    targets["a"].is_down = True
    send()
    send(channel=room)
    for _ in range(3):
        relay_partition("default", PARTITION, "a", force=True)
        Cursor.objects.filter(attempts__gt=0).update(failing_since=Now() - ago(5))

    report = relay_partition("default", partition_of(room), "a")

    assert (report.outcome, report.error) == (Outcome.WAITING, "a is down")
    assert not cursor("a").fails_alone


def test_target_that_is_not_reached_is_not_asked_what_else_it_takes(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would take the worker as long again to find it away."""
    calls: list[int] = []

    def refuse(*_: object) -> None:
        calls.append(1)
        raise PublishUnavailableError("refused") from ConnectionError()

    monkeypatch.setattr(targets["a"], "publish", refuse)
    send()

    for _ in range(3):
        relay_partition("default", PARTITION, "a", force=True)

    assert len(calls) == 3
    assert not cursor("a").fails_alone


def test_partitions_that_fail_together_try_again_one_by_one(targets: Targets) -> None:
    targets["a"].is_down = True
    for number in range(20):
        send_event(f"room-{number}", "message", number)
    relay_now("default")
    failing = Cursor.objects.filter(target="a", attempts=1)
    assert failing.count() > 5
    first, second = failing.order_by("next_attempt")[:2]

    # What a hanging target takes to be found hanging lies between the two.
    assert first.next_attempt is not None
    assert second.next_attempt is not None
    assert (second.next_attempt - first.next_attempt).total_seconds() > 5


def test_target_that_is_back_is_due_in_every_partition(targets: Targets) -> None:
    targets["a"].is_down = True
    for number in range(20):
        send_event(f"room-{number}", "message", number)
    relay_now("default")
    targets["a"].is_down = False
    Cursor.objects.filter(target="a").update(next_attempt=Now() + ago(3600))
    prober = Cursor.objects.filter(target="a", attempts=1)[0].partition
    Cursor.objects.filter(partition=prober).update(next_attempt=Now() - ago(1))

    report = relay_partition("default", prober, "a")

    assert report.has_recovered
    relay_all("default")
    assert pending("default") == []


def test_sweep_that_finds_a_target_back_relays_all_that_waits_for_it(
    targets: Targets,
) -> None:
    low, high = sorted(["orders", "elsewhere"], key=partition_of)
    targets["a"].is_down = True
    send(channel=high)
    relay_all("default")
    send(channel=low)  # waits for the other, which tries for both
    targets["a"].is_down = False
    Cursor.objects.filter(attempts__gt=0).update(next_attempt=Now() - ago(1))

    relay_all("default")

    assert [channel for channel, _, _ in targets["a"].received] == [high, low]
    assert pending("default") == []


def test_target_back_after_a_while_gets_the_newest_of_each_channel(
    targets: Targets,
) -> None:
    other = next(f"c{n}" for n in range(999) if partition_of(f"c{n}") == PARTITION)
    targets["a"].is_down = True
    send(3)
    send(4, channel=other)
    Event.objects.create(
        partition=PARTITION,
        kind=EventKind.KICK,
        channel="orders",
        type="kick",
        data="5",
    )
    relay_all("default")
    Cursor.objects.filter(target="a").update(
        failing_since=Now() - ago(31), next_attempt=None
    )
    targets["a"].is_down = False

    relay_partition("default", PARTITION, "a")

    assert targets["a"].received == [
        ("orders", 3, "2"),
        (other, 4, "3"),
        ("orders", "kick", "5"),
    ]
    assert cursor("a").watermark == 8
    send()
    relay_all("default")
    assert targets["a"].ids("orders") == [3, "kick", 4]


def test_long_backlog_is_read_in_parts_and_its_lease_renewed(
    targets: Targets, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_BATCH_BYTES = 10_000
    settings.EVENTSTREAM_BATCH_SIZE = 20
    names = [f"c{n}" for n in range(999) if partition_of(f"c{n}") == PARTITION][:30]
    relay_partition("default", PARTITION, "a")  # makes the cursor
    send_events(
        [EventSpec(name, "message", "x" * 3000) for name in names for _ in "ab"]
    )
    Cursor.objects.filter(target="a").update(failing_since=Now() - ago(31))
    counts: list[int] = []
    read_at = DjangoModelStorage._read_at

    def count(*arguments: Any) -> list[OutboxRow]:
        rows = read_at(*arguments)
        counts.append(len(rows))
        return rows

    monkeypatch.setattr(DjangoModelStorage, "_read_at", count)
    renewals: list[Lease] = []
    monkeypatch.setattr(Lease, "renew", lambda lease: renewals.append(lease))
    renewed_before: list[int] = []
    targets["a"].before = lambda: renewed_before.append(len(renewals))

    report = relay_partition("default", PARTITION, "a")

    assert (report.outcome, report.event_count) == (Outcome.DONE, 30)
    assert counts == [13, 13, 4]  # four calls' worth at once
    assert [(name, eid) for name, eid, _ in targets["a"].received] == [
        (name, 2) for name in names
    ]
    assert renewed_before == list(range(4, 16))  # three times while numbering
    assert pending("default") == [(PARTITION, "b")]


def test_lease_is_kept_while_the_newest_of_a_long_backlog_are_looked_for(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one query it took longer than the lease, and whoever came next began anew."""
    monkeypatch.setattr("eventstream.log.BACKLOG_RANGE", 3)
    monkeypatch.setattr("eventstream.log._POSITIONS_PER_QUERY", 1)
    other = next(f"c{n}" for n in range(999) if partition_of(f"c{n}") == PARTITION)
    relay_partition("default", PARTITION, "a")  # makes the cursor
    send(2)
    send(2, channel=other)
    send(5)
    Cursor.objects.filter(target="a").update(failing_since=Now() - ago(31))
    kept: list[Lease] = []
    monkeypatch.setattr(Lease, "keep", lambda lease: kept.append(lease))

    report = relay_partition("default", PARTITION, "a")

    assert len(kept) == 3
    assert (report.outcome, report.event_count) == (Outcome.DONE, 2)
    assert targets["a"].received == [(other, 2, "1"), ("orders", 7, "4")]


def test_long_backlog_is_numbered_under_a_lease_that_is_renewed(
    targets: Targets, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_BATCH_SIZE = 2
    relay_partition("default", PARTITION, "a")  # makes the cursor
    send(9)
    Cursor.objects.filter(target="a").update(failing_since=Now() - ago(31))
    renewals: list[int] = []
    renew = Lease.renew

    def note(lease: Lease) -> None:
        unnumbered = Event.objects.filter(position__isnull=True)
        renewals.append(unnumbered.count())
        renew(lease)

    monkeypatch.setattr(Lease, "renew", note)

    relay_partition("default", PARTITION, "a")

    assert renewals == [7, 5, 3, 1, 0]
    assert targets["a"].ids("orders") == [9]


def test_target_back_soon_gets_every_event(targets: Targets) -> None:
    targets["a"].is_down = True
    send(3)
    relay_all("default")
    Cursor.objects.filter(target="a").update(
        failing_since=Now() - ago(25), next_attempt=None
    )
    targets["a"].is_down = False

    relay_partition("default", PARTITION, "a")

    assert targets["a"].ids("orders") == [1, 2, 3]


def test_new_target_starts_with_what_is_sent_from_now_on(targets: Targets) -> None:
    send(3)
    relay_all("default")
    targets["new"] = RecordingTarget("new")
    send(2)

    relay_all("default")

    assert targets["new"].ids("orders") == [4, 5]


def test_unknown_target_is_told(targets: Targets) -> None:
    report = relay_partition("default", PARTITION, "gone")

    assert report.outcome is Outcome.UNKNOWN
    assert "gone" in report.error


def test_two_relays_at_once_deliver_everything(targets: Targets) -> None:
    def work() -> None:
        relay_now("default")
        connections.close_all()

    for _ in range(5):
        send(20)
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert targets["a"].ids("orders") == list(range(1, 101))


# --- sweep and prune


def test_sweep_finds_what_nobody_was_woken_for(targets: Targets) -> None:
    send(2)

    result = jobs.republish("default")

    assert result == "4 events, 2 partitions behind, 0 failed"
    assert targets["a"].ids("orders") == [1, 2]


@pytest.mark.usefixtures("one_minute")
def test_targets_are_reminded_of_their_streams_once_a_minute(targets: Targets) -> None:
    for _ in range(3):
        assert jobs.republish("default") is not None

    assert [target.reminders for target in targets.values()] == [1, 1]


def test_target_that_cannot_be_reminded_keeps_none_of_the_others_from_it(
    targets: Targets,
) -> None:
    targets["a"].is_down = True

    assert jobs.republish("default") is not None

    assert targets["b"].reminders == 1


def test_job_runs_once_at_a_time(targets: Targets) -> None:
    Job.objects.create(name="republish", lease_until=Now() + ago(5))
    assert jobs.republish("default") is None

    Job.objects.update(lease_until=Now() - ago(1))
    assert jobs.republish("default") is not None


def age(eids: list[int], seconds: float) -> None:
    Event.objects.filter(eid__in=eids).update(created=Now() - ago(seconds))


@pytest.mark.parametrize(("seconds", "left"), [(86_390, 4), (86_410, 2)])
def test_prune_deletes_what_is_older_than_a_day(
    targets: Targets, seconds: float, left: int
) -> None:
    send(4)
    relay_all("default")
    age([1, 2], seconds)

    jobs.prune("default")

    assert Event.objects.count() == left
    assert get_storage().floor("default", "orders") == 4 - left


def test_prune_deletes_the_letters_of_what_it_deletes(targets: Targets) -> None:
    targets["a"].poison = {"1", "4"}
    send(6)
    relay_all("default")
    age([1, 2, 3], 90_000)

    jobs.prune("default")

    assert [letter.eid for letter in DeadLetter.objects.all()] == [5]
    assert Event.objects.count() == 3


def test_prune_makes_no_hole_when_ages_are_inverted(targets: Targets) -> None:
    send(4)
    relay_all("default")
    age([1, 3, 4], 90_000)

    jobs.prune("default")

    assert list(Event.objects.order_by("eid").values_list("eid", flat=True)) == [
        2,
        3,
        4,
    ]


def test_prune_in_several_transactions_leaves_nothing_between(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "FIRST_BATCH", 3)
    send(120)
    relay_all("default")
    age(list(range(1, 111)), 90_000)
    counts: list[int] = []

    for partition in get_storage().partitions("default"):
        get_storage().prune(
            "default",
            partition,
            retention=86_400,
            targets=list(targets),
            on_batch=counts.append,
        )

    left = Event.objects.order_by("eid").values_list("eid", flat=True)
    assert list(left) == list(range(111, 121))
    assert counts[0] == 3
    assert sum(counts) == 110


def test_prune_passes_over_rows_that_are_gone(targets: Targets) -> None:
    send(6)
    relay_all("default")
    age([1, 2, 3, 4], 90_000)
    Event.objects.filter(eid__in=[2, 5]).delete()  # by hand, in the database's shell

    jobs.prune("default")

    assert list(Event.objects.values_list("eid", flat=True)) == [6]


class Expecting(WakeFlag):
    """Has an event sent in each wait, so many times."""

    def __init__(self, count: int) -> None:
        self.left = count

    def more_comes(self) -> bool:
        self.left -= 1
        if self.left >= 0:
            send()
        return self.left >= 0


def test_relay_publishes_what_comes_while_it_waits(targets: Targets) -> None:
    relay_all("default")
    send()
    flag = Expecting(3)

    report = relay_partition("default", PARTITION, "a", flag=flag)

    assert (report.outcome, report.event_count, flag.left) == (Outcome.DONE, 4, -1)
    assert targets["a"].ids("orders") == [1, 2, 3, 4]
    assert len(targets["a"].batches) == 4


class Noting(WakeFlag):
    """Notes how often it was told to watch."""

    def __init__(self) -> None:
        self.watches = 0

    def watch(self) -> None:
        self.watches += 1


@pytest.mark.parametrize("more", [0, 1])
def test_relay_watches_once_more_has_come_while_it_was_at_work(
    targets: Targets, more: int
) -> None:
    relay_all("default")
    left = [send] * more
    targets["a"].before = lambda: left.pop()() if left else None
    send()
    flag = Noting()

    relay_partition("default", PARTITION, "a", flag=flag)

    assert flag.watches == more


def test_relay_that_waits_goes_on_behind_what_was_pruned(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(3)
    relay_all("default")
    Event.objects.all().delete()
    Cursor.objects.filter(target="a").update(watermark=1)
    read = DjangoModelStorage.number_and_read
    read_after = []

    def note(self: DjangoModelStorage, *args: Any, after: int, **options: Any) -> Batch:
        read_after.append(after)
        return read(self, *args, after=after, **options)

    monkeypatch.setattr(DjangoModelStorage, "number_and_read", note)

    report = relay_partition("default", PARTITION, "a", flag=Expecting(2))

    assert report.event_count == 2
    assert targets["a"].ids("orders") == [1, 2, 3, 4, 5]
    assert read_after == [1, 3, 4]
    assert cursor("a").watermark == 5


def test_relay_passes_over_what_is_gone_though_nothing_follows(
    targets: Targets,
) -> None:
    send(3)
    relay_all("default")
    Event.objects.all().delete()
    Cursor.objects.filter(target="a").update(watermark=1)
    assert pending("default") == [(PARTITION, "a")]

    report = relay_partition("default", PARTITION, "a")

    assert (report.outcome, report.event_count) == (Outcome.DONE, 0)
    assert cursor("a").watermark == 3
    assert pending("default") == []


def test_prune_leaves_what_a_target_has_not_got(targets: Targets) -> None:
    send(2)
    relay_all("default")
    targets["a"].is_down = True
    send(2)
    relay_all("default")
    age([1, 2, 3, 4], 90_000)

    jobs.prune("default")

    assert list(Event.objects.order_by("eid").values_list("eid", flat=True)) == [3, 4]


def test_target_that_failed_for_a_day_holds_up_nothing(targets: Targets) -> None:
    targets["a"].is_down = True
    send(3)
    relay_all("default")
    age([1, 2, 3], 90_000)
    Cursor.objects.filter(target="a").update(failing_since=Now() - ago(90_000))

    jobs.prune("default")
    assert not Event.objects.exists()

    targets["a"].is_down = False
    send(1)
    relay_now("default")
    assert targets["a"].ids("orders") == [4]
    assert pending("default") == []


def test_pruned_channel_counts_on(targets: Targets) -> None:
    send(2)
    relay_all("default")
    age([1, 2], 90_000)
    jobs.prune("default")

    send(1)
    relay_all("default")

    assert targets["a"].ids("orders") == [1, 2, 3]


# --- the log


def test_log_is_read_page_by_page(targets: Targets) -> None:
    send(5)
    relay_all("default")
    storage = get_storage()

    page = storage.read_after("default", "orders", 1, limit=2)

    assert [event.eid for event in page.events] == [2, 3]
    assert (page.last_eid, page.is_reset) == (5, False)
    assert storage.read_after("default", "orders", 5, limit=2).events == []


@pytest.mark.parametrize("eid", [6, 1, MAX_EVENT_ID])
def test_position_outside_the_log_is_a_reset(targets: Targets, eid: int) -> None:
    send(5)
    relay_all("default")
    Event.objects.filter(eid__lte=2).delete()

    page = get_storage().read_after("default", "orders", eid, limit=10)

    assert (page.events, page.last_eid, page.is_reset) == ([], 5, True)


def test_position_at_the_floor_is_in_the_log(targets: Targets) -> None:
    send(5)
    relay_all("default")
    Event.objects.filter(eid__lte=2).delete()

    page = get_storage().read_after("default", "orders", 2, limit=10)

    assert [event.eid for event in page.events] == [3, 4, 5]


def test_undelivered_are_counted_over_very_many_partitions(targets: Targets) -> None:
    Partition.objects.bulk_create(
        Partition(number=n, last_position=2) for n in range(3000)
    )
    Cursor.objects.bulk_create(
        Cursor(partition=n, target="a", watermark=1) for n in range(3000)
    )
    for n in (5, 2999):
        for position in (1, 2):
            Event.objects.create(
                partition=n, position=position, eid=position, channel=f"c{n}",
                type="message", data="x",
            )  # fmt: skip
    Event.objects.create(partition=7, channel="x", type="message", data="x")

    assert get_storage().count_undelivered("default", ["a"]) == 3


def test_lease_is_kept_while_the_application_is_asked_about_the_kicked(
    targets: Targets, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the next relay asks again for as long, and loses it as well: for ever."""
    settings.EVENTSTREAM_LEASE_SECONDS = 1
    asked, others = [], []

    def may_read(user: str, channel: str) -> bool:
        time.sleep(0.4)
        asked.append(user)
        if len(asked) == 4:
            others.append(
                Lease(get_storage(), "default", PARTITION, "a").take(force=True)
            )
        return False

    monkeypatch.setattr("eventstream.relay.may_read", may_read)
    for user in "1234":
        Event.objects.create(
            kind=EventKind.KICK,
            channel="orders",
            partition=PARTITION,
            type="k",
            data=user,
        )
    send()

    report = relay_partition("default", PARTITION, "a")

    assert others == [None]
    assert report.outcome is Outcome.DONE
    assert targets["a"].ids("orders") == ["kick"] * 4 + [1]


def test_kicked_crowd_is_asked_about_no_further_than_it_matters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A proxy asks for each of its streams then, and a web process does so anyway."""
    asked = []

    def may_read(user: str, channel: str) -> bool:
        asked.append(user)
        return user.endswith("7")

    monkeypatch.setattr("eventstream.relay.may_read", may_read)
    crowd = join_users(range(10_000))
    row = OutboxRow(1, 1, EventKind.EVENT, "orders", 1, "m", "1", "", crowd)

    left = split_users(ask_again(row, lambda: None).kicked)

    assert len(asked) < 2 * MAX_KICKED
    assert len(left) == 10_000 - sum(user.endswith("7") for user in asked)


# --- dead letters


def letters(target: str) -> list[int]:
    """Return the ids of a target's dead letters, in order."""
    rows = DeadLetter.objects.filter(target=target).order_by("position")
    return [eid or 0 for eid in rows.values_list("eid", flat=True)]


def retry(target: str, *eids: int) -> RetryReport:
    rows = DeadLetter.objects.filter(target=target)
    if eids:
        rows = rows.filter(eid__in=eids)
    return retry_dead_letters(
        "default", target, list(rows.values_list("pk", flat=True))
    )


def test_event_that_was_given_up_is_passed_over(targets: Targets) -> None:
    targets["a"].is_down = True
    send(4)
    relay_all("default")
    for eid in (2, 4):
        event = Event.objects.get(eid=eid)
        give_up("default", "a", event.pk, "Given up by ann.")
    targets["a"].is_down = False

    report = relay_partition("default", PARTITION, "a", force=True)

    assert targets["a"].ids("orders") == [1, 3]
    assert targets["b"].ids("orders") == [1, 2, 3, 4]
    assert report.event_count == 2
    assert letters("a") == [2, 4]
    assert pending("default") == []


def test_dead_letter_is_told_of_once_it_is_committed(targets: Targets) -> None:
    """Whoever hears of it may take its time; until the end relays wait, and on SQLite senders."""
    told = []

    def hear(event: Event, **_: object) -> None:
        told.append((event.eid, connection.in_atomic_block))

    event_dead_lettered.connect(hear)
    targets["a"].poison = {"0"}
    send(2)
    relay_all("default")
    targets["a"].is_down = True
    send()
    relay_all("default")

    give_up("default", "a", Event.objects.get(eid=3).pk, "Given up by ann.")

    assert told == [(1, False), (3, False)]


def test_newest_event_of_a_backlog_is_one_that_was_not_given_up(
    targets: Targets,
) -> None:
    """If nothing were published, no reader would notice before the next event."""
    targets["a"].is_down = True
    send(3)
    relay_all("default")
    Cursor.objects.update(failing_since=Now() - ago(31))
    give_up("default", "a", Event.objects.get(eid=3).pk, "")
    targets["a"].is_down = False

    relay_partition("default", PARTITION, "a", force=True)

    assert targets["a"].ids("orders") == [2]
    assert pending("default") == []


def test_sweep_passes_over_what_fails_in_a_way_of_its_own(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target of the project's own may raise anything, and a database take its time."""
    monotonic, passed = time.monotonic, 0

    def fail() -> None:
        nonlocal passed
        passed += 30
        raise ValueError("no such thing")

    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + passed)
    targets["a"].before = fail
    for number in range(5):
        send(channel=f"room-{number}")

    reports = relay_all("default")

    outcomes = {
        name: {r.outcome for (_, n), r in reports.items() if n == name} for name in "ab"
    }
    assert outcomes == {"a": {Outcome.FAILED}, "b": {Outcome.DONE}}
    assert {r.error for (_, n), r in reports.items() if n == "a"} == {
        "ValueError: no such thing"
    }
    assert sum(len(targets["b"].ids(f"room-{number}")) for number in range(5)) == 5


def test_partition_that_never_ends_leaves_others_their_turn_in_a_sweep(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing but the sweep relays, nobody else would give them one, nor prune."""
    hot, quiet = sorted(["orders", "elsewhere"], key=partition_of)
    assert partition_of(hot) < partition_of(quiet)
    monkeypatch.setattr("eventstream.relay.TURN", 0.0)
    left = [partial(send, channel=hot)] * 49

    def send_another() -> None:
        if left:
            left.pop()()

    targets["a"].before = targets["b"].before = send_another
    send(channel=hot)
    send(channel=quiet)

    reports = relay_all("default")

    for target in targets.values():
        channels = [channel for channel, _, _ in target.received]
        assert channels.index(quiet) < len(channels) / 2
        assert target.ids(hot) == list(range(1, 51))
    assert sum(report.event_count for report in reports.values()) == 2 * 51
    assert pending("default") == []


def test_sweep_ends_though_a_partition_does_not(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstream.relay.TURN", 0.0)
    monkeypatch.setattr("eventstream.relay.LONGEST_SWEEP", 0.0)
    targets["a"].before = send
    send()

    report = relay_all("default")[PARTITION, "a"]

    assert (report.outcome, report.event_count) == (Outcome.MORE, 1)
    assert not Cursor.objects.exclude(lease_token="").exists()


def test_sweep_has_others_go_on_with_what_it_leaves(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstream.relay.TURN", 0.0)
    monkeypatch.setattr("eventstream.relay.LONGEST_SWEEP", 0.0)
    woken: list[object] = []
    send()
    send(channel="elsewhere")
    monkeypatch.setattr(IdleDispatcher, "wake", lambda _, *wanted: woken.append(wanted))
    targets["a"].before = lambda: Event.objects.create(
        partition=PARTITION, channel="orders", type="message", data="more"
    )

    republish.apply()

    assert woken == [("default", {PARTITION})]


def test_clock_of_the_database_that_was_set_back_keeps_nothing_waiting(
    targets: Targets,
) -> None:
    targets["a"].is_down = True
    send()
    relay_all("default")
    later = Now() + ago(3600)
    Cursor.objects.filter(target="a").update(next_attempt=later)
    # Of a relay that was killed.
    Cursor.objects.filter(target="b").update(lease_token="x", lease_until=later)
    targets["a"].is_down = False
    send()

    jobs.republish("default")

    assert targets["a"].ids("orders") == [1, 2]
    assert targets["b"].ids("orders") == [1, 2]


def test_worker_s_time_limit_ends_a_sweep(targets: Targets) -> None:
    """It is an error like any other, and comes once."""

    def fail() -> None:
        raise SoftTimeLimitExceeded

    targets["a"].before = fail
    send()

    result = republish.apply().result

    assert isinstance(result, SoftTimeLimitExceeded)
    assert targets["b"].received == []


def test_unnumbered_event_can_be_given_up(targets: Targets) -> None:
    relay_partition("default", PARTITION, "a")
    send()

    give_up("default", "a", Event.objects.get().pk, "")
    relay_all("default")

    assert targets["a"].received == []
    assert targets["b"].ids("orders") == [1]


def test_unnumbered_event_is_given_up_for_one_target_only(targets: Targets) -> None:
    """Nobody has come by yet: the other targets' cursors begin before it has an id."""
    send(2)

    give_up("default", "a", Event.objects.first().pk, "")  # type: ignore[union-attr]
    relay_all("default")

    assert targets["a"].ids("orders") == [2]
    assert targets["b"].ids("orders") == [1, 2]


def test_relay_whose_lease_has_run_out_notices_that_something_was_given_up(
    targets: Targets,
) -> None:
    targets["a"].is_down = True
    send()
    relay_all("default")
    lease = Lease(get_storage(), "default", PARTITION, "a")
    assert lease.take(force=True)
    Cursor.objects.filter(target="a").update(lease_until=Now() - ago(1))

    give_up("default", "a", Event.objects.get().pk, "")

    with pytest.raises(LeaseLostError):
        lease.renew()


def test_only_what_waits_can_be_given_up(targets: Targets) -> None:
    send()
    relay_all("default")
    event = Event.objects.get()
    kick = Event.objects.create(
        kind=EventKind.KICK, channel="orders", partition=PARTITION, type="k", data="7"
    )
    wrong = [
        ("a", event.pk, "does not wait"),
        ("a", kick.pk, "never given up"),
        ("a", kick.pk + 1, "not stored"),
        ("gone", event.pk, "not in the settings"),
    ]

    for target, key, words in wrong:
        with pytest.raises(CannotGiveUpError, match=words):
            give_up("default", target, key, "")

    assert not DeadLetter.objects.exists()


def test_dead_letter_is_published_when_the_target_takes_it(targets: Targets) -> None:
    targets["a"].poison = {"1"}
    send(2)
    relay_all("default")

    again = retry("a")
    targets["a"].poison = set()
    accepted = retry("a")

    assert (again.refused, again.published) == (1, 0)
    assert (accepted.refused, accepted.published) == (0, 1)
    assert targets["a"].ids("orders") == [1, 2]
    assert letters("a") == []


def test_dead_letters_are_published_in_order(targets: Targets) -> None:
    targets["a"].poison = {"1", "2"}
    send(3)
    relay_all("default")
    targets["a"].poison = set()

    report = retry("a")

    assert report == RetryReport(published=2)
    assert targets["a"].ids("orders") == [1, 2, 3]


def test_dead_letter_is_not_published_after_a_newer_event(targets: Targets) -> None:
    """Its readers have it from the log: it would be late, and the second."""
    targets["a"].poison = {"0"}
    send(2)
    relay_all("default")
    targets["a"].poison = set()

    report = retry("a")

    assert report == RetryReport(superseded=1)
    assert targets["a"].ids("orders") == [2]
    assert letters("a") == []


def test_dead_kick_is_published_whatever_came_after(targets: Targets) -> None:
    targets["a"].poison = {"7"}
    Event.objects.create(
        kind=EventKind.KICK, channel="orders", partition=PARTITION, type="k", data="7"
    )
    send()
    relay_all("default")
    assert DeadLetter.objects.filter(target="a").count() == 1
    targets["a"].poison = set()

    report = retry("a")

    assert report == RetryReport(published=1)
    assert targets["a"].ids("orders") == [1, "kick"]


def test_retried_event_whose_turn_has_not_come_is_published_in_order(
    targets: Targets,
) -> None:
    targets["a"].is_down = True
    send(3)
    relay_all("default")
    give_up("default", "a", Event.objects.get(eid=2).pk, "")
    targets["a"].is_down = False
    Cursor.objects.update(next_attempt=None)

    report = retry("a")

    assert report == RetryReport(due=1)
    assert targets["a"].ids("orders") == [1, 2, 3]


def test_retry_leaves_a_letter_of_a_failing_or_busy_target(targets: Targets) -> None:
    targets["a"].poison = {"0"}
    send(2)
    relay_all("default")
    Event.objects.filter(eid=2).delete()
    targets["a"].poison = set()
    targets["a"].is_down = True

    failing = retry("a")
    Cursor.objects.update(lease_token="another", lease_until=Now() + ago(60))
    busy = retry("a")
    unknown = retry_dead_letters("default", "gone", [1])

    assert failing == RetryReport(error="a is down")
    assert busy == RetryReport(busy=1)
    assert "not in the settings" in unknown.error
    assert letters("a") == [1]
    row = cursor("b")
    assert row.lease_token == "another"


def test_event_sent_during_a_retry_is_not_left_behind(targets: Targets) -> None:
    """Its wake-up found the lease taken, and went away."""
    targets["a"].poison = {"1"}
    send(2)
    relay_all("default")
    targets["a"].poison = set()

    def send_another() -> None:
        targets["a"].before = lambda: None
        send(1)
        assert relay_partition("default", PARTITION, "a").outcome is Outcome.BUSY

    targets["a"].before = send_another
    report = retry("a")

    assert report == RetryReport(published=1)
    assert targets["a"].ids("orders") == [1, 2, 3]


def test_who_may_read_again_is_not_named_as_kicked(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    partition = partition_of("orders")
    for user_id in ("1", "2"):
        Event.objects.create(kind=EventKind.KICK, partition=partition, channel="orders", type="kick", data=user_id)  # fmt: skip
    send(1)
    monkeypatch.setattr(
        "eventstream.relay.may_read", lambda user_id, channel: user_id == "2"
    )
    named = []
    original = RecordingTarget.encode

    def encode(self: RecordingTarget, row: OutboxRow) -> list[Item]:
        named.append((row.eid, row.kicked))
        return original(self, row)

    monkeypatch.setattr(RecordingTarget, "encode", encode)
    relay_partition("default", partition, "a")

    assert named == [(None, ""), (None, ""), (1, ",1,")]
