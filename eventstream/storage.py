"""The log: append, number, read after a position, prune.

The only module with SQL of its own. Every method takes the database alias, so that a
project with several outboxes has one storage class.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import NamedTuple

from django.conf import settings
from django.db import connections, transaction
from django.db.models import Count, F, Max, Min, Model, Q
from django.db.models.functions import Now

from eventstream import conf
from eventstream.models import (
    Channel,
    Cursor,
    DeadLetter,
    Event,
    EventKind,
    Partition,
    PausedTarget,
)
from eventstream.signals import events_numbered

MAX_BATCH = 10_000
PRUNE_BATCH = 5_000
RESET_STEP = 1_000_000_000
"""By how much ids move at least where the clock has gone back."""
SUPPORTED_VENDORS = ("postgresql", "sqlite")

# One statement, so that a batch costs one round trip: channels of the batch get their ids
# by one upsert, events their place by window functions. A kick counts as a position only.
_NUMBER_POSTGRESQL = """
WITH batch AS (
  SELECT id, channel, kind FROM {event}
  WHERE partition = %(partition)s AND position IS NULL ORDER BY id LIMIT %(limit)s
), grouped AS (
  SELECT channel, count(*) FILTER (WHERE kind = 0) AS event_count
  FROM batch GROUP BY channel
), upserted AS (
  INSERT INTO {channel} AS c (name, partition, last_eid)
  SELECT channel, %(partition)s, event_count + %(start)s
  FROM grouped WHERE event_count > 0
  ON CONFLICT (name) DO UPDATE
  SET last_eid = c.last_eid + excluded.last_eid - %(start)s
  RETURNING name, last_eid
), numbered AS (
  SELECT b.id, row_number() OVER (ORDER BY b.id) AS place,
    CASE WHEN b.kind = 0 THEN u.last_eid - g.event_count
      + count(*) FILTER (WHERE b.kind = 0) OVER (PARTITION BY b.channel ORDER BY b.id)
    END AS eid
  FROM batch b JOIN grouped g ON g.channel = b.channel
  LEFT JOIN upserted u ON u.name = b.channel
), moved AS (
  UPDATE {event} e SET position = %(base)s + n.place, eid = n.eid
  FROM numbered n WHERE e.id = n.id RETURNING 1
), headed AS (
  UPDATE {partition} SET last_position = %(base)s + (SELECT count(*) FROM batch)
  WHERE number = %(partition)s
)
SELECT count(*) FROM moved
"""

_WRITTEN = ("partition", "kind", "channel", "type", "data", "skip_users", "idempotency_key")  # fmt: skip
_INSERT = f"""
INSERT INTO {{event}} ({", ".join(_WRITTEN)})
VALUES ({", ".join(["%s"] * len(_WRITTEN))}) RETURNING id
"""  # noqa: S608  names of columns

# SQLite takes no INSERT inside WITH: the same in two statements, under its one writer.
_UPSERT_SQLITE = """
INSERT INTO {channel} (name, partition, last_eid)
SELECT channel, %(partition)s, count(*) + %(start)s FROM (
  SELECT channel, kind FROM {event}
  WHERE partition = %(partition)s AND position IS NULL ORDER BY id LIMIT %(limit)s
) WHERE kind = 0 GROUP BY channel
ON CONFLICT (name) DO UPDATE
SET last_eid = last_eid + excluded.last_eid - %(start)s
"""

_NUMBER_SQLITE = """
WITH batch AS (
  SELECT id, channel, kind FROM {event}
  WHERE partition = %(partition)s AND position IS NULL ORDER BY id LIMIT %(limit)s
), numbered AS (
  SELECT b.id, row_number() OVER (ORDER BY b.id) AS place,
    CASE WHEN b.kind = 0 THEN c.last_eid
      - count(*) FILTER (WHERE b.kind = 0) OVER (PARTITION BY b.channel)
      + count(*) FILTER (WHERE b.kind = 0) OVER (PARTITION BY b.channel ORDER BY b.id)
    END AS eid
  FROM batch b LEFT JOIN {channel} c ON c.name = b.channel
)
UPDATE {event} SET position = %(base)s + n.place, eid = n.eid
FROM numbered n WHERE {event}.id = n.id
"""


class OutboxRow(NamedTuple):
    """A numbered row, as a target needs it. `eid` is None for kicks and best-effort.

    `kicked`: users, as in `skip_users`, whose permission for the channel was withdrawn since
    its event before. A stream of theirs that nobody knew of then must not get this one.
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

    def __repr__(self) -> str:
        """Return what logs and error pages may show: not the data."""
        return f"<OutboxRow {self.channel}:{self.eid}>"


