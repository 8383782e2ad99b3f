"""Statements read what they are after, whatever the planner takes for frequent."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from django.db import connection

from eventstream.cursors import Lease, ensure_cursors
from eventstream.models import Event, EventKind
from eventstream.numbering import FEW
from eventstream.storage import get_storage
from eventstream.undelivered import Search, find_undelivered
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db

HEAD = 5_000
MOST = 500
BUSY, OTHER = 3, 5
"""Partitions."""


@pytest.fixture
def log(targets: dict[str, RecordingTarget]) -> None:
    """A log that was a backlog when its statistics were made; a quarter are kicks."""
    Event.objects.bulk_create(
        [
            Event(
                partition=BUSY if number % 2 else OTHER,
                kind=EventKind.KICK if number % 4 == 1 else EventKind.EVENT,
                channel=f"channel-{number % 2}",
                type="message",
                data=str(number),
            )
            for number in range(2 * HEAD)
        ],
        batch_size=1_000,
    )
    make_statistics()
    storage = get_storage()
    for partition in (BUSY, OTHER):
        assert storage.number_all("default", partition) == HEAD
        ensure_cursors(storage, "default", partition)
        Event.objects.bulk_create(
            Event(partition=partition, channel="new", type="message", data="1")
            for _ in range(10)
        )


@pytest.fixture
def new_log() -> None:
    """A log of which there are no statistics yet."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM pg_statistic WHERE starelid = 'eventstream_event'::regclass"
            )
    Event.objects.bulk_create(
        (
            Event(partition=BUSY, channel="new", type="message", data="1")
            for _ in range(HEAD)
        ),
        batch_size=1_000,
    )
    assert get_storage().number_all("default", BUSY) == HEAD


def make_statistics() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")


class Work:
    """Counts what the database does: rows read, or of SQLite its steps by the hundred."""

    def __enter__(self) -> Work:
        self.count = 0
        if connection.vendor == "sqlite":
            connection.connection.set_progress_handler(self._step, 100)
        else:
            self._before = self._rows_read()
        return self

    def __exit__(self, *_: object) -> None:
        if connection.vendor == "sqlite":
            connection.connection.set_progress_handler(None, 0)
        else:
            self.count = self._rows_read() - self._before

    def _step(self) -> None:
        self.count += 1

    def _rows_read(self) -> int:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT coalesce(sum(seq_tup_read + idx_tup_fetch), 0) "
                "FROM pg_stat_xact_user_tables WHERE relname = 'eventstream_event'"
            )
            (count,) = cursor.fetchone()
        return int(count)


def number() -> None:
    assert get_storage().number_batch("default", BUSY, limit=10) == 10


def number_and_read() -> None:
    found = get_storage().number_and_read(
        "default", OTHER, after=HEAD, limit=10, target="a"
    )
    assert len(found.rows) == 10


def look() -> None:
    lease = Lease(get_storage(), "default", BUSY, "a")
    taken = lease.take(force=False, few=FEW)
    assert taken
    assert not taken.is_behind
    assert lease.has_work()


def confirm() -> None:
    lease = Lease(get_storage(), "default", OTHER, "a")
    assert lease.take(force=False)
    assert lease.confirm(HEAD, 1)


def read() -> None:
    found = get_storage().read_batch(
        "default", OTHER, after=HEAD - 10, limit=10, target="a"
    )
    assert len(found.rows) == 10


def sweep() -> None:
    assert get_storage().unnumbered_partitions("default") == [BUSY, OTHER]


def show() -> None:
    assert len(find_undelivered("default", Search(), limit=50).events) == 20


@pytest.mark.usefixtures("log")
@pytest.mark.parametrize("do", [number, number_and_read, look, confirm, sweep, show])
def test_work_does_not_grow_with_what_is_confirmed(do: Callable[[], None]) -> None:
    with Work() as work:
        do()

    assert work.count < MOST


@pytest.mark.usefixtures("log")
def test_large_batch_is_numbered_without_the_rest_of_the_table() -> None:
    Event.objects.bulk_create(
        Event(partition=OTHER, channel="new", type="message", data="1")
        for _ in range(1_000)
    )

    with Work() as work:
        found = get_storage().number_and_read(
            "default", OTHER, after=HEAD, limit=1_000, limit_bytes=100_000, target="a"
        )

    assert len(found.rows) == 1_000
    assert work.count < HEAD


@pytest.mark.usefixtures("log")
def test_reading_does_not_search_the_log_for_kicks() -> None:
    make_statistics()  # many kicks, and all are of the other partition

    with Work() as work:
        read()

    assert work.count < MOST


@pytest.mark.usefixtures("new_log")
def test_page_is_read_without_what_follows_it() -> None:
    with Work() as work:
        log = get_storage().read_after("default", "new", 10, limit=100, last_eid=HEAD)

    assert [event.eid for event in log.events] == list(range(11, 111))
    assert work.count < MOST


@pytest.mark.usefixtures("new_log")
def test_batch_is_read_without_what_follows_it() -> None:
    with Work() as work:
        found = get_storage().read_batch(
            "default", BUSY, after=10, limit=100, target="a"
        )

    assert [row.position for row in found.rows] == list(range(11, 111))
    assert work.count < MOST


@pytest.mark.usefixtures("new_log")
def test_batch_is_found_behind_what_was_pruned() -> None:
    Event.objects.filter(partition=BUSY, position__lte=1_000).delete()

    found = get_storage().read_batch("default", BUSY, after=10, limit=100, target="a")

    assert [row.position for row in found.rows] == list(range(1_001, 1_101))
