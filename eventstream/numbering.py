"""Number late: give ids to committed events. The only writer of positions and ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

from django.db import IntegrityError, OperationalError, connections, transaction
from django.db.models import BigIntegerField, F, Max, Value

from eventstream import conf
from eventstream.log import (
    AGE_POSTGRESQL,
    NO_END,
    ROW_COLUMNS,
    Log,
    database_now,
    make_rows,
    table_name,
)
from eventstream.models import (
    Channel,
    Cursor,
    DeadLetter,
    Event,
    Partition,
    PausedTarget,
)
from eventstream.rows import Batch, LogEntry, partition_of
from eventstream.signals import events_numbered
from eventstream.statements import FIRST_KICK, IS_PAUSED, open_cursor

MAX_BATCH = 10_000
FEW = 1000
"""Most events that are numbered and read at once, unless so many just were or more wait: a
larger limit makes PostgreSQL read a small table as a whole, and this is executed for each
event. And as many as any database numbers within its statements' time limit."""
RESET_STEP = 1_000_000_000
"""By how much ids move at least where the clock has gone back."""

# One statement and one transaction, so that a batch costs one round trip: channels of the
# batch get their ids by one upsert, events their place by window functions. A kick counts
# as a position only. The statement sees the rows as they were when it began, and may then
# have waited for the partition's while another numbered them: `current` is empty then, as
# that row is no longer the one that was seen, and nothing is done. That a place is within
# the limit is said for the planner: it expects fewer rows, and finds each by its id.
# Expecting a thousand it reads all of a table that has less than some 200,000.
_NUMBER_POSTGRESQL = """
WITH seen AS (
  SELECT last_position, start_eid FROM {partition} WHERE number = %(partition)s
), batch AS (
  SELECT id, channel, kind, place FROM (
    SELECT id, channel, kind, row_number() OVER w AS place,
      sum(octet_length(data)) OVER w - octet_length(data) AS before FROM {event}
    WHERE partition BETWEEN %(partition)s AND %(partition)s AND position IS NULL
    WINDOW w AS (ORDER BY partition, id ROWS UNBOUNDED PRECEDING)
    ORDER BY partition, id LIMIT %(limit)s
  ) AS waiting WHERE before < %(limit_bytes)s
), current AS (
  UPDATE {partition} p SET last_position = p.last_position + (SELECT count(*) FROM batch)
  FROM seen s WHERE p.number = %(partition)s AND EXISTS (SELECT 1 FROM batch)
    AND p.last_position = s.last_position AND p.start_eid = s.start_eid
  RETURNING s.last_position, s.start_eid
), grouped AS (
  SELECT channel, count(*) FILTER (WHERE kind = 0) AS event_count
  FROM batch GROUP BY channel
), upserted AS (
  INSERT INTO {channel} AS c (name, partition, last_eid)
  SELECT channel, %(partition)s, event_count + start_eid
  FROM grouped, current WHERE event_count > 0
  ON CONFLICT (name) DO UPDATE
  SET last_eid = c.last_eid + excluded.last_eid - (SELECT start_eid FROM current)
  RETURNING name, last_eid
), numbered AS (
  SELECT b.id, b.place,
    CASE WHEN b.kind = 0 THEN u.last_eid - g.event_count
      + count(*) FILTER (WHERE b.kind = 0) OVER (PARTITION BY b.channel ORDER BY b.id)
    END AS eid
  FROM batch b JOIN grouped g ON g.channel = b.channel
  LEFT JOIN upserted u ON u.name = b.channel
), moved AS (
  UPDATE {event} e SET position = current.last_position + n.place, eid = n.eid
  FROM numbered n, current
  WHERE e.id = n.id AND n.place - 1 BETWEEN 0 AND %(limit)s RETURNING {row}
)
"""
_HOW_IT_WENT = """
  (SELECT count(*) FROM moved), EXISTS (SELECT 1 FROM batch),
  EXISTS (SELECT 1 FROM seen), (SELECT last_position FROM current)
"""
_ROW = ", ".join([*(f"e.{name}" for name in ROW_COLUMNS), "''", AGE_POSTGRESQL])
_COUNT = f"""{_NUMBER_POSTGRESQL.replace("{row}", "1")}
SELECT {_HOW_IT_WENT}
"""
# The rows only if they are what follows: a relay that is behind has no use for them.
_RETURN = f"""{_NUMBER_POSTGRESQL.replace("{row}", _ROW)}
SELECT m.*, EXISTS (SELECT 1 FROM batch WHERE kind = 1) OR ({FIRST_KICK}) IS NOT NULL,
{IS_PAUSED},
{_HOW_IT_WENT} FROM (SELECT 1) AS one
LEFT JOIN moved m ON (SELECT last_position FROM current) = %(after)s
"""  # noqa: S608

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

