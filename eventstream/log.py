"""Read the log: for the relay, for readers, for whoever counts."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from operator import itemgetter
from typing import Any

from django.db import connections
from django.db.models import (
    BigIntegerField,
    Count,
    DurationField,
    Exists,
    ExpressionWrapper,
    F,
    Max,
    Min,
    Model,
    OuterRef,
    Q,
    Value,
)
from django.db.models.expressions import RawSQL
from django.db.models.functions import Now

from eventstream import conf
from eventstream.instants import as_instant
from eventstream.models import (
    Channel,
    Cursor,
    DeadLetter,
    Event,
    EventKind,
    Partition,
    PausedTarget,
)
from eventstream.rows import (
    Batch,
    ChannelLog,
    LogEvent,
    OutboxRow,
    join_users,
    partition_of,
)
from eventstream.statements import FIRST_KICK, IS_PAUSED, open_cursor

ROW_COLUMNS = OutboxRow._fields[:-2]
_ROW = slice(len(OutboxRow._fields))
NO_END = 2**63 - 1
BACKLOG_RANGE = 500_000
"""Positions that are looked through at once for a backlog's newest events: a second's worth."""
_POSITIONS_PER_QUERY = 1_000

# With what the relay has to look at besides, though there hardly ever is any. How large data
# is, PostgreSQL knows without reading it where it is stored apart.
_READ = f"""
SELECT {", ".join(ROW_COLUMNS)}, '', {{age}},
  ({FIRST_KICK}) IS NOT NULL,
  EXISTS (
    SELECT 1 FROM {{letter}} WHERE partition = %(partition)s
    AND position > %(after)s AND target = %(target)s
  ),
  {IS_PAUSED}
FROM (
  SELECT {", ".join(ROW_COLUMNS)}, created,
    sum({{size}}) OVER (ORDER BY position ROWS UNBOUNDED PRECEDING) - {{size}} AS before
  FROM {{event}} WHERE partition = %(partition)s
    AND position > %(after)s AND position <= %(up_to)s
  ORDER BY position LIMIT %(limit)s
) AS e WHERE before < %(limit_bytes)s ORDER BY position
"""  # noqa: S608  names of columns
AGE_POSTGRESQL = "date_part('epoch', statement_timestamp() - created)"
_AGE_SQLITE = "(julianday('now') - julianday(created)) * 86400.0"
_SIZE_SQLITE = "length(CAST(data AS BLOB))"

# With what is asked once, in the row that follows: in each, it would be read a thousand times.
_READ_AFTER = f"""
SELECT {", ".join(LogEvent._fields)},
  CASE WHEN eid - 1 = %(eid)s THEN coalesce(
    %(last_eid)s, (SELECT last_eid FROM {{channel}} WHERE name = %(channel)s)
  ) END,
  CASE WHEN eid - 1 = %(eid)s THEN ({FIRST_KICK}) IS NOT NULL END
