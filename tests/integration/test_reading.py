"""What a reader does when nobody else is at work."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.db import transaction
from django.test import RequestFactory
from pytest_django import Settings

from eventstream import EventSpec, send_event, send_events
from eventstream.models import Channel, Cursor, Event, EventKind
from eventstream.pieces import Wanted, read_piece
from eventstream.reading import Reader, number_stale, read_page, read_request
from eventstream.relay import relay_all
from eventstream.rows import partition_of
from eventstream.storage import DjangoModelStorage, get_storage
from eventstream.testing import drain_outbox
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)


def test_events_that_a_reader_numbered_first_still_reach_the_targets(
    targets: dict[str, RecordingTarget], settings: Settings
) -> None:
    settings.EVENTSTREAM_UNNUMBERED_AFTER = 0
    send_event("orders", "message", 1)
    assert not Cursor.objects.exists()

    number_stale(get_storage(), "default")
    relay_all("default")

    assert Event.objects.filter(eid=1).exists()
    assert [target.ids("orders") for target in targets.values()] == [[1], [1]]


def test_reader_in_a_transaction_gives_no_ids(settings: Settings) -> None:
    """It may roll back, and they would be given a second time to others."""
    settings.EVENTSTREAM_UNNUMBERED_AFTER = 0
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    send_event("orders", "message", 1)

    with transaction.atomic():
        read_page(Reader(("orders",), "", {"orders": 0}))
        assert Event.objects.get().eid is None

    read_page(Reader(("orders",), "", {"orders": 0}))
    assert Event.objects.get().eid == 1


def test_event_numbered_while_nothing_was_found_is_no_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send_event("orders", "message", 1)
    drain_outbox()
    storage = get_storage()
    original = DjangoModelStorage.current_ids

    def number_then_read(self: DjangoModelStorage, *args: Any) -> Any:
        send_event("orders", "message", 2)
        drain_outbox()
        return original(self, *args)

    monkeypatch.setattr(DjangoModelStorage, "current_ids", number_then_read)
    log = storage.read_after("default", "orders", 1, limit=10)

    assert (log.is_reset, [event.eid for event in log.events]) == (False, [2])


def test_page_ends_before_a_hole() -> None:
    """Of events deleted by hand, or of a channel whose partition has changed: the older are in
    one that is pruned after that of the newer."""
    send_events(EventSpec("orders", "message", n) for n in range(10))
    drain_outbox()
    Event.objects.filter(eid=5).delete()
    storage = get_storage()

    log = storage.read_after("default", "orders", 2, limit=100)
    after = storage.read_after("default", "orders", 4, limit=100, last_eid=log.last_eid)

    assert ([event.eid for event in log.events], log.last_eid) == ([3, 4], 10)
    assert (after.is_reset, after.rows) == (True, [])
    page = read_page(Reader(("orders",), "", {"orders": 2}))
    assert page.text.count("event: message") == 2
    assert (page.positions, page.is_last) == ({"orders": 4}, False)
    page = read_page(Reader(("orders",), "", page.positions))
    assert page.text.startswith("id: orders:10\nevent: stream-reset")


def test_partition_that_cannot_be_numbered_keeps_no_other_waiting(
    targets: dict[str, RecordingTarget], settings: Settings
) -> None:
    settings.EVENTSTREAM_UNNUMBERED_AFTER = 0
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    names = sorted([f"room-{n}" for n in range(5)], key=partition_of)
    send_events(EventSpec(name, "message", 1) for name in names)
    drain_outbox()
    Channel.objects.filter(
        name=names[1]
    ).delete()  # by hand: its ids would be given twice
    send_events(EventSpec(name, "message", 2) for name in names)

    number_stale(get_storage(), "default")

    unnumbered = Event.objects.filter(position=None)
    assert [event.channel for event in unnumbered] == [names[1]]
    assert relay_all("default")
    assert unnumbered.count() == 1


def test_events_have_the_position_behind_what_was_lost() -> None:
    """With a position that is not in the log yet, a client that comes back would miss what
    is between; with one that is not any more, it would be reset again."""
    for channel in ("a", "b", "c"):
        send_events(EventSpec(channel, "message", n) for n in range(5))
    drain_outbox()

    page = read_page(Reader(("a", "b", "c"), "", {"a": 3, "b": 9, "c": 4}))

    assert re.findall("id: (.*)\n(?:event: (.*)\n)", page.text) == [
        ("a:3,b:5,c:4", "stream-reset"),
        ("a:4,b:5,c:4", "message"),
        ("a:5,b:5,c:4", "message"),
        ("a:5,b:5,c:5", "message"),
    ]
    assert (page.positions, page.is_last) == ({"a": 5, "b": 5, "c": 5}, True)


def test_page_is_read_in_several_queries_and_ends_before_what_was_pruned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send_events(EventSpec("orders", "message", n) for n in range(10))
    drain_outbox()
    monkeypatch.setattr("eventstream.pieces.ROWS_PER_READ", 3)
    storage = get_storage()

    def read(limit: int, after: int = 0) -> tuple[list[int], int, bool]:
        wanted = Wanted("default", "orders", after, 10, limit, 1_000_000, "", "")
        piece = read_piece(storage, wanted, "")
        ids = [int(number) for number in re.findall("id: ([0-9]+)", piece.text)]
        assert piece.event_count == len(ids)
        return ids, piece.last_eid, piece.is_reset

    assert read(100) == (list(range(1, 11)), 10, False)
    assert read(7, after=2) == (list(range(3, 10)), 10, False)
    assert read(3, after=10) == ([], 10, False)

    original = DjangoModelStorage.read_after

    def read_then_prune(self: DjangoModelStorage, *args: Any, **options: Any) -> Any:
        log = original(self, *args, **options)
        Event.objects.filter(eid__lte=5).delete()
        return log

    monkeypatch.setattr(DjangoModelStorage, "read_after", read_then_prune)
    assert read(100) == ([1, 2, 3], 10, False)
    assert read(100, after=3) == ([], 10, True)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("EVENTSTREAM_PAGE_SIZE", 2), ("EVENTSTREAM_PAGE_BYTES", 10_000)],
)
def test_page_that_one_channel_fills_is_not_the_last(
    settings: Settings, setting: str, value: int
) -> None:
    """A proxy would hold the stream without the others' events."""
    setattr(settings, setting, value)
    send_events(EventSpec("orders", "message", "x" * 5_000) for _ in range(2))
    send_event("parcels", "message", 1)
    drain_outbox()
    reader = Reader(("orders", "parcels"), "", {"orders": 0, "parcels": 0})

    page = read_page(reader)
    further = read_page(Reader(reader.channels, "", page.positions))

    assert (page.positions, page.is_last) == ({"orders": 2, "parcels": 0}, False)
    assert (further.positions, further.is_last) == ({"orders": 2, "parcels": 1}, True)


