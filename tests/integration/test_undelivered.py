"""Finding what has not reached which target."""

from __future__ import annotations

import datetime

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from eventstream import EventSpec, send_event, send_events
from eventstream.deadletters import give_up
from eventstream.models import Cursor, DeadLetter, Event, Partition
from eventstream.pausing import pause_target
from eventstream.relay import relay_all, relay_partition
from eventstream.rows import partition_of
from eventstream.undelivered import (
    DEAD,
    MAX_OFFSET,
    WAITING,
    Search,
    UndeliveredPage,
    find_undelivered,
)
from tests.integration.test_relay import ago
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)

Targets = dict[str, RecordingTarget]


def find(offset: int = 0, limit: int = 50, **search: object) -> UndeliveredPage:
    return find_undelivered(
        "default",
        Search(**search),  # type: ignore[arg-type]
        offset=offset,
        limit=limit,
    )


def pairs(page: UndeliveredPage) -> list[tuple[str, int | None, str]]:
    """Return (channel, id, target) of a page, in order."""
    return [
        (row.event.channel, row.event.eid, lack.target)
        for row in page.events
        for lack in row.lacks
    ]


def test_event_is_shown_with_the_target_that_lacks_it(targets: Targets) -> None:
    targets["a"].is_down = True
    send_event("orders", "message", 1)
    relay_all("default")

    [row] = find().events

    [lack] = row.lacks
    assert (row.event.channel, row.event.eid) == ("orders", 1)
    assert (lack.target, lack.attempts, lack.error) == ("a", 1, "a is down")
    assert lack.failing_since is not None
    assert lack.next_attempt is not None
    assert not (lack.is_dead)
    assert lack.pause == ""


def test_confirmed_events_are_not_shown(targets: Targets) -> None:
    send_event("orders", "message", 1)
    relay_all("default")

    assert find() == UndeliveredPage([], has_more=False)


def test_unnumbered_event_waits_for_every_target(targets: Targets) -> None:
    send_event("orders", "message", 1)

    assert pairs(find()) == [("orders", None, "a"), ("orders", None, "b")]


def test_unnumbered_event_waits_for_its_id_where_there_is_no_target(
    targets: Targets,
) -> None:
    targets.clear()
    send_event("orders", "message", 1)

    assert pairs(find()) == [("orders", None, "")]


def test_target_that_is_newer_than_an_event_does_not_lack_it(targets: Targets) -> None:
    send_event("orders", "message", 1)
    relay_all("default")
    targets["new"] = RecordingTarget("new")

    assert pairs(find()) == []


def test_dead_letter_is_shown_as_dead(targets: Targets) -> None:
    targets["a"].poison = {"1"}
    send_events([EventSpec("orders", "message", n) for n in range(3)])
    relay_all("default")

    page = find()

    assert pairs(page) == [("orders", 2, "a")]
    lack = page.events[0].lacks[0]
    assert lack.is_dead
    assert lack.letter_id == DeadLetter.objects.get().pk
    assert pairs(find(state=DEAD)) == pairs(page)
    assert pairs(find(state=WAITING)) == []


def test_event_given_up_for_one_target_still_waits_for_another(
    targets: Targets,
) -> None:
    for target in targets.values():
        target.is_down = True
    send_event("orders", "message", 1)
    relay_all("default")
    give_up("default", "a", Event.objects.get().pk, "")

    assert pairs(find(state=WAITING)) == [("orders", 1, "b")]
    assert pairs(find(state=DEAD)) == [("orders", 1, "a")]
    assert pairs(find()) == [("orders", 1, "a"), ("orders", 1, "b")]
    assert pairs(find(target="a", state=WAITING)) == []


def test_event_whose_targets_all_gave_it_up_does_not_wait(targets: Targets) -> None:
    for target in targets.values():
        target.is_down = True
    send_events([EventSpec("orders", "message", n) for n in range(3)])
    relay_all("default")
    for name in targets:
        give_up("default", name, Event.objects.get(eid=1).pk, "")

    first = find(state=WAITING, limit=1)

    assert [eid for _, eid, _ in pairs(first)] == [2, 2]
    assert first.has_more


@pytest.mark.parametrize("is_newest_first", [False, True])
def test_pages_follow_each_other(targets: Targets, is_newest_first: bool) -> None:
    targets["a"].is_down = True
    send_events([EventSpec(f"room-{n}", "message", n) for n in range(25)])
    for number in {partition_of(f"room-{n}") for n in range(25)}:
        relay_partition("default", number, "a")
        relay_partition("default", number, "b")
    send_events([EventSpec(f"new-{n}", "message", n) for n in range(5)])

    found = [
        find(offset=offset, limit=7, is_newest_first=is_newest_first)
        for offset in range(0, 35, 7)
    ]

    keys = [row.event.pk for page in found for row in page.events]
    assert keys == sorted(keys, reverse=is_newest_first)
    assert len(keys) == 30
    assert [page.has_more for page in found] == [True, True, True, True, False]