FROM {{event}}
WHERE channel = %(channel)s AND eid > %(eid)s AND eid <= %(up_to)s ORDER BY eid
"""  # noqa: S608  names of columns


# Each opening of a stream asks: through Django it is as much again as all the rest.
_LAST_IDS = "SELECT name, last_eid FROM {channel} WHERE name IN ({names})"


class Log:
    """What of the storage only reads."""

    # --- partitions

    def partitions(self, using: str) -> list[int]:
        """Return every partition that may have work: the configured, and any older."""
        known = Partition.objects.using(using).values_list("number", flat=True)
        return sorted({*range(conf.get_options().partitions), *known})

    def last_position(self, using: str, partition: int) -> int:
        """Return the last position given in a partition, 0 if none ever was."""
        rows = Partition.objects.using(using).filter(number=partition)
        return rows.values_list("last_position", flat=True).first() or 0

    def heads(self, using: str) -> dict[int, int]:
        """Return the last position of each partition: has anything happened at all?"""
        rows = Partition.objects.using(using).values_list("number", "last_position")
        return dict(rows)

    # --- the relay

    def read_batch(
        self,
        using: str,
        partition: int,
        *,
        after: int,
        limit: int,
        limit_bytes: int = NO_END,
        target: str,
    ) -> Batch:
        """Return the numbered rows above a position, in order.

        Args:
            using: Database alias.
            partition: Its number.
            after: The last position that is not wanted.
            limit: Most rows to return.
            limit_bytes: Bytes of data from which on no further row is returned.
            target: Its name: what was given up for it, and whether it is paused, is to be
                known.
        """
        is_sqlite = connections[using].vendor == "sqlite"
        statement = _READ.format(
            event=table_name(using, Event),
            letter=table_name(using, DeadLetter),
            paused=table_name(using, PausedTarget),
            age=_AGE_SQLITE if is_sqlite else AGE_POSTGRESQL,
            size=_size_of_data(using),
        )
        values: dict[str, int | str] = {
            "partition": partition, "after": after, "limit": limit, "target": target,
            "limit_bytes": limit_bytes, "kicks_above": 0,
        }  # fmt: skip
        found: list[Any] = []
        read_at = time.monotonic()
        with open_cursor(using) as cursor:
            # As many positions as rows are wanted: PostgreSQL may expect few rows above
            # the first, and then reads and sorts all of a backlog for its beginning.
            # Without any row there, what follows may have been pruned.
            for up_to in (after + limit, NO_END):
                cursor.execute(statement, {**values, "up_to": up_to})
                found = cursor.fetchall()
                if found:
                    break
        if not found:
            return Batch([], False, False, False, read_at)
        *_, has_kicks, has_letters, is_paused = found[0]
        rows = make_rows(found)
        rows = self._mark(using, partition, rows) if has_kicks else rows
        return Batch(rows, bool(has_letters), bool(has_kicks), bool(is_paused), read_at)

    def read_newest(
        self,
        using: str,
        partition: int,
        *,
        after: int,
        up_to: int,
        limit: int,
        limit_bytes: int,
        target: str,
        keep: Callable[[], object],
    ) -> Iterator[list[OutboxRow]]:
        """Yield of a backlog the newest event of each channel, and every kick, in order.

        Looked for range by range: one query for all of a long one takes longer than a lease.

        Args:
            using: Database alias.
            partition: Its number.
            after: The last position that is not wanted.
            up_to: The last one that is.
            limit: Most rows to yield at once.
            limit_bytes: Bytes of data from which on a row is not yielded with others.
            target: Whose dead letters are passed over: the newest is another event.
            keep: Called after each range.
        """
        events = Event.objects.using(using).filter(partition=partition)
        letters = DeadLetter.objects.filter(event_id=OuterRef("pk"), target=target)
        newest: dict[str, int | None] = {}
        kicks: list[int | None] = []
        for first in range(after, up_to, BACKLOG_RANGE):
            last = min(first + BACKLOG_RANGE, up_to)
            rows = events.filter(position__gt=first, position__lte=last)
            alive = rows.filter(~Exists(letters), kind=EventKind.EVENT)
            newest |= dict(alive.values_list("channel").annotate(Max("position")))
            kicks += rows.filter(kind=EventKind.KICK).values_list("position", flat=True)
            keep()
        wanted = sorted(position or 0 for position in [*newest.values(), *kicks])
        sizes = self._sizes_at(using, partition, wanted)
        for some in _cut(sizes, limit, limit_bytes):
            yield self._read_at(using, partition, some)

    def _sizes_at(
        self, using: str, partition: int, positions: list[int]
    ) -> Iterator[tuple[int | None, int]]:
        """Yield positions, and the bytes of what is there."""
        size = RawSQL(_size_of_data(using), [])  # noqa: S611  no input
        for first in range(0, len(positions), _POSITIONS_PER_QUERY):
            rows = Event.objects.using(using).filter(
                partition=partition,
                position__in=positions[first : first + _POSITIONS_PER_QUERY],
            )
            found = rows.annotate(size=size).order_by("position")
            yield from found.values_list("position", "size")

    def _read_at(
        self, using: str, partition: int, positions: list[int]
    ) -> list[OutboxRow]:
        age = ExpressionWrapper(Now() - F("created"), output_field=DurationField())
        rows = Event.objects.using(using).filter(
            partition=partition, position__in=positions
        )
        found = rows.annotate(age=age).order_by("position")
        return self._mark(
            using, partition,
            [
                OutboxRow._make((*row, "", age.total_seconds()))
                for *row, age in found.values_list(*ROW_COLUMNS, "age")
            ],
        )  # fmt: skip

    def _mark(
        self, using: str, partition: int, rows: list[OutboxRow]
    ) -> list[OutboxRow]:
        """Say of each event who was kicked from its channel since the event before."""
        if not rows:
            return rows
        earlier = Event.objects.using(using).filter(
            partition=partition, kind=EventKind.KICK, position__lt=rows[0].position
        )
        earlier = earlier.filter(channel__in={row.channel for row in rows})
        # Of a crowd that was kicked long ago not more than that there was one.
        last = dict(earlier.values_list("channel").annotate(Max("position")))
        kicks: dict[str, dict[str, int]] = {}
        marked = []
        for row in rows:
            if row.kind == EventKind.KICK:
                kicks.setdefault(row.channel, {})[row.data] = row.position
            elif row.channel in kicks or row.channel in last:
                before = Event.objects.using(using).filter(
                    channel=row.channel, eid=(row.eid or 0) - 1
                )
                after = before.values_list("position", flat=True).first() or 0
                users = kicks.pop(row.channel, {})
                if last.pop(row.channel, 0) > after:
                    found = earlier.filter(channel=row.channel, position__gt=after)
                    for user, at in found.values_list("data", "position"):
                        users[user] = at or 0
                kicked = join_users(user for user, at in users.items() if at > after)
                row = row._replace(kicked=kicked)
            marked.append(row)
        return marked

    def read_row(self, using: str, event_id: int) -> OutboxRow | None:
        """Return the numbered row with this primary key; None if there is none."""
        rows = Event.objects.using(using).filter(pk=event_id, position__isnull=False)
        values = rows.values_list("partition", *ROW_COLUMNS).first()
        if values is None:
            return None
        return self._mark(using, values[0], [OutboxRow(*values[1:])])[0]

    # --- readers

    def current_ids(self, using: str, channels: Collection[str]) -> dict[str, int]:
        """Return the last event id of each channel; of a new one, what its ids follow."""
        if not channels:
            return {}
        statement = _LAST_IDS.format(
            channel=table_name(using, Channel), names=",".join(["%s"] * len(channels))
        )
        with open_cursor(using) as cursor:
            cursor.execute(statement, list(channels))
            known = dict(cursor.fetchall())
        start = 0 if len(known) == len(channels) else self.start_eid(using)
        return {name: known.get(name, start) for name in channels}

    def start_eid(self, using: str) -> int:
        """Return what the ids of a new channel follow: 0, unless readers were reset."""
        statement = f"SELECT max(start_eid) FROM {table_name(using, Partition)}"  # noqa: S608
        with open_cursor(using) as cursor:
            cursor.execute(statement)
            return cursor.fetchone()[0] or 0

    def read_after(
        self,
        using: str,
        channel: str,
        eid: int,
        *,
        limit: int,
        last_eid: int | None = None,
        kicks_above: int | None = None,
    ) -> ChannelLog:
        """Return what follows an event id in a channel.

        Args:
            using: Database alias.
            channel: Its name.
            eid: The last event id that the reader has.
            limit: Most events to return.
            last_eid: The last id of the channel, of whoever reads on and knows it.
            kicks_above: A position of the channel's partition, to be told of kicks above
                it. All that come before an event of the answer are there by then.
        """
        if last_eid is not None and not 0 <= eid < last_eid:
            return ChannelLog([], last_eid, is_reset=eid != last_eid)
        statement = _READ_AFTER.format(
            event=table_name(using, Event), channel=table_name(using, Channel)
        )
        values: dict[str, int | str | None] = {
            "channel": channel,
            "eid": eid,
            # Ids have no holes: so many of them are so many rows. With LIMIT it would read
            # and sort all that follows, where PostgreSQL expects little of the channel.
            "up_to": min(eid + limit, NO_END),
            "last_eid": last_eid,
            "partition": partition_of(channel),
            "kicks_above": NO_END if kicks_above is None else kicks_above,
        }
        with open_cursor(using) as cursor:
            # Django's own way to a row takes three times as long as the driver's.
            cursor.execute(statement, values)
            found = cursor.fetchall()
        if not found or found[0][0] != eid + 1:  # below the floor
            if last_eid is not None:
                return ChannelLog([], last_eid, is_reset=True)
            # The last id first: what is numbered in between is more, and no reset.
            last_eid = self.current_ids(using, [channel])[channel]
            return self.read_after(
                using, channel, eid,
                limit=limit, last_eid=last_eid, kicks_above=kicks_above,
            )  # fmt: skip
        if found[-1][0] != eid + len(found):  # pruned or deleted in the middle
            # What is behind is for the next read, which finds that the next event is gone.
            found = [row for place, row in enumerate(found, eid + 1) if row[0] == place]
        *_, newest, has_kicks = found[0]
        newest = max(newest, found[-1][0])
        return ChannelLog(found, newest, is_reset=False, has_kicks=bool(has_kicks))

    def floor(self, using: str, channel: str) -> int:
        """Return the largest event id pruned from a channel."""
        last_eid = self.current_ids(using, [channel])[channel]
        stored = Event.objects.using(using).filter(channel=channel, eid__isnull=False)
        smallest: int | None = stored.aggregate(eid=Min("eid"))["eid"]
        return last_eid if smallest is None else smallest - 1

    def has_channel(self, using: str, channel: str) -> bool:
        """Say whether the channel has, or had, an event in this database."""
        return (
            Channel.objects.using(using).filter(name=channel).exists()
            or Event.objects.using(using)
            .filter(channel=channel, partition=partition_of(channel))
            .filter(position__isnull=True)
            .exists()
        )

    def kicks_after(
        self, using: str, positions: dict[int, int]
    ) -> list[tuple[int, int, str, str]]:
        """Return (partition, position, channel, user id) of kicks above the positions."""
        found = []
        for where in _above(positions):
            rows = Event.objects.using(using).filter(where, kind=EventKind.KICK)
            kicks = rows.values_list("partition", "position", "channel", "data")
            found += [
                (p, position or 0, name, user) for p, position, name, user in kicks
            ]
        return sorted(found)

    # --- what waits

    def unnumbered_partitions(self, using: str, *, older_than: float = 0) -> list[int]:
        """Return the partitions that have committed events without a number.

        Args:
            using: Database alias.
            older_than: Seconds since they were written.
        """
        rows = Event.objects.using(using).filter(position__isnull=True)
        if older_than:
            rows = rows.filter(
                created__lte=Now() - datetime.timedelta(seconds=older_than)
            )
        found: list[int] = []
        while True:
            # One by one, for which the partial index is enough whatever the planner takes
            # for frequent. Nearly always there is none: one query.
            above = rows.filter(partition__gt=found[-1]) if found else rows
            first = above.aggregate(first=Min("partition"))["first"]
            if first is None:
                return found
            found.append(first)

    def count_written(self, using: str) -> tuple[int, int, datetime.datetime | None]:
        """Return how many rows were ever numbered, how many wait, since when the first.

        One statement counts both: what is numbered between two would be in neither, and
        the sum must never go back. Of those that wait it reads the partial index alone.
        """
        numbered = Partition.objects.using(using).values_list(
            "last_position", Value(None, output_field=BigIntegerField())
        )
        waiting = Event.objects.using(using).filter(position__isnull=True).order_by()
        groups = waiting.values("partition").annotate(
            count=Count("pk"), first=Min("pk")
        )
        counts = numbered.union(groups.values_list("count", "first"), all=True)
        numbered_count, waiting_count, firsts = 0, 0, []
        for count, first in counts:
            if first is None:
                numbered_count += count
            else:
                waiting_count += count
                firsts.append(first)
        rows = Event.objects.using(using).filter(pk__in=firsts)
        created = rows.aggregate(first=Min("created"))["first"] if firsts else None
        return numbered_count, waiting_count, created

    def count_undelivered(self, using: str, targets: Collection[str]) -> int:
        """Return how many events wait: unnumbered, or above some target's watermark."""
        rows = Event.objects.using(using)
        count = rows.filter(position__isnull=True).count()
        heads = self.heads(using)
        cursors = Cursor.objects.using(using).filter(target__in=list(targets))
        marks = cursors.values("partition").annotate(mark=Min("watermark"))
        behind = {
            partition: mark
            for partition, mark in marks.values_list("partition", "mark")
            if mark < heads.get(partition, 0)
        }
        return count + sum(rows.filter(where).count() for where in _above(behind))


