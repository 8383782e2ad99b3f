"""A paused target gets nothing; a resumed one gets what it missed, and no reader a hole."""

from __future__ import annotations

import datetime

import pytest
from django.db import connections
from django.db.models.functions import Now
from pytest_django import Settings

from eventstream import EventSpec, jobs, send_event, send_events
from eventstream.exceptions import UnknownTargetError
from eventstream.models import Cursor, Event, PausedTarget
from eventstream.pausing import pause, resume
from eventstream.relay import (
    NO_TARGET,
    Outcome,
    pending,
    publish_unstored,
    relay_all,
    relay_partition,
)
from eventstream.rows import OutboxRow, partition_of
from eventstream.storage import get_storage
from tests.support.targets import RecordingTarget, relay_now

pytestmark = pytest.mark.django_db(transaction=True)

PARTITION = partition_of("orders")
Targets = dict[str, RecordingTarget]


def send(count: int) -> None:
    send_events([EventSpec("orders", "message", n) for n in range(count)])


def ago(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=seconds)


def test_paused_target_gets_nothing_and_the_other_everything(targets: Targets) -> None:
    assert pause("a", reason="new certificate")
    send(3)

    relay_now("default")

    assert targets["a"].received == []
    assert targets["b"].ids("orders") == [1, 2, 3]
    assert pending("default") == []


def test_paused_target_is_not_reminded_of_its_streams(targets: Targets) -> None:
    pause("a", reason="new certificate")

    jobs.republish("default")

    assert [target.reminders for target in targets.values()] == [0, 1]


def test_wake_up_of_a_paused_target_numbers_and_says_why(targets: Targets) -> None:
    pause("a", reason="new certificate")
    send(2)

    report = relay_partition("default", PARTITION, "a", force=True)

    assert report.outcome is Outcome.PAUSED
    assert report.error.startswith("a is paused since 2")
    assert report.error.endswith(": new certificate")
    assert get_storage().current_ids("default", ["orders"]) == {"orders": 2}
    assert (targets["a"].received, targets["b"].received) == ([], [])


def test_sweep_numbers_where_every_target_is_paused(targets: Targets) -> None:
    pause("a")
    pause("b")
    send(2)

    assert pending("default") == [(PARTITION, NO_TARGET)]
    jobs.republish("default")

    assert get_storage().current_ids("default", ["orders"]) == {"orders": 2}
    resume("a")
    relay_all("default")
    assert targets["a"].ids("orders") == [1, 2]


def test_relay_at_work_ends_after_its_batch(
    targets: Targets, settings: Settings
) -> None:
    settings.EVENTSTREAM_BATCH_SIZE = 2
    send(10)

    def pause_meanwhile() -> None:
        pause("a")
        connections.close_all()  # of the thread that publishes

    targets["a"].before = pause_meanwhile

    report = relay_partition("default", PARTITION, "a")

    assert report.outcome is Outcome.PAUSED
    assert targets["a"].ids("orders") == [1, 2]
    assert Cursor.objects.get(target="a").watermark == 2
    assert Cursor.objects.get(target="a").lease_until is None


def test_relay_with_a_backlog_ends_after_a_batch_too(
    targets: Targets, settings: Settings
) -> None:
    settings.EVENTSTREAM_PARTITIONS = 1
    settings.EVENTSTREAM_BATCH_SIZE = 2
    targets["a"].is_down = True
    send_events([EventSpec(f"room-{n}", "message", n) for n in range(6)])
    relay_all("default")
    Cursor.objects.update(failing_since=Now() - ago(31))
    targets["a"].is_down = False
    targets["a"].before = lambda: pause("a")

    report = relay_partition("default", 0, "a", force=True)

    assert report.outcome is Outcome.PAUSED
    assert [name for name, _, _ in targets["a"].received] == ["room-0", "room-1"]
    resume("a")
    targets["a"].before = lambda: None
    relay_now("default")
    assert {name for name, _, _ in targets["a"].received} == {
        f"room-{n}" for n in range(6)
    }


def test_target_resumed_soon_gets_every_event(targets: Targets) -> None:
    send(1)
    relay_all("default")
    pause("a")
    send(3)
    relay_all("default")

    assert resume("a")
    relay_all("default")

    assert targets["a"].ids("orders") == [1, 2, 3, 4]
    assert Cursor.objects.get(target="a").failing_since is None


def test_target_resumed_late_gets_the_newest_of_each_channel(targets: Targets) -> None:
    send(1)
    relay_all("default")
    pause("a")
    send(3)
    relay_all("default")
    PausedTarget.objects.update(since=Now() - ago(31))

    resume("a")
    relay_all("default")
    send(1)
    relay_all("default")

    assert targets["a"].ids("orders") == [1, 4, 5]


def test_target_that_missed_nothing_goes_on_as_before(targets: Targets) -> None:
    send(1)
    relay_all("default")
    pause("a")
    PausedTarget.objects.update(since=Now() - ago(31))

    resume("a")
    send(2)
    relay_all("default")

    assert targets["a"].ids("orders") == [1, 2, 3]


def test_pausing_twice_keeps_the_first_reason(targets: Targets) -> None:
    assert pause("a", reason="first")
    assert not pause("a", reason="second")

    assert PausedTarget.objects.get().reason == "first"
    assert resume("a")
    assert not resume("a")


def test_only_targets_of_the_settings_can_be_paused(targets: Targets) -> None:
    with pytest.raises(UnknownTargetError, match="there are: a, b"):
        pause("grip:http://typo")


@pytest.mark.parametrize(("seconds", "left"), [(86_390, 3), (86_410, 0)])
def test_pause_holds_up_pruning_for_the_retention(
    targets: Targets, seconds: float, left: int
) -> None:
    pause("a")
    send(3)
    relay_all("default")
    relay_partition("default", PARTITION, "a")
    Event.objects.update(created=Now() - ago(90_000))
    PausedTarget.objects.update(since=Now() - ago(seconds))

    jobs.prune("default")

    assert Event.objects.count() == left


def test_target_paused_past_the_retention_goes_on_with_what_is_new(
    targets: Targets,
) -> None:
    pause("a")
    send(3)
    relay_all("default")
    Event.objects.update(created=Now() - ago(90_000))
    PausedTarget.objects.update(since=Now() - ago(90_000))
    jobs.prune("default")

    resume("a")
    relay_all("default")
    send_event("orders", "message", "new")
    relay_all("default")

    assert targets["a"].ids("orders") == [4]
    assert pending("default") == []


def test_best_effort_events_do_not_reach_a_paused_target(targets: Targets) -> None:
    pause("a")
    row = OutboxRow(0, 0, 0, "cursor-1", None, "message", "1", "")

    publish_unstored("a", [row])
    publish_unstored("b", [row])

    assert targets["a"].received == []
    assert targets["b"].ids("cursor-1") == [None]
