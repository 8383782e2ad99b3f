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

from eventstream import sse
from eventstream.rows import LogRow, without_skipped
from eventstream.storage import DjangoModelStorage

SHARED_FROM = 200
"""Fewest events to share: for less, waiting for each other costs as much as reading."""

ROWS_PER_READ = 1_000
"""Most events of a query: how large they are is known only when they have been read."""

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


@sensitive_variables("rows", "parts")
def _read(storage: DjangoModelStorage, wanted: Wanted, user_id: str) -> Piece:
    """Read what is wanted, and encode what of it is for this user.

    What a query has brought is encoded before the next: rows that live no longer than that
    cost Python's collector nothing.
    """
    parts: list[str] = []
    count, size, eid, last_eid = 0, 0, wanted.eid, wanted.head
    is_for_all = True
    while True:
        log = storage.read_after(
            wanted.using, wanted.channel, eid,
            limit=min(wanted.limit - count, ROWS_PER_READ), last_eid=last_eid,
        )  # fmt: skip
        last_eid = log.last_eid
        if log.is_reset and not parts:
            return Piece("", 0, 0, eid, last_eid, is_reset=True, is_for_all=False)
        if not log.rows:
            # Or pruned meanwhile. A reset does not follow events: the next page finds it.
            break
        rows, row_size = cut(log.rows, wanted.most_bytes - size)
        shown = without_skipped(rows, user_id)
        parts.append(sse.encode_log(shown, wanted.before, wanted.after))
        is_for_all = is_for_all and not any(row[3] for row in rows)
        count += len(rows)
        size += row_size
        eid = rows[-1][0]
        if eid >= last_eid or count >= wanted.limit or size >= wanted.most_bytes:
            break
    text = "".join(parts)
    return Piece(
        text, count, size, eid, last_eid, is_reset=False, is_for_all=is_for_all
    )


@sensitive_variables("rows", "row")
def cut(rows: list[LogRow], limit: int) -> tuple[list[LogRow], int]:
    """Return the events up to the first that reaches a number of bytes, and their size."""
    size = sum([len(row[2]) for row in rows])
    if size < limit:  # nearly always
        return rows, size
    size = 0
    for count, row in enumerate(rows, 1):
        size += len(row[2])
        if size >= limit:
            return rows[:count], size
    return rows, size