def make_rows(found: Iterable[tuple[Any, ...]]) -> list[OutboxRow]:
    """Make objects of what was read: a row's columns, and whatever follows them."""
    return list(map(OutboxRow._make, map(itemgetter(_ROW), found)))


def _above(positions: dict[int, int]) -> Iterator[Q]:
    """Yield conditions that together say: above its partition's position.

    Several, as SQLite takes no expression with a thousand ORs.
    """
    pairs = sorted(positions.items())
    for first in range(0, len(pairs), 200):
        where = Q()
        for partition, position in pairs[first : first + 200]:
            where |= Q(partition=partition, position__gt=position)
        yield where


def database_now(using: str) -> datetime.datetime:
    """Return the database's clock, by which leases and ages are told."""
    connection = connections[using]
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("SELECT STRFTIME('%%Y-%%m-%%d %%H:%%M:%%f', 'NOW')", [])
            now = datetime.datetime.fromisoformat(cursor.fetchone()[0])
        else:
            # Not in the connection's zone, in which an hour comes twice a year.
            cursor.execute("SELECT statement_timestamp() AT TIME ZONE 'UTC'")
            now = cursor.fetchone()[0]
    return as_instant(now.replace(tzinfo=datetime.UTC))


def is_read_only(using: str) -> bool:
    """Say whether the database takes no writes, as a replica, or by its settings.

    What SQLite's file system takes nobody knows before a write.
    """
    connection = connections[using]
    if connection.vendor != "postgresql":
        return False
    with connection.cursor() as cursor:
        cursor.execute("SHOW transaction_read_only")
        return bool(cursor.fetchone()[0] == "on")


def _size_of_data(using: str) -> str:
    """Return the expression for a row's bytes of data."""
    is_sqlite = connections[using].vendor == "sqlite"
    return _SIZE_SQLITE if is_sqlite else "octet_length(data)"


def _cut(
    sizes: Iterable[tuple[int | None, int]], limit: int, limit_bytes: int
) -> Iterator[list[int]]:
    """Yield positions, as many at once as there is room for their rows, one at least."""
    some: list[int] = []
    total = 0
    for position, size in sizes:
        if some and (len(some) == limit or total + size > limit_bytes):
            yield some
            some, total = [], 0
        some.append(position or 0)
        total += size
    if some:
        yield some


def table_name(using: str, model: type[Model]) -> str:
    """Return a table's name, as statements write it."""
    return connections[using].ops.quote_name(model._meta.db_table)
