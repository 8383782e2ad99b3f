"""What the log is made of, as it is handed around: rows, pages, names. No I/O."""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import unquote

from eventstream import conf


class OutboxRow(NamedTuple):
    """A numbered row, as a target needs it. `eid` is None for kicks and best-effort.

    `kicked`: users, as in `skip_users`, whose permission for the channel was withdrawn since
    its event before. A stream of theirs that nobody knew of then must not get this one.
    `age`: seconds since it was written, by the database's clock, when it was read.
    """

    id: int
    position: int
    kind: int
    channel: str
    eid: int | None
    type: str
    data: str
    skip_users: str
    kicked: str = ""
    age: float = 0.0

    def __repr__(self) -> str:
        """Return what logs and error pages may show: not the data."""
        return f"<OutboxRow {self.channel}:{self.eid}>"


class Batch(NamedTuple):
    """What a relay has read of a partition.

    Attributes:
        rows: In order.
        has_letters: Some of them may be dead letters of the target: given up already.
        has_kicks: Some of them may say who was kicked before.
        is_paused: An operator has paused the target: none of them is to be published.
        read_at: When they were read, by time.monotonic().
    """

    rows: list[OutboxRow]
    has_letters: bool
    has_kicks: bool
    is_paused: bool
    read_at: float


class LogEvent(NamedTuple):
    """An event of one channel, as a reader needs it."""

    eid: int
    type: str
    data: str
    skip_users: str

    def __repr__(self) -> str:
        """Return what logs and error pages may show: not the data."""
        return f"<LogEvent {self.eid}>"


LogRow = tuple[int, str, str, str, int, bool]
"""What a LogEvent has, and what is the same in all rows of a read: the channel's last id,
and whether there are kicks. To make an object of each takes longer than to read them."""


class LogEntry(NamedTuple):
    """An event of another log, with the id that it has there."""

    eid: int
    type: str
    data: str
    created: datetime.datetime


class ChannelLog(NamedTuple):
    """A page of a channel's log.

    Attributes:
        rows: The events that follow the position asked for, consecutive.
        last_eid: The last id of the channel; 0 if it never had an event.
        is_reset: The position asked for is not in the log any more, or never was.
        has_kicks: There are kicks above the position that was asked about.
    """

    rows: list[LogRow]
    last_eid: int
    is_reset: bool
    has_kicks: bool = False

    @property
    def events(self) -> list[LogEvent]:
        """Return the events as such, for who has few or wants to keep them."""
        return [LogEvent(*row[:4]) for row in self.rows]

    def __repr__(self) -> str:
        """Return what logs and error pages may show: not the data."""
        return f"<ChannelLog of {len(self.rows)} events, last id {self.last_eid}>"


def partition_of(channel: str) -> int:
    """Return the partition of a channel: the same in every process and release."""
    return zlib.crc32(channel.encode()) % conf.get_options().partitions


def join_users(users: Iterable[object]) -> str:
    """Return user ids as `skip_users` stores them: ",1,2,", or "" for none."""
    ids = sorted({_quote(str(user)) for user in users})
    return f",{','.join(ids)}," if ids else ""


def split_users(text: str) -> list[str]:
    """Return the ids that join_users has joined."""
    return [unquote(user_id) for user_id in text[1:-1].split(",")] if text else []


def is_skipped(skip_users: str, user_id: str) -> bool:
    """Say whether the event is not for this user. "" is the anonymous user."""
    return bool(skip_users and user_id) and f",{_quote(user_id)}," in skip_users


def _quote(user_id: str) -> str:
    """Return a primary key, which can be any text, without a comma."""
    return user_id.replace("%", "%25").replace(",", "%2C")


def without_skipped(rows: list[LogRow], user_id: str) -> list[LogRow]:
    """Return the events that are for this user: nearly always all of them, as they are."""
    if not user_id or not any(row[3] for row in rows):
        return rows
    return [row for row in rows if not is_skipped(row[3], user_id)]
