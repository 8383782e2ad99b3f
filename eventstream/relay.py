"""Empty the outbox: lease → number → publish → confirm. The only writer of Cursor.

Task, sweep, admin and command all end in `relay_partition`; there is no other road to the
wire for a stored event.

What is safe under a crash at any line: the ids of a batch are committed before any of it
is published, and confirmed after all of it was accepted. So a crash repeats events under
the same ids, which proxies and readers drop, and never gives an id to two events. The
lease keeps two relays from doing the same work; nothing depends on it.
"""

from __future__ import annotations

import datetime
import enum
import logging
import random
import secrets
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from django.db import connections, transaction
from django.db.models import (
    Exists,
    F,
    Func,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    TextField,
    Value,
)
from django.db.models.functions import Coalesce, Greatest, Now

from eventstream import conf, instruments, tracing
from eventstream.channelmanager import may_read
from eventstream.exceptions import (
    CannotGiveUpError,
    EventStreamError,
    PublishError,
    PublishRejectedError,
    PublishUnavailableError,
)
from eventstream.instruments import failure_kind
from eventstream.models import (
    Cursor,
    DeadLetter,
    Event,
    EventKind,
    Partition,
    PausedTarget,
)
from eventstream.signals import event_dead_lettered, events_confirmed
from eventstream.storage import (
    DjangoModelStorage,
    OutboxRow,
    get_storage,
    join_users,
    split_users,
)
from eventstream.targets import get_targets
from eventstream.targets.base import Item, Target

logger = logging.getLogger(__name__)

MAX_BACKOFF = 60.0
STALE_FAILURE = 30.0
"""Seconds after its due time for which a failure speaks for its target; the sweep comes
by every ten."""
MAX_REST = 0.004
"""Most seconds that a relay rests between two small batches: what it adds to an event's
latency at most, and only while events come faster than they can be relayed singly."""
NO_TARGET = ""
"""The target of a wake-up that only numbers: where nothing is configured to publish to."""


class Outcome(enum.Enum):
    """How a call of relay_partition ended."""

    DONE = "done"
    BUSY = "busy"  # another relay has the lease, and will look again after releasing it
    WAITING = "waiting"  # it failed a moment ago; not due yet
    FAILED = "failed"
    PAUSED = "paused"  # by an operator; what was sent has been numbered
    UNKNOWN = "unknown"  # the target is not in the settings


@dataclass(frozen=True)
class Report:
    """What a call of relay_partition did.

    Attributes:
        outcome: How it ended.
        event_count: Rows confirmed; those that the target refused for good count too.
        error: The target's answer, if it failed.
        has_recovered: The target had been failing and takes events again: whatever waits
            for it in other partitions is due now.
    """

    outcome: Outcome
    event_count: int = 0
    error: str = ""
    has_recovered: bool = False


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


class WakeFlag:
    """Says, while raised, that a relay is going to look: senders need not wake one.

    This one says nothing to nobody; a dispatcher that coalesces wake-ups has its own.
    """

    def lower(self) -> None:
        """From now on senders wake. Called before the last look, and if there is none."""

    def keep_up(self) -> None:
        """There will be another look, after lowering it again."""


class _LeaseLostError(EventStreamError):
    """Another relay took over; what it publishes again has the same ids."""


def backoff(attempts: int) -> float:
    """Return the seconds to wait after so many failures: random(0, min(60, 2^attempts)).

    Full jitter, so that the partitions of a target that is back do not all come at once.
    """
    return random.uniform(0, min(MAX_BACKOFF, 2.0 ** min(attempts, 10)))  # noqa: S311  jitter


