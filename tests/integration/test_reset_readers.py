"""After a restored backup no old position goes on, and every new one is consecutive."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.db import IntegrityError
from pytest_django import Settings

from eventstream import EventSpec, send_event, send_events
from eventstream.models import Channel, DeadLetter, Event, Partition
from eventstream.reading import Reader, read_page
from eventstream.relay import relay_all
from eventstream.rows import partition_of
from eventstream.storage import get_storage
from tests.support.sse import Message, Parser
from tests.support.targets import RecordingTarget, relay_now

pytestmark = pytest.mark.django_db(transaction=True)

Targets = dict[str, RecordingTarget]


def send(count: int, channel: str = "orders") -> None:
    send_events([EventSpec(channel, "message", n) for n in range(count)])
    relay_all("default")


def read(channel: str, position: int) -> list[Message]:
    page = read_page(Reader((channel,), "", {channel: position}))
    return Parser().feed(page.text.encode())


def head(channel: str = "orders") -> int:
    return get_storage().current_ids("default", [channel])[channel]


@pytest.mark.parametrize("position", range(8))
def test_every_old_position_is_a_reset(targets: Targets, position: int) -> None:
    send(5)

    get_storage().reset_readers("default")

    (message,) = read("orders", position)
    assert (message.type, message.id) == ("stream-reset", f"orders:{head()}")
    send(3)
    first = int(message.id.rpartition(":")[2])
    following = read("orders", first)
    assert [m.id for m in following] == [f"orders:{first + n}" for n in (1, 2, 3)]


def test_stored_events_stay_readable_from_new_positions(targets: Targets) -> None:
    send(5)
    get_storage().reset_readers("default")

    assert [m.data for m in read("orders", head() - 3)] == ["2", "3", "4"]


def test_channel_that_the_backup_does_not_know_is_reset_too(targets: Targets) -> None:
    get_storage().reset_readers("default")

    before = head("lost")
    (message,) = read("lost", 7)
    assert (message.type, message.id) == ("stream-reset", f"lost:{before}")
    send(9, channel="lost")
    assert read("lost", 7)[0].type == "stream-reset"
    assert [m.id for m in read("lost", before)] == [
        f"lost:{before + n}" for n in range(1, 10)
    ]


def test_new_channel_of_a_partition_that_is_added_later(
    targets: Targets, settings: Settings
) -> None:
    get_storage().reset_readers("default")
    settings.EVENTSTREAM_PARTITIONS = 4000
    before = head("later")

    send(2, channel="later")

    assert Partition.objects.filter(number__gte=16).exists()
    assert [m.id for m in read("later", before)] == [
        f"later:{before + 1}",
        f"later:{before + 2}",
    ]


def test_ids_of_an_earlier_reset_are_passed_though_the_backup_is_older(
    targets: Targets,
) -> None:
    send(3)
    tables: list[Any] = [Event, Channel, Partition]
    backup = [list(model.objects.values()) for model in tables]
    get_storage().reset_readers("default")
    send(4)
    seen = head()
    for model, rows in zip(tables, backup, strict=True):
        model.objects.all().delete()
        model.objects.bulk_create([model(**row) for row in rows])

    get_storage().reset_readers("default")

    assert head() > seen
    assert read("orders", seen)[0].type == "stream-reset"


def test_ids_move_on_where_the_clock_has_gone_back(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    send(2)
    get_storage().reset_readers("default")
    before = head()
    past = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    monkeypatch.setattr("eventstream.numbering.database_now", lambda using: past)

    get_storage().reset_readers("default")

    assert head() == before + 1_000_000_000


def test_what_waits_is_published_under_the_new_ids(targets: Targets) -> None:
    targets["a"].poison = {"1"}
    send(2)
    targets["b"].is_down = True
    send_event("orders", "message", "waits")
    relay_all("default")

    get_storage().reset_readers("default")
    targets["b"].is_down = False
    relay_now("default")

    assert targets["b"].ids("orders") == [1, 2, head()]
    letter = DeadLetter.objects.get()
    assert Event.objects.get(pk=letter.event_id).eid == letter.eid == head() - 1


def test_deleted_partition_goes_on_where_it_was(targets: Targets) -> None:
    """Below that its events would count as accepted, until one met a stored position."""
    send(3)
    Partition.objects.all().delete()

    send(2)

    assert targets["a"].ids("orders") == [1, 2, 3, 4, 5]
    row = Partition.objects.get(number=partition_of("orders"))
    assert row.last_position == 5


def test_deleted_partition_goes_on_where_targets_were(targets: Targets) -> None:
    """Also if all that they had accepted has been pruned."""
    send(3)
    Event.objects.all().delete()
    Partition.objects.all().delete()

    send(2)

    assert targets["a"].ids("orders") == [1, 2, 3, 4, 5]


def number() -> None:
    storage = get_storage()
    storage.number_all("default", partition_of("orders"))


@pytest.mark.parametrize("model", [Channel, Partition])
def test_rows_set_back_by_hand_are_mended_by_a_reset(
    targets: Targets, model: Any
) -> None:
    send(5)
    if model is Channel:
        Channel.objects.all().delete()
    else:
        Partition.objects.update(last_position=0)
    send_events([EventSpec("orders", "message", n) for n in range(5, 8)])
    with pytest.raises(IntegrityError, match="eventstream reset-readers` mends"):
        number()

    get_storage().reset_readers("default")
    relay_now("default")

    first = head() - 7
    assert first > 1_000_000_000
    following = [first + n for n in (5, 6, 7)]
    assert targets["a"].ids("orders") == [1, 2, 3, 4, 5, *following]
    assert [m.data for m in read("orders", first)] == [str(n) for n in range(1, 8)]
    for position in range(9):
        assert read("orders", position)[0].type == "stream-reset"


def test_reset_gives_no_id_of_a_channel_that_began_again(targets: Targets) -> None:
    """Its row was deleted while what it had given first was pruned: none was in the way."""
    send(5)
    Event.objects.filter(eid__lt=4).delete()
    Channel.objects.all().delete()
    send(2)
    assert head() == 2

    get_storage().reset_readers("default")
    send(2)

    first = head() - 7
    given = Event.objects.order_by("eid").values_list("eid", flat=True)
    assert [(eid or 0) - first for eid in given] == [1, 2, 4, 5, 6, 7]
    assert targets["a"].ids("orders")[-2:] == [head() - 1, head()]
