"""What a process remembers of a channel that somebody reads: a tail without gaps."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from eventstream import conf, sse
from eventstream.positions import quote_channel
from eventstream.rows import LogEvent

if TYPE_CHECKING:
    from eventstream.hub.subscribers import Subscriber
    from eventstream.rows import ChannelLog


CHUNK_BYTES = 1_000_000
"""From so much data on no further event of a channel goes into what is written at once.

It waits in memory for as long as the client reads nothing.
"""

FIRST_ROWS = 100
"""How many events of a channel are read first, before it is known how large they are."""


def retrieve(task: asyncio.Task[Any]) -> None:
    """Take a shared task's error, of which asyncio logs a traceback if all have left."""
    if not task.cancelled():
        task.exception()


class TailEvent:
    """An event in memory, encoded once for all readers.

    `place` is its event id; of a best-effort event, a number of this process.
    """

    __slots__ = ("body", "place", "size", "skip_users")

    def __init__(self, place: int, event: LogEvent) -> None:
        self.place = place
        self.body = sse.encode_data(event.type, event.data) + "\n"
        self.skip_users = event.skip_users
        self.size = len(self.body)


class ChannelState:
    """A channel as this process knows it: a tail without gaps, ending at `head`.

    Before it `is_live` its head is not known, and nothing is taken.
    """

    def __init__(self, name: str, *, is_reliable: bool) -> None:
        self.name = name
        self.quoted = quote_channel(name)
        self.is_reliable = is_reliable
        self.alias = ""
        self.is_alias_known = False  # until some database has an event of the channel
        self.head = 0
        # How often the log has lost its end: a page that was read before is of another.
        self.loss_count = 0
        self.wanted = 0
        self.tail: deque[TailEvent] = deque()
        self.tail_bytes = 0
        self.subscribers: set[Subscriber] = set()
        self.idle_since = time.monotonic()
        self.joined: asyncio.Task[None] | None = None
        self.is_live = False
        self.filling: asyncio.Task[None] | None = None
        self.reads: dict[int, asyncio.Task[ChannelLog]] = {}
        self.rows_per_read = FIRST_ROWS
        self.beginnings: dict[str, asyncio.Task[tuple[int, str]]] = {}
        self._chunk: tuple[int, int, int, bytes] | None = None

    @property
    def start(self) -> int:
        """The place before the tail's first event: what the tail can serve from."""
        return self.tail[0].place - 1 if self.tail else self.head

    def extend(self, events: Iterable[LogEvent]) -> None:
        """Take the events that follow the head, and wake the readers."""
        options = conf.get_options()
        before = self.head
        for event in events:
            if event.eid == self.head + 1:
                item = TailEvent(event.eid, event)
                self.tail.append(item)
                self.tail_bytes += item.size
                self.head = event.eid
        while self.tail and (
            len(self.tail) > options.queue_length
            or self.tail_bytes > options.queue_bytes
        ):
            self.tail_bytes -= self.tail.popleft().size
        if self.head > before:
            self.wake()

    def prepend(self, log: ChannelLog) -> None:
        """Put a page that was read from the log before the tail, if it fits and joins.

        When a thousand readers come back at once, the first one's page serves them all.
        """
        options = conf.get_options()
        if not log.rows or not log.rows[0][0] <= self.start <= log.rows[-1][0]:
            return
        # Consecutive: those that the tail has are the last.
        for row in reversed(log.rows[: self.start - log.rows[0][0] + 1]):
            if len(self.tail) >= options.queue_length:
                return
            item = TailEvent(row[0], LogEvent(*row[:4]))
            if self.tail_bytes + item.size > options.queue_bytes:
                return
            self.tail.appendleft(item)
            self.tail_bytes += item.size

    def after(self, place: int) -> list[TailEvent]:
        """Return the tail above a place that is not before its start: a chunk at most."""
        count = min(self.head - place, len(self.tail))
        if count <= 0:
            return []
        if count == len(self.tail):
            items = list(self.tail)
        else:
            items = [self.tail[index] for index in range(-count, 0)]
        if self.tail_bytes < CHUNK_BYTES:
            return items
        size = 0
        for number, item in enumerate(items, 1):
            size += item.size
            if size >= CHUNK_BYTES:
                return items[:number]
        return items

    def chunk_after(self, place: int) -> tuple[int, bytes]:
        """Return the same encoded with ids, for readers of this channel alone.

        Most readers stand at the same place; the text is made once for all of them.

        Returns:
            Where it ends, and the text.
        """
        if self._chunk is not None and self._chunk[:2] == (place, self.head):
            return self._chunk[2:]
        parts = []
        items = self.after(place)
        for item in items:
            prefix = f"id: {self.quoted}:{item.place}\n" if self.is_reliable else ""
            parts.append(prefix + item.body)
        chunk = "".join(parts).encode()
        end = items[-1].place if items else place
        self._chunk = (place, self.head, end, chunk)
        return end, chunk

    def start_from(self, eid: int) -> None:
        """Have an empty tail that ends here."""
        self.tail.clear()
        self.tail_bytes = 0
        self._chunk = None
        self.head = eid
        self.wake()

    def go_back(self, last_eid: int) -> None:
        """Follow a log that has lost its end: what is above it will be other events.

        Readers who stand there are lost, however soon the log has as many ids again.
        """
        for subscriber in self.subscribers:
            if subscriber.places.get(self.name, 0) > last_eid:
                subscriber.lost |= {self.name}
        self.loss_count += 1
        self.reads.clear()
        self.beginnings.clear()
        self.wanted = last_eid
        self.start_from(last_eid)

    def wake(self) -> None:
        """Tell every reader that there is something above its position."""
        for subscriber in self.subscribers:
            subscriber.wake()
