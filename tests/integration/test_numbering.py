"""Ids and positions: consecutive, in the order of sending, whoever else sends."""

from __future__ import annotations

import random
import threading

import pytest
from django.db import connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from eventstream import EventSpec, send_event, send_events
from eventstream.models import Channel, Event, EventKind, Partition
from eventstream.rows import partition_of
from eventstream.storage import get_storage

pytestmark = [
    pytest.mark.django_db(transaction=True),
    pytest.mark.usefixtures("targets"),
]


def number_everything() -> int:
    storage = get_storage()
    return sum(storage.number_all("default", p) for p in storage.partitions("default"))


def assert_consistent() -> None:
    """Assert that ids and positions are 1, 2, 3, … and the counters say the same."""
    for channel in set(Event.objects.values_list("channel", flat=True)):
        rows = Event.objects.filter(channel=channel, kind=EventKind.EVENT)
        eids = list(rows.order_by("position").values_list("eid", flat=True))
        assert eids == list(range(1, len(eids) + 1))
        assert Channel.objects.get(name=channel).last_eid == len(eids)
    for partition in set(Event.objects.values_list("partition", flat=True)):
        of_partition = Event.objects.filter(partition=partition).order_by("position")
        positions = list(of_partition.values_list("position", flat=True))
        assert positions == list(range(1, len(positions) + 1))
        last = Partition.objects.get(number=partition).last_position
        assert last == len(positions)


def test_ids_and_positions_count_on_over_batches() -> None:
    storage = get_storage()
    partition = partition_of("orders")
    for _ in range(7):
        send_event("orders", "message", 1)

    counts = [storage.number_batch("default", partition, limit=3) for _ in range(4)]

    assert counts == [3, 3, 1, 0]
    assert_consistent()
    assert storage.last_position("default", partition) == 7


def test_kick_has_a_place_and_no_id() -> None:
    partition = partition_of("orders")
    send_event("orders", "message", 1)
    Event.objects.create(
        partition=partition,
        kind=EventKind.KICK,
        channel="orders",
        type="kick",
        data="5",
    )
    send_event("orders", "message", 2)

    number_everything()

    rows = Event.objects.order_by("position").values_list("kind", "position", "eid")
    assert list(rows) == [(0, 1, 1), (1, 2, None), (0, 3, 2)]


def test_kick_in_a_channel_without_events_makes_no_channel() -> None:
    Event.objects.create(
        partition=3, kind=EventKind.KICK, channel="new", type="kick", data="5"
    )

    assert number_everything() == 1
    assert not Channel.objects.exists()


@pytest.mark.parametrize("limit", [0, 10_001])
def test_limit_out_of_range_is_refused(limit: int) -> None:
    with pytest.raises(ValueError, match="limit must be 1 to 10000"):
        get_storage().number_batch("default", 0, limit=limit)


def test_concurrent_senders_and_numberers_leave_no_hole() -> None:
    channels = ["a", "b", "c"]
    sent: dict[str, list[str]] = {}
    stop = threading.Event()
    errors: list[BaseException] = []

    def send(name: str) -> None:
        chance = random.Random(name)
        try:
            for number in range(40):
                with transaction.atomic():
                    for _ in range(chance.randint(1, 3)):
                        channel = chance.choice(channels)
                        send_event(channel, "message", f"{name}-{number}")
                    transaction.set_rollback(chance.random() < 0.3)
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    def number() -> None:
        try:
            while not stop.is_set():
                number_everything()
        except BaseException as error:
            errors.append(error)
        finally:
            connections.close_all()

    senders = [threading.Thread(target=send, args=(f"s{n}",)) for n in range(4)]
    numberers = [threading.Thread(target=number) for _ in range(2)]
    for thread in senders + numberers:
        thread.start()
    for thread in senders:
        thread.join()
    stop.set()
    for thread in numberers:
        thread.join()
    number_everything()

    assert errors == []
    assert_consistent()
    # One sender's events of a channel keep their order.
    for row in Event.objects.order_by("channel", "eid"):
        name = row.data.strip('"').partition("-")[0]
        sent.setdefault(f"{row.channel} {name}", []).append(row.data.strip('"'))
    for order in sent.values():
        numbers = [int(text.partition("-")[2]) for text in order]
        assert numbers == sorted(numbers)
    assert len(sent) == 12