_ROW_COLUMNS = OutboxRow._fields[:-1]


class LogEvent(NamedTuple):
    """An event of one channel, as a reader needs it."""

    eid: int
    type: str
    data: str
    skip_users: str

    def __repr__(self) -> str:
        """Return what logs and error pages may show: not the data."""
        return f"<LogEvent {self.eid}>"


class LogEntry(NamedTuple):
    """An event of another log, with the id that it has there."""

    eid: int
    type: str
    data: str
    created: datetime.datetime


class ChannelLog(NamedTuple):
    """A page of a channel's log.

    Attributes:
        events: Those that follow the position asked for, consecutive.
        last_eid: The last id of the channel; 0 if it never had an event.
        is_reset: The position asked for is not in the log any more, or never was.
    """

    events: list[LogEvent]
    last_eid: int
    is_reset: bool


def partition_of(channel: str) -> int:
    """Return the partition of a channel: the same in every process and release."""
    return zlib.crc32(channel.encode()) % conf.get_options().partitions


def join_users(users: Iterable[object]) -> str:
    """Return user ids as `skip_users` stores them: ",1,2,", or "" for none."""
    ids = sorted({str(user) for user in users})
    return f",{','.join(ids)}," if ids else ""


def split_users(text: str) -> list[str]:
    """Return the ids that join_users has joined."""
    return text.strip(",").split(",") if text else []


def is_skipped(skip_users: str, user_id: str) -> bool:
    """Say whether the event is not for this user. "" is the anonymous user."""
    return bool(skip_users and user_id) and f",{user_id}," in skip_users