def relay_partition(
    using: str,
    partition: int,
    target_name: str,
    *,
    force: bool = False,
    flag: WakeFlag | None = None,
) -> Report:
    """Number and publish whatever is waiting in a partition, for one target.

    Looks again after releasing the lease: a wake-up that came in between found the lease
    taken and went away. No transaction is open while the target is being talked to.

    Args:
        using: Database alias.
        partition: Its number.
        target_name: One of `get_targets()`, or NO_TARGET to number only.
        force: Try now even if the last failure asked to wait.
        flag: What keeps senders from waking another relay. Lowered before the last look:
            an event that found it raised is seen by that look.
    """
    storage = get_storage()
    flag = flag or WakeFlag()
    if target_name == NO_TARGET:
        flag.lower()
        ensure_cursors(storage, using, partition)  # there may be paused targets
        return Report(Outcome.DONE, storage.number_all(using, partition))
    target = get_targets().get(target_name)
    if target is None:
        return Report(Outcome.UNKNOWN, error=f"{target_name} is not in the settings")
    return _Relay(storage, using, partition, target, flag).run(force=force)


def relay_all(
    using: str, *, force: bool = False, targets: Collection[str] | None = None
) -> dict[tuple[int, str], Report]:
    """Relay every partition that has work and is due. What the sweep and admin call."""
    return {
        (partition, name): relay_partition(using, partition, name, force=force)
        for partition, name in pending(using)
        if targets is None or name in targets
    }


def pending(using: str) -> list[tuple[int, str]]:
    """Return the (partition, target) pairs with something unnumbered or unconfirmed.

    Without the targets that are paused.
    """
    storage = get_storage()
    paused = PausedTarget.objects.using(using).values_list("name", flat=True)
    names = [name for name in get_targets() if name not in set(paused)]
    unnumbered = set(storage.unnumbered_partitions(using))
    if not names:
        return [(partition, NO_TARGET) for partition in sorted(unnumbered)]
    heads = storage.heads(using)
    rows = Cursor.objects.using(using).filter(target__in=names)
    marks = {
        (partition, name): mark
        for partition, name, mark in rows.values_list(
            "partition", "target", "watermark"
        )
    }
    found = []
    for partition in sorted({*heads, *unnumbered}):
        for name in names:
            # Without a cursor the target is new: it starts at the head.
            mark = marks.get((partition, name))
            is_behind = mark is not None and mark < heads.get(partition, 0)
            if partition in unnumbered or is_behind:
                found.append((partition, name))
    return found


def ensure_cursors(storage: DjangoModelStorage, using: str, partition: int) -> None:
    """Create the cursors that are missing, of all targets, before anything is numbered.

    At the head: a new target gets what is sent from now on, and not the past 24 h.
    All of them, as the first target to come would number the others' first events.
    """
    cursors = Cursor.objects.using(using).filter(partition=partition)
    known = cursors.values_list("target", flat=True)
    _create_cursors(storage, using, partition, set(get_targets()) - set(known))


def _create_cursors(
    storage: DjangoModelStorage, using: str, partition: int, missing: Collection[str]
) -> None:
    if missing:
        head = storage.last_position(using, partition)
        Cursor.objects.using(using).bulk_create(
            [
                Cursor(partition=partition, target=name, watermark=head)
                for name in sorted(missing)
            ],
            ignore_conflicts=True,
        )