def send_kick(user_id: str, channel: str) -> None:
    row = Event(kind=EventKind.KICK, partition=0, channel=channel, type="kick", data=user_id)  # fmt: skip
    get_storage().append("default", [row])


def send_to(channel: str) -> None:
    row = Event(partition=0, channel=channel, type="message", data="1")
    get_storage().append("default", [row])


def fill(what: str) -> None:
    """Write nothing, an event each to two channels, kicks and an event, or more than a batch."""
    if what != "nothing":
        send_to("orders")
        send_to("chat")
    if what == "kicks":
        send_kick("7", "orders")
        send_kick("8", "chat")
        send_to("orders")
    if what == "many":
        for _ in range(7):
            send_to("orders")


@pytest.mark.parametrize("before", ["nothing", "events", "kicks"])
@pytest.mark.parametrize("then", ["nothing", "events", "kicks", "many"])
@pytest.mark.parametrize("behind", [0, 1])
def test_what_is_numbered_and_read_at_once_is_what_is_read_afterwards(
    before: str, then: str, behind: int
) -> None:
    storage = get_storage()
    fill(before)
    storage.number_all("default", 0)
    after = max(0, storage.last_position("default", 0) - behind)
    fill(then)

    found = storage.number_and_read("default", 0, after=after, limit=6, target="a")

    again = storage.read_batch("default", 0, after=after, limit=6, target="a")
    assert [r._replace(age=0) for r in found.rows] == [
        r._replace(age=0) for r in again.rows
    ]
    assert [r.position for r in found.rows] == list(
        range(after + 1, after + 1 + len(found.rows))
    )
    assert all(0 <= row.age < 60 for row in found.rows)
    assert found.has_kicks == again.has_kicks
    storage.number_all("default", 0)
    assert_consistent()


def test_no_more_is_read_than_fits_into_memory() -> None:
    send_events(EventSpec("orders", "message", "€" * 10) for _ in range(5))
    size = len((Event.objects.values_list("data", flat=True)[0]).encode())
    assert size > 30
    storage, partition = get_storage(), partition_of("orders")

    def read(limit_bytes: int, after: int = 0) -> list[int]:
        args = {"after": after, "limit": 5, "limit_bytes": limit_bytes, "target": "a"}
        found = storage.number_and_read("default", partition, **args)  # type: ignore[arg-type]
        return [row.position for row in found.rows]

    assert read(2 * size) == [1, 2]  # as it is numbered
    assert read(1, after=2) == [3]
    storage.number_all("default", partition)
    assert read(1) == [1]
    assert read(2 * size + 1) == [1, 2, 3]
    assert read(2 * size, after=3) == [4, 5]


def test_first_event_after_a_kick_names_the_kicked_and_no_other() -> None:
    partition = partition_of("orders")

    def kick(user_id: str) -> None:
        row = Event(kind=EventKind.KICK, partition=partition, channel="orders", type="kick", data=user_id)  # fmt: skip
        get_storage().append("default", [row])

    def marks(after: int) -> list[str]:
        get_storage().number_all("default", partition)
        found = get_storage().read_batch(
            "default", partition, after=after, limit=100, target="a"
        )
        return [row.kicked for row in found.rows if row.kind == EventKind.EVENT]

    kick("1")
    send_event("orders", "message", 1)
    kick("2")
    kick("3")
    send_event("orders", "message", 2)
    send_event("orders", "message", 3)

    assert marks(after=0) == [",1,", ",2,3,", ""]
    assert marks(after=2) == [",2,3,", ""]
    assert marks(after=3) == [",2,3,", ""]  # a kick was in the batch before
    assert marks(after=5) == [""]


def test_kicks_of_before_are_not_read_again_for_each_event() -> None:
    """A room that people leave all the time has many, for as long as they are kept."""
    partition, storage = partition_of("orders"), get_storage()
    kick = Event(kind=EventKind.KICK, partition=partition, channel="orders", type="k", data="7")  # fmt: skip
    storage.append("default", [kick])
    for number in range(2):
        send_event("orders", "message", number)
    storage.number_all("default", partition)

    with CaptureQueriesContext(connection) as queries:
        found = storage.read_batch("default", partition, after=2, limit=10, target="a")

    assert [row.kicked for row in found.rows] == [""]
    assert not [q["sql"] for q in queries if '."data"' in q["sql"]]


