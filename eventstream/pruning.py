"""Prune: delete the confirmed prefix of a partition that is past the retention."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Collection

from django.db import connections, transaction
from django.db.models import Min, QuerySet

from eventstream.log import Log, database_now, table_name
from eventstream.models import Cursor, DeadLetter, Event, PausedTarget

FIRST_BATCH = 1_000
MAX_BATCH = 50_000
BATCH_SECONDS = 0.02
"""What a transaction is to take: the next has as many rows as that makes. On SQLite it
keeps senders waiting for so long."""

# In one: beside senders that keep the processors busy, each statement waits for its turn.
_DELETE = """
WITH letters AS (
  DELETE FROM {letter} WHERE partition = %(partition)s AND position <= %(last)s
)
DELETE FROM {event}
WHERE partition = %(partition)s AND position BETWEEN %(first)s AND %(last)s
  AND created < %(cutoff)s
  AND (SELECT set_config('synchronous_commit', 'off', true)) = 'off'
"""


class Pruning(Log):
    """What of the storage deletes."""

    def prune_bound(
        self, using: str, partition: int, *, retention: float, targets: Collection[str]
    ) -> int:
        """Return the last position that may be deleted; see `prune`."""
        cutoff = _cutoff(using, retention)
        bound = self._confirmed_bound(using, partition, cutoff, targets)
        young = _first_young(self._numbered(using, partition), cutoff)
        return bound if young is None else min(bound, young - 1)

    def _numbered(self, using: str, partition: int) -> QuerySet[Event]:
        rows = Event.objects.using(using)
        return rows.filter(partition=partition, position__isnull=False)

    def _confirmed_bound(
        self,
        using: str,
        partition: int,
        cutoff: datetime.datetime,
        targets: Collection[str],
    ) -> int:
        """Return the last position that no target holds up any more, of whatever age."""
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
            How many rows were deleted, in transactions of about BATCH_SECONDS.
        """
        cutoff = _cutoff(using, retention)
        rows = self._numbered(using, partition)
        first = rows.aggregate(first=Min("position"))["first"]
        if first is None:
            return 0
        bound = self._confirmed_bound(using, partition, cutoff, targets)
        total, size = 0, FIRST_BATCH
        while first <= bound:
            # From here on only upwards: what was deleted is passed by no query again.
            last = min(first + size - 1, bound)
            began = time.monotonic()
            count = self._delete(
                using, partition, first, last, cutoff=cutoff, or_nothing=True
            )
            if count is None:
                some = rows.filter(position__gte=first, position__lte=last)
                young = _first_young(some, cutoff)
                if young is not None:
                    last = bound = young - 1
                count = self._delete(using, partition, first, last, cutoff=cutoff)
            if count:
                on_batch(count)
            total += count or 0
            first = last + 1
            share = BATCH_SECONDS / max(time.monotonic() - began, 1e-6)
            size = max(100, min(MAX_BATCH, int(size * min(4.0, share))))
        return total

    def _delete(
        self,
        using: str,
        partition: int,
        first: int,
        last: int,
        *,
        cutoff: datetime.datetime,
        or_nothing: bool = False,
    ) -> int | None:
        """Delete the rows of a range of positions that are older than a cutoff.

        Args:
            using: Database alias.
            partition: Its number.
            first: The first position.
            last: The last.
            cutoff: To ask for it while deleting is cheaper than to look before.
            or_nothing: Delete nothing unless each position has such a row.

        Returns:
            How many rows were deleted; None if nothing was, as not all would have been.
        """
        with transaction.atomic(using=using):
            if connections[using].vendor == "postgresql":
                count = _delete_postgresql(using, partition, first, last, cutoff)
            else:
                rows = self._numbered(using, partition).filter(created__lt=cutoff)
                rows = rows.filter(position__gte=first, position__lte=last)
                # Raw: no signals, no collecting of ids; five times as fast.
                count = rows._raw_delete(using)
                letters = DeadLetter.objects.using(using).filter(
                    partition=partition, position__lte=last
                )
                letters._raw_delete(using)
            if or_nothing and count <= last - first:
                transaction.set_rollback(True, using=using)
                return None
        return count


def _delete_postgresql(
    using: str, partition: int, first: int, last: int, cutoff: datetime.datetime
) -> int:
    statement = _DELETE.format(
        event=table_name(using, Event), letter=table_name(using, DeadLetter)
    )
    values: dict[str, int | datetime.datetime] = {
        "partition": partition, "first": first, "last": last, "cutoff": cutoff,
    }  # fmt: skip
    with connections[using].cursor() as cursor:
        cursor.execute(statement, values)
        count: int = cursor.rowcount
        return count


def _first_young(rows: QuerySet[Event], cutoff: datetime.datetime) -> int | None:
    """Return the first position of an event that is to be kept."""
    young = rows.filter(created__gte=cutoff).order_by("position")
    return young.values_list("position", flat=True).first()


def _cutoff(using: str, retention: float) -> datetime.datetime:
    """Return the instant before which events are old, by the database's clock."""
    return database_now(using) - datetime.timedelta(seconds=retention)
