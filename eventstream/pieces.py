"""A channel's log in pieces, each read and encoded once for all who ask for it together.

When a proxy or a web process is back, so are its readers, with the same position: the same
thousands of events would be read and encoded for each of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import NamedTuple

from django.db import connections
from django.views.decorators.debug import sensitive_variables

from eventstream import conf, sse
from eventstream.rows import ChannelLog, LogEvent, without_skipped
from eventstream.storage import DjangoModelStorage

SHARED_FROM = 200
"""Fewest events to share: for less, waiting for each other costs as much as reading."""

_ROWS_PER_READ = 1_000
_LIFETIME = 1.0
_MOST = 8
_PATIENCE = 2.0


class Piece(NamedTuple):
    """What follows a position in one channel's log, as far as a page has room for it.

    Attributes:
        text: The events, encoded; "" after a reset.
        event_count: How many.
        size: Bytes of their data.
        eid: The last one's id.
        last_eid: The channel's last id.
        is_reset: The position is not in the log.
        is_for_all: Others may have it: no event is to be left out for some user. Not a
            reset, which goes on from the head, and that moves.
    """

    text: str
    event_count: int
    size: int
    eid: int
    last_eid: int
    is_reset: bool
    is_for_all: bool

    def __repr__(self) -> str:
        """Return what logs and error pages may show: not the text."""
        return f"<Piece of {self.event_count} events up to {self.eid}>"


class Wanted(NamedTuple):
    """Which piece: equal ones are the same bytes, for whoever may read the channel.

    Attributes:
        using: Database alias.
        channel: Its name.
        eid: What is read follows it.
        head: The channel's last id, as this reader found it.
        limit, most_bytes: What the page has room for.
        before, after: What of each event's `id:` field stands around its number.
    """

    using: str
    channel: str
    eid: int
    head: int
    limit: int
    most_bytes: int
    before: str
    after: str


class _Sharing(NamedTuple):
    until: float
    future: Future[Piece]


_lock = threading.Lock()
_shared: dict[Wanted, _Sharing] = {}


def read_piece(storage: DjangoModelStorage, wanted: Wanted, user_id: str) -> Piece:
    """Return what is wanted, read a moment ago for another reader, or now.

    A piece that ends before the head is the same whatever the head is by then; one that
    reaches it is shared only with those who have found the same head, so that nobody is
    told less than there is. Permission is not asked here: it is each reader's own.
    """
    read = partial(_read, storage, wanted, user_id)
    waiting = wanted.head - wanted.eid
    if waiting < SHARED_FROM or connections[wanted.using].in_atomic_block:
        return read()  # a snapshot sees what others do not, and the other way about
    return _share(wanted._replace(head=-1) if waiting > wanted.limit else wanted, read)


def _share(wanted: Wanted, read: Callable[[], Piece]) -> Piece:
    mine: Future[Piece] = Future()
    with _lock:
        now = time.monotonic()
        for each in [each for each, known in _shared.items() if known.until < now]:
            del _shared[each]
        sharing = _shared.get(wanted)
        if sharing is None and len(_shared) < _MOST:
            _shared[wanted] = _Sharing(now + _LIFETIME, mine)
    if sharing is not None:
        try:
            return sharing.future.result(_PATIENCE)
        except (CancelledError, TimeoutError):
            return read()
    try:
        piece = read()
    except BaseException:
        mine.cancel()
        with _lock:
            if (known := _shared.get(wanted)) and known.future is mine:
                del _shared[wanted]
        raise
    if piece.is_for_all:
        mine.set_result(piece)
    else:
        mine.cancel()  # each leaves out others
    return piece


@sensitive_variables("events", "shown", "text")
def _read(storage: DjangoModelStorage, wanted: Wanted, user_id: str) -> Piece:
    """Read what is wanted, and encode what of it is for this user."""
    log = read_log(
        storage, wanted.using, wanted.channel, wanted.eid,
        limit=wanted.limit, last_eid=wanted.head,
    )  # fmt: skip
    if log.is_reset:
        return Piece("", 0, 0, wanted.eid, log.last_eid, True, is_for_all=False)
    events, size = _cut(log.events, wanted.most_bytes)
    shown = without_skipped(events, user_id)
    text = sse.encode_log(shown, wanted.before, wanted.after)
    eid = events[-1].eid if events else wanted.eid
    is_for_all = not any(event.skip_users for event in events)
    return Piece(text, len(events), size, eid, log.last_eid, False, is_for_all)


def _cut(events: list[LogEvent], limit: int) -> tuple[list[LogEvent], int]:
    """Return the events up to the first that reaches a number of bytes, and their size."""
    size = 0
    for count, event in enumerate(events, 1):
        size += len(event.data)
        if size >= limit:
            return events[:count], size
    return events, size


def read_log(
    storage: DjangoModelStorage,
    using: str,
    channel: str,
    eid: int,
    *,
    limit: int,
    last_eid: int | None = None,
) -> ChannelLog:
    """Read what follows an event id until so many events, or a page's bytes, are there.

    A thousand at a query: how large events are is known only when they have been read.
    `last_eid` is the channel's last id, of whoever has just asked for it.
    """
    most_bytes = conf.get_options().page_bytes
    events: list[LogEvent] = []
    size = 0
    while True:
        left = min(limit - len(events), _ROWS_PER_READ)
        log = storage.read_after(using, channel, eid, limit=left, last_eid=last_eid)
        last_eid = log.last_eid
        if log.is_reset and events:
            # Pruned meanwhile. A reset does not follow events: the next page finds it.
            return ChannelLog(events, log.last_eid, is_reset=False)
        if not log.events:
            return log._replace(events=events)
        events += log.events
        eid = events[-1].eid
        size += sum([len(event.data) for event in log.events])
        if eid >= log.last_eid or len(events) >= limit or size >= most_bytes:
            return log._replace(events=events)