class DjangoModelStorage:
    """The log in Django's databases. The one class for EVENTSTREAM_STORAGE_CLASS."""

    # --- senders

    def append(self, using: str, events: Sequence[Event]) -> None:
        """Insert the rows in the caller's transaction; their primary keys are set.

        One statement for up to a thousand, no lock, no other row read or written.
        """
        if len(events) == 1:
            self._insert(using, events[0])
        else:
            Event.objects.using(using).bulk_create(events, batch_size=1000)

    def _insert(self, using: str, event: Event) -> None:
        """Insert one row. Django takes longer to say so than PostgreSQL to do it."""
        connection = connections[using]
        if connection.vendor == "sqlite":  # RETURNING came late
            event.save(using=using, force_insert=True)
            return
        values = [getattr(event, name) for name in _WRITTEN]
        with connection.cursor() as cursor:
            cursor.execute(_INSERT.format(event=_quoted(using, Event)), values)
            event.pk = cursor.fetchone()[0]
        event._state.adding, event._state.db = False, using

    def append_once(self, using: str, event: Event) -> Event:
        """Insert the row unless its channel has its idempotency key; return what is there.

        A concurrent transaction with the same key is waited for, as a unique key must.
        """
        rows = Event.objects.using(using)
        rows.bulk_create([event], ignore_conflicts=True)
        return rows.get(channel=event.channel, idempotency_key=event.idempotency_key)

    # --- numbering

    def number_batch(self, using: str, partition: int, *, limit: int) -> int:
        """Give ids and positions to committed events that have none.

        Runs in one transaction under the partition's row lock, which no sender ever
        takes. Events are numbered in primary-key order; concurrent senders may be
        interleaved, one sender's are not. Once this returns, the ids are durable and
        never change: publish only after it. Source: docs/decisions, "Number late".

        Args:
            using: Database alias.
            partition: Its number.
            limit: Most events to number, 1 to 10,000. Bounds the transaction.

        Returns:
            How many rows were numbered; fewer than the limit means none is left.

        Raises:
            ValueError: The limit is out of range.
        """
        if not 1 <= limit <= MAX_BATCH:
            raise ValueError(f"limit must be 1 to {MAX_BATCH}, not {limit}")
        unnumbered = Event.objects.using(using).filter(
            partition=partition, position__isnull=True
        )
        if not unnumbered.exists():  # the usual answer, and it takes no lock
            return 0
        with transaction.atomic(using=using):
            count = self._number(using, partition, limit)
        if count:
            events_numbered.send_robust(
                type(self), using=using, partition=partition, event_count=count
            )
        return count

    def _number(self, using: str, partition: int, limit: int) -> int:
        connection = connections[using]
        quoted = connection.ops.quote_name
        names = {
            "event": quoted(Event._meta.db_table),
            "channel": quoted(Channel._meta.db_table),
            "partition": quoted(Partition._meta.db_table),
        }
        rows = Partition.objects.using(using).filter(number=partition)
        if connection.vendor == "sqlite":
            # Takes the write lock also where transactions are not IMMEDIATE.
            rows.update(number=partition)
            lock = rows
        else:
            lock = rows.select_for_update(no_key=True)
        found = lock.values_list("last_position", "start_eid").first()
        if found is None:
            Partition.objects.using(using).bulk_create(
                [Partition(number=partition, start_eid=self.start_eid(using))],
                ignore_conflicts=True,
            )
            found = lock.values_list("last_position", "start_eid").get()
        base, start = found
        values = {"partition": partition, "limit": limit, "base": base, "start": start}
        with connection.cursor() as cursor:
            if connection.vendor == "sqlite":
                cursor.execute(_UPSERT_SQLITE.format(**names), values)
                cursor.execute(_NUMBER_SQLITE.format(**names), values)
                # Not rowcount: sqlite3 gives -1 for a statement that begins with WITH.
                cursor.execute("SELECT changes()")
            else:
                cursor.execute(_NUMBER_POSTGRESQL.format(**names), values)
            count = int(cursor.fetchone()[0])
        if connection.vendor == "sqlite":
            rows.update(last_position=base + count)
        return count

    def number_all(self, using: str, partition: int) -> int:
        """Number batch after batch until none is left; return how many."""
        limit = conf.get_options().batch_size
        total = 0
        while True:
            count = self.number_batch(using, partition, limit=limit)
            total += count
            if count < limit:
                return total

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
        return sorted(set(rows.values_list("partition", flat=True).distinct()))

    def reset_readers(self, using: str) -> int:
        """Make every position that any client holds one that is not in the log.

        For a database that was restored from a backup: ids that were given after it would
        be given again, to other events, and a client that holds one would go on from
        there and miss what is now below it. All ids, of stored events and of channels to
        come, move up to where none has ever been. In one transaction, under the
        numbering locks.

        Returns:
            How many channels there are.
        """
        for partition in self.partitions(using):
            Partition.objects.using(using).get_or_create(number=partition)
        microseconds = int(database_now(using).timestamp() * 1_000_000)
        with transaction.atomic(using=using):
            rows = Partition.objects.using(using).order_by("number")
            if connections[using].vendor == "sqlite":
                rows.update(last_position=F("last_position"))  # the write lock
            else:
                list(rows.select_for_update(no_key=True))
            before = self.start_eid(using)
            # By the clock: an earlier reset may be missing in the backup. JavaScript
            # has exact numbers for these until the year 2255.
            start = max(microseconds, before + RESET_STEP)
            rows.update(start_eid=start)
            for model in (Event, DeadLetter):
                with_id = model._default_manager.using(using).exclude(eid=None)
                with_id.update(eid=F("eid") + (start - before))
            channels = Channel.objects.using(using)
            return channels.update(last_eid=F("last_eid") + (start - before))

    def count_unnumbered(self, using: str) -> dict[int, tuple[int, datetime.datetime]]:
        """Return how many events of a partition have no number, and when the first came.

        Reads the partial index alone: nothing, if all are numbered.
        """
        rows = Event.objects.using(using).filter(position__isnull=True)
        groups = rows.order_by().values("partition")
        found = {
            partition: (count, first)
            for partition, count, first in groups.annotate(
                count=Count("pk"), first=Min("pk")
            ).values_list("partition", "count", "first")
        }
        firsts = [first for _, first in found.values()]
        created = dict(
            Event.objects.using(using)
            .filter(pk__in=firsts)
            .values_list("pk", "created")
        )
        return {
            partition: (count, created[first])
            for partition, (count, first) in found.items()
            if first in created
        }

    def partitions(self, using: str) -> list[int]:
        """Return every partition that may have work: the configured, and any older."""
        known = Partition.objects.using(using).values_list("number", flat=True)
        return sorted({*range(conf.get_options().partitions), *known})

    def adopt(
        self, using: str, channel: str, *, after: int, entries: Sequence[LogEntry]
    ) -> None:
        """Append events of another log that have ids, consecutive above one of a channel.

        One transaction under the numbering lock. Stored events that `after` does not follow
        are deleted: a hole in the ids could not be told from a loss. Targets that had
        everything are moved along, as whoever reads here can come for the log only now.

        Args:
            using: Database alias.
            channel: Its name.
            after: The id before the first entry; without entries the channel's last.
            entries: The events, in order.
        """
        partition = partition_of(channel)
        Partition.objects.using(using).get_or_create(
            number=partition, defaults={"start_eid": self.start_eid(using)}
        )
        with transaction.atomic(using=using):
            rows = Partition.objects.using(using).filter(number=partition)
            if connections[using].vendor == "sqlite":
                rows.update(number=partition)  # the write lock
                base = rows.values_list("last_position", flat=True).get()
            else:
                lock = rows.select_for_update(no_key=True)
                base = lock.values_list("last_position", flat=True).get()
            known = Channel.objects.using(using).filter(name=channel)
            last_eid = known.values_list("last_eid", flat=True).first() or 0
            if last_eid > after or (last_eid == after and not entries):
                return  # another run, or a relay, was here in between
            if last_eid < after:
                Event.objects.using(using).filter(
                    channel=channel, eid__isnull=False
                )._raw_delete(using)
            events = [
                Event(
                    partition=partition,
                    channel=channel,
                    position=base + place,
                    eid=entry.eid,
                    type=entry.type,
                    data=entry.data,
                    created=entry.created,
                )
                for place, entry in enumerate(entries, 1)
            ]
            Event.objects.using(using).bulk_create(events, batch_size=1000)
            Channel.objects.using(using).update_or_create(
                name=channel,
                defaults={
                    "partition": partition,
                    "last_eid": entries[-1].eid if entries else after,
                },
            )
            if entries:
                head = base + len(entries)
                rows.update(last_position=head)
                cursors = Cursor.objects.using(using).filter(partition=partition)
                cursors.filter(watermark=base).update(watermark=head)

    # --- the relay's reading

    def read_partition(
        self, using: str, partition: int, *, after: int, limit: int
    ) -> list[OutboxRow]:
        """Return the numbered rows above a position, in order."""
        rows = (
            Event.objects.using(using)
            .filter(partition=partition, position__gt=after)
            .order_by("position")
            .values_list(*_ROW_COLUMNS)
        )
        return self._mark(using, partition, [OutboxRow(*row) for row in rows[:limit]])

    def read_newest(
        self, using: str, partition: int, *, after: int, up_to: int
    ) -> list[OutboxRow]:
        """Return of a backlog the newest event of each channel, and every kick."""
        rows = Event.objects.using(using).filter(
            partition=partition, position__gt=after, position__lte=up_to
        )
        newest = rows.filter(kind=EventKind.EVENT).values("channel")
        positions = newest.annotate(newest=Max("position")).values("newest")
        wanted = rows.filter(Q(kind=EventKind.KICK) | Q(position__in=positions))
        found = wanted.order_by("position").values_list(*_ROW_COLUMNS)
        return self._mark(using, partition, [OutboxRow(*row) for row in found])

    def _mark(
        self, using: str, partition: int, rows: list[OutboxRow]
    ) -> list[OutboxRow]:
        """Say of each event who was kicked from its channel since the event before."""
        if not rows:
            return rows
        kicks: dict[str, dict[str, int]] = {}
        earlier = Event.objects.using(using).filter(
            partition=partition, kind=EventKind.KICK, position__lt=rows[0].position
        )
        earlier = earlier.filter(channel__in={row.channel for row in rows})
        for channel, user_id, position in earlier.order_by("position").values_list(
            "channel", "data", "position"
        ):
            kicks.setdefault(channel, {})[user_id] = position or 0
        marked = []
        for row in rows:
            if row.kind == EventKind.KICK:
                kicks.setdefault(row.channel, {})[row.data] = row.position
            elif row.channel in kicks:
                before = Event.objects.using(using).filter(
                    channel=row.channel, eid=(row.eid or 0) - 1
                )
                after = before.values_list("position", flat=True).first() or 0
                users = kicks.pop(row.channel).items()
                kicked = join_users(user for user, at in users if at > after)
                row = row._replace(kicked=kicked)
            marked.append(row)
        return marked

    def read_row(self, using: str, event_id: int) -> OutboxRow | None:
        """Return the numbered row with this primary key; None if there is none."""
        rows = Event.objects.using(using).filter(pk=event_id, position__isnull=False)
        values = rows.values_list("partition", *_ROW_COLUMNS).first()
        if values is None:
            return None
        return self._mark(using, values[0], [OutboxRow(*values[1:])])[0]

    def last_position(self, using: str, partition: int) -> int:
        """Return the last position given in a partition, 0 if none ever was."""
        rows = Partition.objects.using(using).filter(number=partition)
        return rows.values_list("last_position", flat=True).first() or 0

    # --- readers

    def current_ids(self, using: str, channels: Collection[str]) -> dict[str, int]:
        """Return the last event id of each channel; of a new one, what its ids follow."""
        rows = Channel.objects.using(using).filter(name__in=channels)
        known = dict(rows.values_list("name", "last_eid"))
        start = 0 if len(known) == len(channels) else self.start_eid(using)
        return {name: known.get(name, start) for name in channels}

    def start_eid(self, using: str) -> int:
        """Return what the ids of a new channel follow: 0, unless readers were reset."""
        starts = Partition.objects.using(using).aggregate(start=Max("start_eid"))
        return starts["start"] or 0

    def read_after(
        self, using: str, channel: str, eid: int, *, limit: int
    ) -> ChannelLog:
        """Return what follows an event id in a channel.

        The last id is read first: an event numbered in between is then simply more than
        was asked for, and never looks like a gap.

        Args:
            using: Database alias.
            channel: Its name.
            eid: The last event id that the reader has.
            limit: Most events to return.
        """
        last_eid = self.current_ids(using, [channel])[channel]
        if eid == last_eid:
            return ChannelLog([], last_eid, is_reset=False)
        if not 0 <= eid < last_eid:
            return ChannelLog([], last_eid, is_reset=True)
        rows = (
            Event.objects.using(using)
            .filter(channel=channel, eid__gt=eid)
            .order_by("eid")
            .values_list(*LogEvent._fields)
        )
        events = [LogEvent(*row) for row in rows[:limit]]
        if not events or events[0].eid != eid + 1:  # below the floor
            return ChannelLog([], last_eid, is_reset=True)
        return ChannelLog(events, max(last_eid, events[-1].eid), is_reset=False)

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

    def heads(self, using: str) -> dict[int, int]:
        """Return the last position of each partition: has anything happened at all?"""
        rows = Partition.objects.using(using).values_list("number", "last_position")
        return dict(rows)

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

    # --- maintenance

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

    def prune_bound(
        self, using: str, partition: int, *, retention: float, targets: Collection[str]
    ) -> int:
        """Return the last position that may be deleted; see `prune`."""
        cutoff = Now() - datetime.timedelta(seconds=retention)
        numbered = Event.objects.using(using).filter(
            partition=partition, position__isnull=False
        )
        bound = self.last_position(using, partition)
        cursors = Cursor.objects.using(using).filter(
            partition=partition, target__in=list(targets)
        )
        paused = PausedTarget.objects.using(using).filter(since__lt=cutoff)
        holding = cursors.exclude(failing_since__lt=cutoff).exclude(
            target__in=paused.values("name")
        )
        lowest = holding.aggregate(mark=Min("watermark"))["mark"]
        if lowest is not None:
            bound = min(bound, lowest)
        young = numbered.filter(created__gte=cutoff).order_by("position")
        first_young = young.values_list("position", flat=True).first()
        if first_young is not None:
            bound = min(bound, first_young - 1)
        return bound

    def count_prunable(
        self, using: str, partition: int, *, retention: float, targets: Collection[str]
    ) -> int:
        """Return how many rows `prune` would delete, reading an index only."""
        bound = self.prune_bound(using, partition, retention=retention, targets=targets)
        rows = Event.objects.using(using)
        return rows.filter(partition=partition, position__lte=bound).count()

    def prune(
        self,
        using: str,
        partition: int,
        *,
        retention: float,
        targets: Collection[str],
        on_batch: Callable[[int], object] = lambda count: None,
    ) -> int:
        """Delete the confirmed prefix of a partition that is past the retention.

        Never by age alone: creation times and positions can be inverted by concurrent
        transactions, and a hole in the ids could not be told from a loss. A target that
        has failed, or been paused, for longer than the retention does not hold it up.

        Args:
            using: Database alias.
            partition: Its number.
            retention: Seconds for which events are kept.
            targets: Names of the configured targets; cursors of others are passed over.
            on_batch: Called with the number of rows after each transaction.

        Returns:
            How many rows were deleted, in transactions of at most 5,000.
        """
        numbered = Event.objects.using(using).filter(
            partition=partition, position__isnull=False
        )
        bound = self.prune_bound(using, partition, retention=retention, targets=targets)
        total = 0
        while True:
            first = numbered.aggregate(first=Min("position"))["first"]
            if first is None or first > bound:
                return total
            last = min(first + PRUNE_BATCH - 1, bound)
            with transaction.atomic(using=using):
                # Raw: no signals, no collecting of ids; five times as fast.
                count = numbered.filter(position__lte=last)._raw_delete(using)
                DeadLetter.objects.using(using).filter(
                    partition=partition, position__lte=last
                )._raw_delete(using)
            total += count
            on_batch(count)


def _quoted(using: str, model: type[Model]) -> str:
    return connections[using].ops.quote_name(model._meta.db_table)


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
            return now.replace(tzinfo=datetime.UTC) if settings.USE_TZ else now
        cursor.execute("SELECT statement_timestamp()")
        instant: datetime.datetime = cursor.fetchone()[0]
        return instant


def get_storage() -> DjangoModelStorage:
    """Return the storage that the settings name.

    With EVENTSTREAM_STORAGE_CLASS = None no event is stored, but a withdrawn permission
    still is until it is confirmed: hence the default class then, too.
    """
    path = conf.get_options().storage_class or conf.DEFAULT_STORAGE
    storage: DjangoModelStorage = conf.load(path)
    return storage


def alias_of(channel: str) -> str:
    """Return the database alias that holds a channel's log, for its readers.

    The only one, or the first of EVENTSTREAM_DATABASES that has events of the channel.
    """
    databases = conf.get_options().databases
    if len(databases) == 1:
        return databases[0]
    storage = get_storage()
    for using in databases:
        if storage.has_channel(using, channel):
            return using
    return databases[0]
