"""Readers join with the initial state while writers are at work, in both holders.

Each writer adds a row and tells of it in one transaction, in an order that the commits do
not keep. A reader's rows are those of its state and those of the events after it: in the
end they must be all rows, with consecutive ids, whenever it joined.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from asgiref.sync import sync_to_async
from django.contrib.auth.models import AbstractBaseUser, Group
from django.db import connections, transaction
from pytest_django import Settings

from eventstream import send_event
from eventstream.channelmanager import DefaultChannelManager, InitialState
from eventstream.hub import get_hub
from eventstream.reading import Reader, read_page
from eventstream.rows import partition_of
from eventstream.storage import get_storage
from eventstream.testing import drain_outbox
from tests.integration.test_hub import Stream
from tests.support.sse import Message, Parser

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(120)]

CHANNEL = "groups"
SECONDS = 4.0
WRITERS = 3
READERS = 10
ROWS = 100
"""What there has to be at least, however slow the machine."""


class ChannelManager(DefaultChannelManager):
    """The state is the names of all rows. It takes its time: much commits meanwhile."""

    def get_initial_state(
        self, user: AbstractBaseUser | None, channel: str
    ) -> InitialState:
        names = list(Group.objects.values_list("name", flat=True))
        time.sleep(0.03)
        return InitialState(names)


class Joined:
    """What one reader knows."""

    def __init__(self) -> None:
        self.rows: set[str] = set()
        self.position: int | None = None
        self.repeated = 0

    def take(self, message: Message) -> None:
        if message.type == "stream-open":
            return
        eid = int(message.id.rpartition(":")[2])
        if message.type == "initial-state":
            assert self.position is None
            self.rows = set(json.loads(message.data))
        else:
            assert self.position is not None, "an event before the state"
            assert eid == self.position + 1
            name = json.loads(message.data)
            self.repeated += name in self.rows
            self.rows.add(name)
        self.position = eid

    def missing(self, rows: set[str]) -> set[str]:
        return rows - self.rows


def _write(number: int, stop: threading.Event, written: list[str]) -> None:
    count = 0
    while not stop.is_set():
        count += 1
        with transaction.atomic():
            name = f"{number}-{count}"
            send_event(CHANNEL, "message", name)
            Group.objects.create(name=name)
            time.sleep(random.uniform(0, 0.002))
        written.append(name)
        # As a relay would; a thread that did nothing else would seldom get SQLite's lock.
        get_storage().number_all("default", partition_of(CHANNEL))
        time.sleep(random.uniform(0, 0.01))
    connections.close_all()


@contextmanager
def writing() -> Iterator[list[str]]:
    """Write until the block ends; give what has been written."""
    stop = threading.Event()
    written: list[str] = []
    threads = [
        threading.Thread(target=_write, args=(number, stop, written))
        for number in range(WRITERS)
    ]
    for thread in threads:
        thread.start()
    try:
        yield written
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def manager(settings: Settings) -> None:
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = f"{__name__}.ChannelManager"
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"


def all_rows() -> set[str]:
    drain_outbox()
    return set(Group.objects.values_list("name", flat=True))


def is_too_little(readers: list[Joined], written: list[str]) -> bool:
    """Say whether there is not enough yet to miss anything of."""
    return len(readers) < READERS or len(written) < ROWS


def judge(readers: list[Joined], rows: set[str], last: int) -> None:
    """See that nobody misses anything, and that there was something to miss."""
    assert not is_too_little(readers, list(rows))
    faults = [missing for reader in readers if (missing := reader.missing(rows))]
    assert not faults, f"{len(faults)} of {len(readers)} readers miss {faults[0]}"
    assert {reader.position for reader in readers} == {last}


def test_proxied_reader_that_joins_while_others_write_misses_nothing(
    manager: None,
) -> None:
    readers: list[Joined] = []

    def read(reader: Joined) -> None:
        positions = {} if reader.position is None else {CHANNEL: reader.position}
        text = read_page(Reader((CHANNEL,), "", positions)).text
        for message in Parser().feed(text.encode()):
            reader.take(message)

    with writing() as written:
        end = time.monotonic() + SECONDS
        while is_too_little(readers, written) or time.monotonic() < end:
            readers.append(Joined())
            read(readers[-1])
    rows = all_rows()
    last = get_storage().current_ids("default", [CHANNEL])[CHANNEL]
    for reader in readers:
        while reader.position != last:
            read(reader)

    judge(readers, rows, last)
    # The writers did get in between: some events were in the state already.
    assert any(reader.repeated for reader in readers)


async def test_direct_reader_that_joins_while_others_write_misses_nothing(
    manager: None, settings: Settings
) -> None:
    settings.EVENTSTREAM_POLL_INTERVAL_WITHOUT_BUS = 0.05
    readers: list[Joined] = []
    streams: list[Stream] = []

    async def join() -> None:
        streams.append(Stream(CHANNEL))
        readers.append(Joined())
        for _ in range(2):
            readers[-1].take(await streams[-1].next(30))

    with writing() as written:
        end = time.monotonic() + SECONDS
        while is_too_little(readers, written) or time.monotonic() < end:
            await join()
            await asyncio.sleep(0.05)
    rows = await sync_to_async(all_rows)()
    last = await sync_to_async(get_storage().current_ids)("default", [CHANNEL])
    for reader, stream in zip(readers, streams, strict=True):
        while reader.position != last[CHANNEL]:
            reader.take(await stream.next(30))
        await stream.close()
    await get_hub().close()
    await sync_to_async(connections.close_all)()

    judge(readers, rows, last[CHANNEL])
    assert any(reader.repeated for reader in readers)