def numbering_into(counts: list[int]) -> threading.Thread:
    """Return a thread that numbers and appends how many there were."""

    def number() -> None:
        counts.append(get_storage().number_all("default", partition_of("orders")))
        connections["default"].close()

    return threading.Thread(target=number)


def test_event_that_is_changed_at_that_moment_is_not_passed_over() -> None:
    for n in range(3):
        send_event("orders", "message", n)
    changed = Event.objects.order_by("pk")[1]
    counts: list[int] = []
    numbering = numbering_into(counts)
    with transaction.atomic():
        Event.objects.filter(pk=changed.pk).update(data='"changed"')
        numbering.start()
        numbering.join(0.5)  # it has seen the event as it was, and waits
        is_waiting = numbering.is_alive()
    numbering.join()

    assert is_waiting
    assert counts == [3]
    assert_consistent()


def test_numbering_that_waited_for_another_numbers_nothing_twice() -> None:
    send_event("orders", "message", 0)
    number_everything()
    for n in range(3):
        send_event("orders", "message", n)
    counts: list[int] = []
    second = numbering_into(counts)
    with transaction.atomic():
        counts.append(get_storage().number_all("default", partition_of("orders")))
        second.start()
        second.join(0.5)  # it has seen the events without a number, and waits
        is_waiting = second.is_alive()
    second.join()

    assert is_waiting
    assert sorted(counts) == [0, 3]
    assert_consistent()


def test_numbering_that_waited_for_who_changed_no_position_numbers_all() -> None:
    send_event("orders", "message", 0)
    number_everything()
    for n in range(3):
        send_event("orders", "message", n)
    partition = partition_of("orders")
    counts: list[int] = []
    second = numbering_into(counts)
    with transaction.atomic():
        Partition.objects.filter(number=partition).update(number=partition)
        second.start()
        second.join(0.5)
        is_waiting = second.is_alive()
    second.join()

    assert is_waiting
    assert counts == [3]
    assert_consistent()


def test_numbering_that_waited_for_a_reset_of_readers_begins_after_it() -> None:
    """With the ids of before, clients that hold one would miss events in silence."""
    neighbour = next(
        f"c{n}" for n in range(999) if partition_of(f"c{n}") == partition_of("orders")
    )
    send_event(neighbour, "message", 0)
    number_everything()
    send_event("orders", "message", 0)
    counts: list[int] = []
    second = numbering_into(counts)
    with transaction.atomic():
        get_storage().reset_readers("default")
        second.start()
        second.join(0.5)  # it has seen the partition as it was, and waits
        is_waiting = second.is_alive()
    second.join()

    assert (is_waiting, counts) == (True, [1])
    start = Partition.objects.get(number=partition_of("orders")).start_eid
    assert Event.objects.get(channel="orders").eid == start + 1 > 10**15


def test_numbering_with_nothing_to_do_waits_for_nobody() -> None:
    send_event("orders", "message", 0)
    number_everything()
    partition = partition_of("orders")
    counts: list[int] = []
    second = numbering_into(counts)
    with transaction.atomic():
        rows = Partition.objects.filter(number=partition)
        if connections["default"].vendor == "postgresql":
            rows.update(number=partition)
        second.start()
        second.join(10)
        is_waiting = second.is_alive()
    second.join()

    assert not is_waiting
    assert counts == [0]


def test_rows_are_in_order_however_they_were_found() -> None:
    for _ in range(20):
        send_to("orders")
    rows = Event.objects.order_by("pk")
    # Their places in the table are another order from now on.
    for pk in list(rows.values_list("pk", flat=True))[::3]:
        Event.objects.filter(pk=pk).update(data="2")
    connection = connections["default"]
    ways = ("nestloop", "mergejoin", "indexscan", "indexonlyscan", "bitmapscan")
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            for way in ways:
                cursor.execute(f"SET LOCAL enable_{way} TO off")
        found = get_storage().number_and_read(
            "default", 0, after=0, limit=100, target="a"
        )

    assert [row.position for row in found.rows] == list(range(1, 21))
    assert [row.eid for row in found.rows] == list(range(1, 21))