def test_page_is_as_large_as_its_settings_say_whatever_its_ids_name() -> None:
    """Whoever asks chooses what else the id of each event names."""
    send_events(EventSpec("orders", "message", n) for n in range(2000))
    drain_outbox()
    names = [f"{n}{255 * '!'}"[:255] for n in range(9)]
    positions = {"orders": 0}
    found: list[str] = []

    is_last = False
    while not is_last:
        page = read_page(Reader(("orders", *names), "", positions))
        positions, is_last = page.positions, page.is_last
        assert len(page.text) < 2_000_000
        found += re.findall(r"^data: (\d+)$", page.text, re.MULTILINE)

    assert found == [str(n) for n in range(2000)]


def test_kicks_are_found_in_each_of_many_partitions() -> None:
    """SQLite takes no expression with so many ORs: they are asked for in several."""
    for number in (0, 199, 200, 401, 999):
        row = Event(kind=EventKind.KICK, partition=number, channel=f"c{number}", type="kick", data="7")  # fmt: skip
        get_storage().append("default", [row])
        get_storage().number_all("default", number)

    found = get_storage().kicks_after("default", dict.fromkeys(range(1_000), 0))

    assert [number for number, *_ in found] == [0, 199, 200, 401, 999]


def test_position_of_channels_that_the_stream_has_not_is_left_out() -> None:
    """A stream keeps its position for as long as it is open."""
    others = ",".join(f"other-{n}:1" for n in range(1_000))
    request = RequestFactory().get(
        "/events/?channel=orders", headers={"Last-Event-ID": f"{others},orders:3"}
    )

    assert read_request(request, {}).positions == {"orders": 3}