# Channels whose row was deleted, or set back: nothing but their events says how far they were.
_MEND_CHANNELS = """
INSERT INTO {channel} (name, partition, last_eid)
SELECT channel, max(partition), max(eid) FROM {event}
WHERE eid IS NOT NULL GROUP BY channel
ON CONFLICT (name) DO UPDATE SET last_eid = excluded.last_eid
WHERE excluded.last_eid > {channel}.last_eid
"""


class Numbering(Log):
    """What of the storage gives ids and positions, under the partition's row lock."""

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
        check_limit(limit)
        if connections[using].vendor == "sqlite":
            with _saying_what_mends(partition):
                count = self._number_sqlite(using, partition, limit)
        else:
            values = {"partition": partition, "limit": limit, "limit_bytes": NO_END}
            count, *_ = self._number_postgresql(using, _COUNT, values)[0]
        self._tell(using, partition, count)
        return count

    def _tell(self, using: str, partition: int, count: int) -> None:
        if count:
            events_numbered.send_robust(
                type(self), using=using, partition=partition, event_count=count
            )

    def number_and_read(
        self,
        using: str,
        partition: int,
        *,
        after: int,
        limit: int,
        limit_bytes: int = NO_END,
        target: str,
    ) -> Batch:
        """Number a batch, and return the numbered rows above a position, in order.

        Where these are those, as for a relay that keeps up, PostgreSQL returns them from
        the statement that numbers.

        Args:
            using: Database alias.
            partition: Its number.
            after: The last position that the target has.
            limit: Most rows to number, and to return.
            limit_bytes: Bytes of data from which on no further row is returned.
            target: Its name: what was given up for it, and whether it is paused, is to be
                known.

        Raises:
            ValueError: The limit is out of range.
        """
        if connections[using].vendor == "sqlite":
            self.number_batch(using, partition, limit=limit)
            found = None
        else:
            found = self._number_returning(
                using, partition, after, limit, limit_bytes, target
            )
        return found or self.read_batch(
            using, partition,
            after=after, limit=limit, limit_bytes=limit_bytes, target=target,
        )  # fmt: skip

    def _number_returning(
        self,
        using: str,
        partition: int,
        after: int,
        limit: int,
        limit_bytes: int,
        target: str,
    ) -> Batch | None:
        """Number a batch, and return it if it is what follows a position."""
        check_limit(limit)
        read_at = time.monotonic()
        values = {
            "partition": partition, "limit": limit, "limit_bytes": limit_bytes,
            "after": after, "target": target, "kicks_above": 0,
        }  # fmt: skip
        found = self._number_postgresql(using, _RETURN, values)
        first, *_, has_kicks, is_paused, count, _, _, _ = found[0]
        self._tell(using, partition, count)
        if first is None:
            return None
        # In whatever order PostgreSQL came across them.
        rows = sorted(make_rows(found), key=attrgetter("position"))
        rows = self._mark(using, partition, rows) if has_kicks else rows
        # What has just been numbered cannot have been given up.
        return Batch(rows, False, has_kicks, is_paused, read_at)

    def _number_postgresql(
        self, using: str, statement: str, values: dict[str, Any]
    ) -> list[tuple[Any, ...]]:
        """Execute one of the two until nobody was quicker, and return its rows.

        That there is nothing is the usual answer, and takes no lock.
        """
        while True:
            with (
                _saying_what_mends(values["partition"]),
                open_cursor(using) as cursor,
            ):
                cursor.execute(statement.format(**_names(using)), values)
                found: list[tuple[Any, ...]] = cursor.fetchall()
            *_, is_new, is_known, base = found[0]
            if base is not None or not is_new:
                return found
            if not is_known:
                self._create_partition(using, values["partition"])

    def _number_sqlite(self, using: str, partition: int, limit: int) -> int:
        unnumbered = Event.objects.using(using).filter(
            partition=partition, position__isnull=True
        )
        if not unnumbered.exists():
            return 0
        names = _names(using)
        rows = Partition.objects.using(using).filter(number=partition)
        with transaction.atomic(using=using):
            # Takes the write lock also where transactions are not IMMEDIATE.
            rows.update(number=partition)
            found = rows.values_list("last_position", "start_eid").first()
            if found is None:
                self._create_partition(using, partition)
                found = rows.values_list("last_position", "start_eid").get()
            base, start = found
            values = {
                "partition": partition, "limit": limit, "base": base, "start": start,
            }  # fmt: skip
            with connections[using].cursor() as cursor:
                cursor.execute(_UPSERT_SQLITE.format(**names), values)
                cursor.execute(_NUMBER_SQLITE.format(**names), values)
                # Not rowcount: sqlite3 gives -1 for a statement that begins with WITH.
                cursor.execute("SELECT changes()")
                count = int(cursor.fetchone()[0])
            rows.update(last_position=base + count)
        return count

    def _create_partition(self, using: str, partition: int) -> None:
        """Create the row, as far along as a deleted one is known to have been.

        From 0 on, what it numbers would be taken for accepted by every target, until it
        came to a position that is stored.
        """
        row = Partition(
            number=partition,
            last_position=self._known_positions(using, partition).get(partition, 0),
            start_eid=self.start_eid(using),
        )
        Partition.objects.using(using).bulk_create([row], ignore_conflicts=True)

    def _known_positions(
        self, using: str, partition: int | None = None
    ) -> dict[int, int]:
        """Return the largest position of each partition, or of one, that is known to be given.

        By the events that are stored, and by what targets have accepted.
        """
        only = {} if partition is None else {"partition": partition}
        found: dict[int, int] = {}
        for model, name in ((Event, "position"), (Cursor, "watermark")):
            rows = model._default_manager.using(using).filter(**only)
            largest = rows.order_by().values_list("partition").annotate(Max(name))
            for number, position in largest:
                found[number] = max(found.get(number, 0), position or 0)
        return found

    def number_all(
        self, using: str, partition: int, *, keep: Callable[[], object] = lambda: None
    ) -> int:
        """Number batch after batch until none is left; return how many.

        Args:
            using: Database alias.
            partition: Its number.
            keep: Called after each batch that may not be the last.
        """
        limit = conf.get_options().batch_size
        total = 0
        while True:
            try:
                count = self.number_batch(using, partition, limit=limit)
            except OperationalError:
                if limit <= FEW:
                    raise
                limit = FEW
                continue
            total += count
            if count < limit:
                return total
            keep()

    def reset_readers(self, using: str) -> int:
        """Make every position that any client holds one that is not in the log.

        For a database that was restored from a backup: ids that were given after it would
        be given again, to other events, and a client that holds one would go on from
        there and miss what is now below it. All ids, of stored events and of channels to
        come, move up to where none has ever been. In one transaction, under the
        numbering locks.

        Also for one in which rows of Partition or Channel were deleted or set back: each is
        made as far along as the events that are stored. What other ids a deleted channel has
        given nobody knows, but all that it gives from now on are above them.

        Returns:
            How many channels there are.
        """
        for partition in {*self.partitions(using)} - {*self.heads(using)}:
            self._create_partition(using, partition)
        microseconds = int(database_now(using).timestamp() * 1_000_000)
        with transaction.atomic(using=using):
            rows = Partition.objects.using(using).order_by("number")
            if connections[using].vendor == "sqlite":
                rows.update(last_position=F("last_position"))  # the write lock
            else:
                list(rows.select_for_update(no_key=True))
            for partition, position in self._known_positions(using).items():
                behind = rows.filter(number=partition, last_position__lt=position)
                behind.update(last_position=position)
            with connections[using].cursor() as cursor:
                cursor.execute(_MEND_CHANNELS.format(**_names(using)))
            before = self.start_eid(using)
            # By the clock: an earlier reset may be missing in the backup. JavaScript
            # has exact numbers for these until the year 2255.
            start = max(microseconds, before + RESET_STEP)
            rows.update(start_eid=start)
            # Its size said: where a project binds on the server, Django takes a number
            # that is added to a column for one of 32 bits, and cuts off the others.
            further = Value(start - before, output_field=BigIntegerField())
            for model in (Event, DeadLetter):
                with_id = model._default_manager.using(using).exclude(eid=None)
                with_id.update(eid=F("eid") + further)
            channels = Channel.objects.using(using)
            return channels.update(last_eid=F("last_eid") + further)

    def adopt(
        self, using: str, channel: str, *, after: int, entries: Sequence[LogEntry]
    ) -> tuple[int, int] | None:
        """Append events of another log that have ids, consecutive above one of a channel.

        One transaction under the numbering lock. Stored events that `after` does not follow
        are deleted: a hole in the ids could not be told from a loss.

        Args:
            using: Database alias.
            channel: Its name.
            after: The id before the first entry; without entries the channel's last.
            entries: The events, in order.

        Returns:
            The partition's last position before and after; None if nothing was done.
        """
        partition = partition_of(channel)
        if partition not in self.heads(using):
            self._create_partition(using, partition)
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
                return None  # another run, or a relay, was here in between
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
            head = base + len(entries)
            rows.update(last_position=head)
            return base, head


@contextmanager
def _saying_what_mends(partition: int) -> Iterator[None]:
    """Have an id or a position that is there already say who is at fault, and what to do."""
    try:
        yield
    except IntegrityError as error:
        raise IntegrityError(
            f"{str(error).strip()} (Partition {partition} would give what is given already: "
            "rows of Partition or Channel were deleted or changed. `python manage.py "
            "eventstream reset-readers` mends that.)"
        ) from error


def check_limit(limit: int) -> None:
    """Raise ValueError for a batch of none, or of too many."""
    if not 1 <= limit <= MAX_BATCH:
        raise ValueError(f"limit must be 1 to {MAX_BATCH}, not {limit}")


def _names(using: str) -> dict[str, str]:
    """Return the tables' names, as statements write them."""
    return {
        "event": table_name(using, Event),
        "channel": table_name(using, Channel),
        "partition": table_name(using, Partition),
        "paused": table_name(using, PausedTarget),
    }
