"""Readers who come back together: what they share, and what each has of its own."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError, connection, transaction

from eventstream import EventSpec, pieces, send_events
from eventstream.models import Event
from eventstream.reading import Page, Reader, read_page
from eventstream.rows import ChannelLog
from eventstream.storage import DjangoModelStorage
from eventstream.testing import drain_outbox
from tests.support.sse import Parser

pytestmark = pytest.mark.django_db(transaction=True)

COUNT = pieces.SHARED_FROM + 50


class Reads:
    """Counts the reads of the log, and holds each up for a while.

    Attributes:
        count: How many there were.
        fails: The first is to fail.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.fails = False
        self._lock = threading.Lock()
        original = DjangoModelStorage.read_after

        def read_after(
            storage: DjangoModelStorage, *args: Any, **options: Any
        ) -> ChannelLog:
            with self._lock:
                self.count += 1
                is_first = self.count == 1
            time.sleep(0.2)
            if is_first and self.fails:
                raise OperationalError("the connection was closed")
            return original(storage, *args, **options)

        monkeypatch.setattr(DjangoModelStorage, "read_after", read_after)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    monkeypatch.setattr(pieces, "_shared", {})
    # However busy the machine.
    monkeypatch.setattr(pieces, "_LIFETIME", 60.0)
    monkeypatch.setattr(pieces, "_PATIENCE", 60.0)
    return Reads(monkeypatch)


def send(count: int, *, skipped: tuple[str, ...] = ()) -> None:
    send_events(
        EventSpec("orders", "message", n, skip_user_ids=skipped) for n in range(count)
    )
    drain_outbox()


def read(user_id: str = "", after: int = 0) -> Page:
    try:
        return read_page(Reader(("orders",), user_id, {"orders": after}))
    finally:
        connection.close()


def ids(page: Page) -> list[str]:
    return [message.id for message in Parser().feed(page.text.encode())]


def read_together(*user_ids: str) -> list[Page]:
    with ThreadPoolExecutor(len(user_ids)) as pool:
        return list(pool.map(read, user_ids))


def test_readers_of_the_same_piece_share_one_read(reads: Reads) -> None:
    send(COUNT)

    pages = read_together(*[""] * 20)

    assert reads.count == 1
    assert {page.text for page in pages} == {pages[0].text}
    assert ids(pages[0]) == [f"orders:{n}" for n in range(1, COUNT + 1)]
    assert all(page.is_last for page in pages)
    assert ids(read(after=100)) == [f"orders:{n}" for n in range(101, COUNT + 1)]
    assert reads.count == 2, "another position is another piece"


def test_nobody_is_told_less_than_there_is(reads: Reads) -> None:
    send(COUNT)
    assert read().positions == {"orders": COUNT}

    send(1)

    page = read()
    assert (page.positions, page.is_last) == ({"orders": COUNT + 1}, True)
    assert len(ids(page)) == COUNT + 1


def test_piece_that_ends_before_the_head_is_shared_while_the_head_moves(
    reads: Reads, settings: Any
) -> None:
    settings.EVENTSTREAM_PAGE_SIZE = 100
    send(COUNT)
    first = read()

    send(1)
    second = read()

    assert reads.count == 1
    assert first.text == second.text
    assert [first.is_last, second.is_last] == [False, False]
    assert second.positions == {"orders": 100}
    assert second.heads == {"orders": COUNT + 1}


def test_each_user_is_left_out_of_what_is_not_for_that_user(reads: Reads) -> None:
    users = get_user_model().objects
    skipped, other = (str(users.create(username=name).pk) for name in "ab")
    send(COUNT, skipped=(skipped,))

    pages = read_together(skipped, other, "")

    assert [len(ids(page)) for page in pages] == [0, COUNT, COUNT]
    assert all(page.positions == {"orders": COUNT} for page in pages)


def test_others_do_not_fail_with_whoever_reads_for_them(reads: Reads) -> None:
    send(COUNT)
    reads.fails = True

    def outcome(user_id: str) -> str:
        try:
            return str(len(ids(read(user_id))))
        except OperationalError:
            return "failed"

    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        outcomes = sorted(pool.map(outcome, [""] * 4))

    assert outcomes == [str(COUNT)] * 3 + ["failed"]
    assert time.monotonic() - began < pieces._PATIENCE, "they are told at once"


def test_reset_is_not_shared(reads: Reads, settings: Any) -> None:
    settings.EVENTSTREAM_PAGE_SIZE = 100
    send(COUNT)
    Event.objects.filter(eid__lte=10).delete()
    assert read().positions == {"orders": COUNT}

    send(1)

    assert read().positions == {"orders": COUNT + 1}, "it goes on from the head"


def test_piece_is_kept_for_a_moment_only(
    reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "_LIFETIME", -1.0)
    send(COUNT)

    for after in (0, 1, 0):
        read(after=after)

    assert reads.count == 3
    assert len(pieces._shared) == 1


def test_snapshot_shares_nothing(reads: Reads) -> None:
    send(COUNT)
    read()

    with transaction.atomic():
        read_page(Reader(("orders",), "", {"orders": 0}))

    assert reads.count == 2