def test_filters_narrow_it_down(targets: Targets) -> None:
    for target in targets.values():
        target.is_down = True
    for name in ("room-1", "room-2", "orders"):
        send_event(name, "message", 1)
    relay_all("default")
    old = datetime.timedelta(seconds=100)
    Event.objects.filter(channel="room-2").update(created=F("created") - old)
    send_event("room-3", "message", 1)

    def channels(**search: object) -> set[str]:
        return {channel for channel, _, _ in pairs(find(**search))}  # type: ignore[arg-type]

    assert channels(channel="room-") == {"room-1", "room-2", "room-3"}
    assert channels(channel="room-%") == set()
    assert channels(older_than=60) == {"room-2"}
    assert {target for _, _, target in pairs(find(target="a"))} == {"a"}
    assert pairs(find(target="gone")) == []


def test_prefix_of_very_many_channels_finds_all(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eventstream.undelivered._CHANNELS", 2)
    targets["a"].is_down = True
    send_events([EventSpec(f"room-{n}", "message", n) for n in range(4)])
    relay_all("default")

    assert len(find(channel="room-").events) == 4


def test_paused_target_is_shown_as_paused(targets: Targets) -> None:
    pause_target("default", "a", reason="mending")
    send_event("orders", "message", 1)
    relay_all("default")
    relay_partition("default", partition_of("orders"), "a")

    [row] = find().events

    assert [(lack.target, "paused" in lack.pause) for lack in row.lacks] == [
        ("a", True)
    ]


def test_no_query_reads_the_data_or_depends_on_the_backlog(targets: Targets) -> None:
    targets["a"].is_down = True
    send_event("orders", "message", "x" * 5000)
    relay_all("default")
    with CaptureQueriesContext(connection) as few:
        find()
    send_events([EventSpec("orders", "message", n) for n in range(300)])
    relay_partition("default", partition_of("orders"), "a", force=True)

    with CaptureQueriesContext(connection) as many:
        page = find()

    assert len(page.events) == 50
    assert len(page.events[0].event.beginning) == 121
    assert len(many) == len(few) <= 11
    columns = [q["sql"].partition(" FROM ")[0] for q in many]
    assert not [c for c in columns if ', "eventstream_event"."data"' in c]


def test_paging_has_an_end(targets: Targets) -> None:
    with pytest.raises(ValueError, match="offset"):
        find(offset=MAX_OFFSET + 1)


def test_age_is_found_by_halving_also_where_events_overlap(targets: Targets) -> None:
    targets["a"].is_down = targets["b"].is_down = True
    send_events([EventSpec("orders", "message", n) for n in range(40)])
    relay_all("default")
    minutes = [40 - n for n in range(40)]
    minutes[30] = 25  # written by a transaction that stayed open for long
    for number, age in enumerate(minutes):
        Event.objects.filter(eid=number + 1).update(
            created=Now() - datetime.timedelta(minutes=age)
        )
    Event.objects.filter(eid__in=[1, 2]).delete()  # pruned, after the retention

    page = find(older_than=20.5 * 60)

    assert [row.event.eid for row in page.events] == [*range(3, 21), 31]


def test_age_that_nothing_has_reads_a_few_rows(targets: Targets) -> None:
    targets["a"].is_down = targets["b"].is_down = True
    send_events([EventSpec("orders", "message", n) for n in range(300)])
    relay_all("default")

    with CaptureQueriesContext(connection) as queries:
        page = find(older_than=60)

    assert page.events == []
    assert len(queries) < 20


def test_age_is_found_in_any_number_of_partitions(targets: Targets) -> None:
    numbers = range(1500)
    Partition.objects.bulk_create(
        [Partition(number=n, last_position=1) for n in numbers]
    )
    Cursor.objects.bulk_create([Cursor(partition=n, target="a") for n in numbers])
    Event.objects.bulk_create(
        [
            Event(
                partition=n, position=1, eid=1, channel=f"orders-{n}", type="message",
                data="1",
            )
            for n in numbers
        ]
    )  # fmt: skip
    Event.objects.filter(partition=1400).update(created=Now() - ago(120))

    page = find(older_than=60)

    assert [row.event.channel for row in page.events] == ["orders-1400"]