class _Relay:
    """One call's work on one (partition, target)."""

    def __init__(
        self,
        storage: DjangoModelStorage,
        using: str,
        partition: int,
        target: Target,
        flag: WakeFlag,
    ) -> None:
        self._flag = flag
        self._storage = storage
        self._using = using
        self._partition = partition
        self._target = target
        self._token = secrets.token_hex(16)
        self._event_count = 0
        self._was_failing = False
        self._has_recovered = False

    def run(self, *, force: bool) -> Report:
        try:
            return self._run(force=force)
        finally:
            self._flag.lower()

    def _run(self, *, force: bool) -> Report:
        cursor = self._take(force=force)
        while cursor is not None:
            try:
                self._drain(cursor)
            except PublishError as error:
                self._record_failure(cursor, error)
                return self._report(Outcome.FAILED, str(error))
            except _LeaseLostError:
                logger.warning("Lost the lease of %s", cursor)
            except BaseException:
                # A worker's time limit or shutdown: hand the rest on at once.
                self._release()
                raise
            else:
                self._release()
                self._flag.lower()
                if not self._has_work():
                    return self._report(Outcome.DONE)
                self._flag.keep_up()
            cursor = self._take(force=force)
        return self._not_acquired(force=force)

    def _take(self, *, force: bool) -> Cursor | None:
        """Take the lease. If somebody has it, they look after any event of until now.

        So that it is true of events that saw the flag raised, it is lowered before the
        last try: whoever has the lease then has not looked for the last time yet.
        """
        cursor = self._acquire(force=force)
        if cursor is None:
            self._flag.lower()
            ensure_cursors(self._storage, self._using, self._partition)
            cursor = self._acquire(force=force)
        return cursor

    def _facts(self, **facts: object) -> dict[str, object]:
        """Return a log line's facts by name, for formatters that keep them apart."""
        return {
            "database": self._using,
            "partition": self._partition,
            "target": self._target.name,
            **facts,
        }

    def _report(self, outcome: Outcome, error: str = "") -> Report:
        return Report(outcome, self._event_count, error, self._has_recovered)

    # --- the lease

    def _rows(self) -> QuerySet[Cursor]:
        return Cursor.objects.using(self._using).filter(
            partition=self._partition, target=self._target.name
        )

    def _acquire(self, *, force: bool) -> Cursor | None:
        rows = (
            self._rows()
            .filter(Q(lease_until__isnull=True) | Q(lease_until__lt=Now()))
            .exclude(Exists(self._pause()))
        )
        if not force:
            rows = rows.filter(
                Q(next_attempt__isnull=True) | Q(next_attempt__lte=Now())
            ).exclude(Q(attempts=0) & Exists(self._failing_others()))
        # By database time, in one statement: alike on PostgreSQL, SQLite, behind
        # PgBouncer, and whatever this machine's clock says.
        taken = self._relaxed(rows).update(
            lease_token=self._token, lease_until=self._lease_end()
        )
        if not taken:
            return None
        cursors = Cursor.objects.using(self._using).filter(partition=self._partition)
        by_target = {cursor.target: cursor for cursor in cursors}
        missing = set(get_targets()) - set(by_target)
        _create_cursors(self._storage, self._using, self._partition, missing)
        cursor = by_target[self._target.name]
        self._was_failing = cursor.attempts > 0
        return cursor

    def _failing_others(self) -> QuerySet[Cursor]:
        """Return this target's other cursors that are known to fail.

        A target that hangs takes a worker several seconds to find out. One of its
        partitions does so on behalf of all; the others wait, or the workers would be
        busy with the dead target, and the healthy ones be late.
        """
        recent = Now() - datetime.timedelta(seconds=STALE_FAILURE)
        return self._others().filter(attempts__gt=0, next_attempt__gt=recent)

    def _others(self) -> QuerySet[Cursor]:
        rows = Cursor.objects.using(self._using).filter(target=self._target.name)
        return rows.exclude(partition=self._partition)

    def _pause(self) -> QuerySet[PausedTarget]:
        rows = PausedTarget.objects.using(self._using)
        return rows.filter(name=self._target.name)

    def _lease_end(self) -> object:
        return Now() + datetime.timedelta(seconds=conf.get_options().lease_seconds)

    def _release(self) -> None:
        mine = self._rows().filter(lease_token=self._token)
        self._relaxed(mine).update(lease_token="", lease_until=None)

    def _relaxed(self, rows: QuerySet[Cursor]) -> QuerySet[Cursor]:
        """Have an update of these rows not wait for the disk.

        To lose a confirmation repeats an id, to lose a lease costs its time: neither is
        worth a flush. For that transaction only, without statements of its own.
        """
        if connections[self._using].vendor != "postgresql":
            return rows
        setting = Func(
            Value("synchronous_commit"), Value("off"), Value(True),
            function="set_config", output_field=TextField(),
        )  # fmt: skip
        return rows.annotate(synchronous_commit=setting).filter(
            synchronous_commit="off"
        )

    def _not_acquired(self, *, force: bool) -> Report:
        pause = self._pause().first()
        if pause is not None:
            # Ids are given all the same: readers of the log and other targets need them.
            self._storage.number_all(self._using, self._partition)
            return self._report(Outcome.PAUSED, describe_pause(pause))
        cursor = None if force else self._rows().filter(lease_until=None).first()
        if cursor is not None:
            failing = cursor if cursor.attempts else self._failing_others().first()
            if failing is not None:
                if self._has_work():
                    # It fails by proxy: what waits is a backlog too, and must not hold
                    # up pruning for ever.
                    rows = self._rows().filter(failing_since=None)
                    rows.update(failing_since=Now())
                return self._report(Outcome.WAITING, failing.last_error)
        return self._report(Outcome.BUSY)

    def _has_work(self) -> bool:
        unnumbered = Event.objects.using(self._using).filter(
            partition=self._partition, position__isnull=True
        )
        partition = Partition.objects.using(self._using).filter(number=self._partition)
        ahead = partition.filter(last_position__gt=OuterRef("watermark"))
        return self._rows().filter(Exists(unnumbered) | Exists(ahead)).exists()

    # --- number, publish, confirm

    def _drain(self, cursor: Cursor) -> None:
        options = conf.get_options()
        watermark = cursor.watermark
        if self._is_backlog(cursor):
            watermark = self._publish_backlog(watermark)
        while True:
            began = time.monotonic()
            self._storage.number_batch(
                self._using, self._partition, limit=options.batch_size
            )
            rows = self._storage.read_partition(
                self._using, self._partition, after=watermark, limit=options.batch_size
            )
            rows = [_ask_again(row) for row in rows]
            if not rows:
                self._pass_over_pruned(watermark)
                return
            for batch, items in self._batches(self._without_given_up(rows)):
                self._publish(batch, items)
                watermark = batch[-1].position
                self._confirm(watermark, len(batch), batch[0].position)
            if watermark < rows[-1].position:  # the last were given up
                watermark = rows[-1].position
                self._confirm(watermark, 0)
            if len(rows) == options.batch_size:
                is_over = self._pause().exists()
            else:
                is_over = not self._has_work()
            if is_over:
                return
            if len(rows) < options.batch_size:
                # A steady sender: batches grow while the relay rests for as long as it
                # worked, and the other half of the processor is the sender's.
                time.sleep(min(time.monotonic() - began, MAX_REST))

    def _without_given_up(self, rows: Sequence[OutboxRow]) -> list[OutboxRow]:
        """Leave out what an operator has given up for this target before its turn."""
        if not rows:
            return []
        letters = DeadLetter.objects.using(self._using).filter(
            partition=self._partition,
            position__gte=rows[0].position,
            position__lte=rows[-1].position,
            target=self._target.name,
        )
        given_up = set(letters.values_list("position", flat=True))
        return [row for row in rows if row.position not in given_up]

    def _pass_over_pruned(self, watermark: int) -> None:
        """Confirm positions whose rows are gone: pruned while this target was failing.

        The head is read first, so what is numbered meanwhile is never passed over.
        """
        head = self._storage.last_position(self._using, self._partition)
        if head > watermark and not self._storage.read_partition(
            self._using, self._partition, after=watermark, limit=1
        ):
            self._confirm(head, 0)

    def _is_backlog(self, cursor: Cursor) -> bool:
        if cursor.failing_since is None:
            return False
        after = datetime.timedelta(seconds=conf.get_options().backlog_after)
        return self._rows().filter(failing_since__lt=Now() - after).exists()

    def _publish_backlog(self, watermark: int) -> int:
        """Publish to a target that is back only the newest event of each channel.

        Its held streams see the gap and read the log. Event by event the proxy would
        hold up each for message_wait, and forget ids that it has seen before.
        """
        self._storage.number_all(self._using, self._partition)
        head = self._storage.last_position(self._using, self._partition)
        newest = self._storage.read_newest(
            self._using, self._partition, after=watermark, up_to=head
        )
        rows = self._without_given_up(newest)
        for batch, items in self._batches([_ask_again(row) for row in rows]):
            self._publish(batch, items)
            self._renew()
        if head > watermark:
            self._confirm(head, len(rows))
        return head

    def _batches(
        self, rows: Sequence[OutboxRow]
    ) -> list[tuple[list[OutboxRow], list[Item]]]:
        """Encode the rows, and cut them by BATCH_BYTES; a row is never cut in two."""
        limit = conf.get_options().batch_bytes
        batches: list[tuple[list[OutboxRow], list[Item]]] = []
        size = limit
        for row in rows:
            items = self._target.encode(row)
            row_size = sum(len(item.body) + 1 for item in items)
            if size + row_size > limit:
                batches.append(([], []))
                size = 0
            batches[-1][0].append(row)
            batches[-1][1].extend(items)
            size += row_size
        return batches

    def _publish(self, rows: Sequence[OutboxRow], items: Sequence[Item]) -> None:
        try:
            self._attempt(items)
        except PublishRejectedError as error:
            rejected = self._bisect(rows, error)
            if len(rejected) == len(rows):
                self._check_target(error)
            for row, reason in rejected:
                self._bury(row, reason)
        logger.info(
            "Published %s events of partition %s to %s",
            len(rows), self._partition, self._target.name,
            extra=self._facts(
                event_count=len(rows), first=rows[0].position, last=rows[-1].position
            ),
        )  # fmt: skip

    def _attempt(self, items: Sequence[Item]) -> None:
        """Have the target publish, and count what came of it."""
        started = time.monotonic()
        outcome = "ok"
        try:
            with tracing.active.publishing(
                self._target.name, self._partition, len(items)
            ):
                self._target.publish(items)
        except PublishError as error:
            outcome = failure_kind(error)
            raise
        finally:
            seconds = time.monotonic() - started
            instruments.active.attempt(self._target.name, outcome, seconds)

    def _check_target(self, error: PublishRejectedError) -> None:
        """See whether the target takes anything at all, before it is said of the events.

        Raises:
            PublishUnavailableError: It refuses what cannot be wrong, too.
        """
        try:
            self._target.publish(self._target.probe())
        except PublishRejectedError:
            raise PublishUnavailableError(
                f"it refuses whatever is published: {error}"
            ) from error

    def _bisect(
        self, rows: Sequence[OutboxRow], error: PublishRejectedError
    ) -> list[tuple[OutboxRow, PublishRejectedError]]:
        """Publish the halves of a refused batch, down to the rows that are at fault."""
        if len(rows) == 1:
            return [(rows[0], error)]
        rejected = []
        middle = len(rows) // 2
        for half in (rows[:middle], rows[middle:]):
            self._renew()
            items = [item for row in half for item in self._target.encode(row)]
            try:
                self._attempt(items)
            except PublishRejectedError as half_error:
                rejected += self._bisect(half, half_error)
        return rejected

    def _bury(self, row: OutboxRow, error: PublishRejectedError) -> None:
        logger.error(
            "%s refused event %s of %s for good: %s",
            self._target.name, row.eid, row.channel, error,
            extra=self._facts(event_id=row.eid, channel=row.channel, error=str(error)),
        )  # fmt: skip
        _write_letters(
            self._using, self._partition, self._target.name, [row], str(error)
        )

    def _renew(self) -> None:
        mine = self._rows().filter(lease_token=self._token)
        if not mine.update(lease_until=self._lease_end()):
            raise _LeaseLostError

    def _confirm(
        self, position: int, event_count: int, first: int | None = None
    ) -> None:
        """Move the watermark; `first` is the position whose latency is recorded."""
        values: dict[str, Any] = {}
        if first is not None:
            event = Event.objects.filter(partition=self._partition, position=first)
            values["latency"] = Now() - Subquery(event.values("created"))
        mine = self._rows().filter(lease_token=self._token)
        confirmed = self._relaxed(mine.filter(watermark__lte=position)).update(
            watermark=position,
            lease_until=self._lease_end(),
            attempts=0,
            next_attempt=None,
            failing_since=None,
            confirmed_at=Now(),
            last_error="",
            confirmed_count=F("confirmed_count") + event_count,
            **values,
        )
        if not confirmed:
            raise _LeaseLostError
        if self._was_failing:
            self._was_failing, self._has_recovered = False, True
            self._failing_others().update(next_attempt=None)
        self._event_count += event_count
        events_confirmed.send_robust(
            Cursor,
            using=self._using,
            partition=self._partition,
            target=self._target.name,
            event_count=event_count,
            position=position,
        )

    def _record_failure(self, cursor: Cursor, error: PublishError) -> None:
        # Confirming a batch resets the count: read it again.
        mine = self._rows().filter(lease_token=self._token)
        attempts = mine.values_list("attempts", flat=True).first()
        if attempts is None:
            return
        delay = backoff(attempts + 1)
        logger.warning(
            "Publishing partition %s to %s failed (%s in a row), again in %.1f s: %s",
            self._partition, self._target.name, attempts + 1, delay, error,
            extra=self._facts(
                attempts=attempts + 1, retry_seconds=round(delay, 1), error=str(error)
            ),
        )  # fmt: skip
        mine.filter(failing_since__isnull=True).update(failing_since=Now())
        mine.update(
            attempts=F("attempts") + 1,
            failure_count=F("failure_count") + 1,
            next_attempt=Now() + datetime.timedelta(seconds=delay),
            last_error=str(error),
            lease_token="",
            lease_until=None,
        )
        self._postpone_others(delay)

    def _postpone_others(self, delay: float) -> None:
        """Have this partition be the next to try its target, and the others hear of it."""
        options = conf.get_options()
        delay += options.connect_timeout + options.publish_timeout
        earliest = Now() + datetime.timedelta(seconds=delay)
        with transaction.atomic(using=self._using):
            # In one order, and without those that are locked: another failure is just
            # postponing them, or they are being tried.
            others = self._others().filter(attempts__gt=0).order_by("pk")
            locked = others.select_for_update(skip_locked=True)
            rows = Cursor.objects.using(self._using).filter(
                pk__in=list(locked.values_list("pk", flat=True))
            )
            due = Coalesce("next_attempt", Now())
            rows.update(next_attempt=Greatest(due, earliest))

    # --- dead letters

    def retry(self, keys: Collection[int]) -> RetryReport:
        """Do the work of retry_dead_letters, under the lease."""
        ensure_cursors(self._storage, self._using, self._partition)
        cursor = self._acquire(force=True)
        if cursor is None:
            return RetryReport(busy=len(keys))
        report = RetryReport()
        try:
            self._retry_letters(report, cursor.watermark, keys)
        except PublishError as error:
            report.error = str(error)
        except _LeaseLostError:
            report.error = "another relay has taken over"
        finally:
            self._release()
        if not report.error and self._has_work():
            # What is due again, and what others were woken for while we had the lease.
            self.run(force=False)
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
                self._renew()
                try:
                    self._target.publish(self._target.encode(_ask_again(row)))
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


