"""Publish dead letters again, where that is still of use. What the admin calls."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from django.db.models import QuerySet

from eventstream.cursors import Lease, LeaseLostError, ensure_cursors
from eventstream.exceptions import PublishError, PublishRejectedError
from eventstream.models import DeadLetter, Event, PausedTarget
from eventstream.relay import ask_again, relay_partition
from eventstream.storage import get_storage
from eventstream.targets import get_targets
from eventstream.targets.base import Target


@dataclass
class RetryReport:
    """What became of dead letters that were tried again, as counts.

    Attributes:
        published: Accepted now.
        due: Given up before their turn; the relay publishes them when it has come.
        superseded: Not published, as readers have had them from the log.
        refused: Refused again.
        busy: Left alone, as another relay had the lease.
        error: Why it ended early; "" if it did not.
    """

    published: int = 0
    due: int = 0
    superseded: int = 0
    refused: int = 0
    busy: int = 0
    error: str = ""

    def add(self, other: RetryReport) -> None:
        self.published += other.published
        self.due += other.due
        self.superseded += other.superseded
        self.refused += other.refused
        self.busy += other.busy
        self.error = self.error or other.error


def retry_dead_letters(
    using: str, target_name: str, keys: Collection[int]
) -> RetryReport:
    """Publish what a target once refused, where that is still of use.

    Only while nothing newer of its channel was accepted there: after that its readers
    have it from the log, and it would reach them a second time and out of order. Such a
    letter is removed, as what it tells of is over.

    Args:
        using: Database alias.
        target_name: One of `get_targets()`.
        keys: Primary keys of the dead letters; those of other targets are left alone.
    """
    target = get_targets().get(target_name)
    if target is None:
        return RetryReport(error=f"{target_name} is not in the settings")
    pause = PausedTarget.objects.using(using).filter(name=target_name).first()
    if pause is not None:
        return RetryReport(error=f"{pause.describe()}; resume it first")
    letters = DeadLetter.objects.using(using).filter(pk__in=keys, target=target_name)
    by_partition: dict[int, list[int]] = {}
    for key, partition in letters.values_list("pk", "partition"):
        by_partition.setdefault(partition, []).append(key)
    total = RetryReport()
    for partition, some in sorted(by_partition.items()):
        total.add(_Retry(using, partition, target).run(some))
    return total


class _Retry:
    """The dead letters of one (partition, target), under its lease."""

    def __init__(self, using: str, partition: int, target: Target) -> None:
        self._storage = get_storage()
        self._using = using
        self._partition = partition
        self._target = target
        self._lease = Lease(self._storage, using, partition, target.name)

    def run(self, keys: Collection[int]) -> RetryReport:
        ensure_cursors(self._storage, self._using, self._partition)
        taken = self._lease.take(force=True)
        if taken is None:
            return RetryReport(busy=len(keys))
        report = RetryReport()
        try:
            self._retry_letters(report, taken.watermark, keys)
        except PublishError as error:
            report.error = str(error)
        except LeaseLostError:
            report.error = "another relay has taken over"
        finally:
            self._lease.release()
        if not report.error and self._lease.has_work():
            # What is due again, and what others were woken for while we had the lease.
            relay_partition(self._using, self._partition, self._target.name)
        return report

    def _retry_letters(
        self, report: RetryReport, watermark: int, keys: Collection[int]
    ) -> None:
        letters = self._letters().filter(pk__in=keys).order_by("position")
        for letter in letters:
            if letter.position > watermark:  # its turn has not come yet
                report.due += 1
            elif self._is_superseded(letter, watermark):
                report.superseded += 1
            else:
                row = self._storage.read_row(self._using, letter.event_id)
                if row is None:  # pruned meanwhile
                    continue
                row = ask_again(row, self._lease.keep)
                self._lease.renew()
                try:
                    self._target.publish(self._target.encode(row))
                except PublishRejectedError as error:
                    self._letters().filter(pk=letter.pk).update(error=str(error))
                    report.refused += 1
                    continue
                report.published += 1
            self._letters().filter(pk=letter.pk).delete()

    def _letters(self) -> QuerySet[DeadLetter]:
        return DeadLetter.objects.using(self._using).filter(
            partition=self._partition, target=self._target.name
        )

    def _is_superseded(self, letter: DeadLetter, watermark: int) -> bool:
        """Say whether the target has had a newer event of the channel.

        Its readers saw that the newer one does not follow, and read the log. Published
        now, the older one would reach them late and a second time.
        """
        if letter.eid is None:  # a kick: it has no place among the events
            return False
        newer = Event.objects.using(self._using).filter(
            channel=letter.channel, eid__gt=letter.eid, position__lte=watermark
        )
        refused = self._letters().filter(channel=letter.channel)
        return newer.exclude(pk__in=refused.values("event_id")).exists()
