"""Prune: delete the confirmed prefix of a partition that is past the retention."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Collection

from django.db import transaction
from django.db.models import Min
from django.db.models.functions import Now

from eventstream.log import Log
from eventstream.models import Cursor, DeadLetter, Event, PausedTarget

PRUNE_BATCH = 5_000


class Pruning(Log):
    """What of the storage deletes."""

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