def _write_letters(
    using: str, partition: int, target: str, rows: Collection[OutboxRow], error: str
) -> None:
    letters = [
        DeadLetter(
            event_id=row.id,
            partition=partition,
            position=row.position,
            channel=row.channel,
            eid=row.eid,
            target=target,
            error=error,
        )
        for row in rows
    ]
    DeadLetter.objects.using(using).bulk_create(letters, ignore_conflicts=True)
    cursors = Cursor.objects.using(using).filter(partition=partition, target=target)
    cursors.update(refused_count=F("refused_count") + len(letters))
    for event in Event.objects.using(using).filter(pk__in=[row.id for row in rows]):
        event_dead_lettered.send_robust(
            DeadLetter, using=using, target=target, event=event, error=error
        )


def give_up(using: str, target_name: str, event_id: int, reason: str) -> None:
    """Make an event that waits a dead letter of a target, at an operator's request.

    For an event that its target answers with an error that is not about the event, say a
    500, and that holds up its partition for ever. The target's readers see the gap and
    get the event from the log. One that is on its way right now may arrive all the same.

    Args:
        using: Database alias.
        target_name: One of `get_targets()`.
        event_id: The event's primary key.
        reason: What the dead letter is to say.

    Raises:
        CannotGiveUpError: Says why the event is not one that waits for the target.
    """
    if target_name not in get_targets():
        raise CannotGiveUpError(f"{target_name} is not in the settings.")
    event = Event.objects.using(using).filter(pk=event_id).first()
    if event is None:
        raise CannotGiveUpError(f"Event {event_id} is not stored (any more).")
    if event.kind == EventKind.KICK:
        raise CannotGiveUpError(
            f"{event.channel}: a withdrawn permission is never given up, or the user "
            "would read on."
        )
    storage = get_storage()
    partition = event.partition
    if event.position is None:
        storage.number_all(using, partition)
    row = storage.read_row(using, event_id)
    mark = (
        Cursor.objects.using(using)
        .filter(partition=partition, target=target_name)
        .values_list("watermark", flat=True)
        .first()
    )
    if row is None or (mark is not None and row.position <= mark):
        raise CannotGiveUpError(f"{event} does not wait for {target_name} any more.")
    logger.error("Gave up %s for %s: %s", event, target_name, reason)
    _write_letters(using, partition, target_name, [row], reason)


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
        return RetryReport(error=f"{describe_pause(pause)}; resume it first")
    letters = DeadLetter.objects.using(using).filter(pk__in=keys, target=target_name)
    by_partition: dict[int, list[int]] = {}
    for key, partition in letters.values_list("pk", "partition"):
        by_partition.setdefault(partition, []).append(key)
    total = RetryReport()
    for partition, some in sorted(by_partition.items()):
        relay = _Relay(get_storage(), using, partition, target, WakeFlag())
        total.add(relay.retry(some))
    return total


def _ask_again(row: OutboxRow) -> OutboxRow:
    """Leave of the kicked users those who may still not read the channel."""
    if not row.kicked:
        return row
    users = [
        user for user in split_users(row.kicked) if not may_read(user, row.channel)
    ]
    return row._replace(kicked=join_users(users))


def pause_target(using: str, target_name: str, *, reason: str = "") -> bool:
    """Publish nothing to a target until it is resumed; False if it was paused already.

    A relay that is at work on it ends after its batch. Events are numbered, stored and
    published to the other targets as before.
    """
    pause = PausedTarget(name=target_name, reason=reason)
    rows = PausedTarget.objects.using(using)
    with transaction.atomic(using=using):
        if rows.filter(name=target_name).exists():
            return False
        rows.bulk_create([pause], ignore_conflicts=True)
    return True


def resume_target(using: str, target_name: str) -> bool:
    """Let a paused target have what waits for it; False if it was not paused.

    What it missed counts as a failure since the pause: if that was longer ago than
    BACKLOG_AFTER it gets the newest event of each channel, and its readers the rest from
    the log. Wakes nobody.
    """
    with transaction.atomic(using=using):
        rows = PausedTarget.objects.using(using).filter(name=target_name)
        pause = rows.first()
        if pause is None:
            return False
        head = Partition.objects.filter(
            number=OuterRef("partition"), last_position__gt=OuterRef("watermark")
        )
        behind = Cursor.objects.using(using).filter(Exists(head), target=target_name)
        since = Coalesce("failing_since", Value(pause.since))
        behind.update(failing_since=since, next_attempt=None)
        rows.delete()
    return True


def describe_pause(pause: PausedTarget) -> str:
    """Return since when a target is paused, and why, in words."""
    since = pause.since.strftime("%Y-%m-%d %H:%M:%S")
    text = f"{pause.name} is paused since {since}"
    return f"{text}: {pause.reason}" if pause.reason else text


def publish_unstored(target_name: str, rows: Sequence[OutboxRow]) -> None:
    """Publish best-effort events, which are in no table, to one target, once.

    Raises:
        PublishError: The target did not accept them; nobody will try again.
    """
    target = get_targets().get(target_name)
    using = conf.get_options().databases[0]
    if PausedTarget.objects.using(using).filter(name=target_name).exists():
        return  # nobody waits for them, so nobody gets them later
    if target is not None:
        target.publish([item for row in rows for item in target.encode(row)])
