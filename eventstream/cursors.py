"""Who has accepted what, and who is at work on it. The only writer of Cursor.

A lease is the right to work on one (partition, target), until a time by the database's
clock. Taking, renewing and confirming are single conditional UPDATEs, fenced by a token:
alike on PostgreSQL, SQLite and behind PgBouncer. It keeps two relays from doing the same
work; nothing depends on it.
"""

from __future__ import annotations

import datetime
import random
import secrets
import time
from collections.abc import Collection
from typing import Any, NamedTuple

from django.db import connections, transaction
from django.db.models import (
    Exists,
    F,
    OuterRef,
    Q,
    QuerySet,
    Value,
)
from django.db.models.functions import Coalesce, Greatest, Now

from eventstream import conf, statements
from eventstream.exceptions import EventStreamError
from eventstream.instants import InstantField
from eventstream.log import table_name
from eventstream.models import Cursor, Event, Partition, PausedTarget
from eventstream.storage import DjangoModelStorage
from eventstream.targets import get_targets

MAX_BACKOFF = 60.0
STALE_FAILURE = 30.0
"""Seconds after its due time for which a failure speaks for its target; the sweep comes
by every ten."""
LIVELY = 0.05
"""Seconds within which one event of a partition follows another where it is worth waiting:
twenty a second. Each wait costs a worker's process as long at most."""


class Taken(NamedTuple):
    """What a relay has to know when it takes a lease.

    Attributes:
        watermark: The last position that the target has accepted.
        is_backlog: The target has been failing for longer than BACKLOG_AFTER.
        is_lively: The target accepted something less than LIVELY seconds ago, so that the
            next event is likely to come soon, too.
        is_behind: More events than a few are waiting for an id. False on SQLite, which
            takes as long to say so as to number a few.
    """

    watermark: int
    is_backlog: bool
    is_lively: bool
    is_behind: bool


class LeaseLostError(EventStreamError):
    """Another relay took over; what it publishes again has the same ids."""


def backoff(attempts: int) -> float:
    """Return the seconds to wait after so many failures: random(0, min(60, 2^attempts)).

    Full jitter, so that the partitions of a target that is back do not all come at once.
    """
    return random.uniform(0, min(MAX_BACKOFF, 2.0 ** min(attempts, 10)))  # noqa: S311  jitter


def ensure_cursors(storage: DjangoModelStorage, using: str, partition: int) -> None:
    """Create the cursors that are missing, of all targets, before anything is numbered.

    At the head: a new target gets what is sent from now on, and not the past 24 h.
    All of them, as the first target to come would number the others' first events.
    """
    cursors = Cursor.objects.using(using).filter(partition=partition)
    known = cursors.values_list("target", flat=True)
    _create(storage, using, partition, set(get_targets()) - set(known))


def _create(
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


def move_along(using: str, partition: int, *, base: int, head: int) -> None:
    """Move the cursors that stand at `base` on to `head`: there is nothing to publish."""
    rows = Cursor.objects.using(using).filter(partition=partition, watermark=base)
    rows.update(watermark=head)


def count_refused(using: str, partition: int, target: str, count: int) -> None:
    """Count events that a target has refused for good."""
    cursors = Cursor.objects.using(using).filter(partition=partition, target=target)
    cursors.update(refused_count=F("refused_count") + count)


def hold_still(using: str, partition: int, target: str) -> bool:
    """Keep relays from a (partition, target) until the transaction ends.

    Returns:
        Whether that is so: not while one is at work on it.
    """
    rows = Cursor.objects.using(using).filter(partition=partition, target=target)
    free = rows.filter(Q(lease_until__isnull=True) | Q(lease_until__lt=Now()))
    # One whose lease has run out, and which is not dead, is to notice.
    return bool(free.update(lease_token="", lease_until=None))


def undo_impossible_waits(using: str) -> None:
    """End leases and delays that last longer than any: the database's clock went back."""
    options = conf.get_options()
    call_seconds = options.connect_timeout + options.publish_timeout
    longest = max(options.lease_seconds, MAX_BACKOFF + call_seconds)
    impossible = Now() + datetime.timedelta(seconds=longest)
    rows = Cursor.objects.using(using)
    rows.filter(next_attempt__gt=impossible).update(next_attempt=None)
    rows.filter(lease_until__gt=impossible).update(lease_token="", lease_until=None)


def resume_cursors(using: str, target: str, since: datetime.datetime) -> None:
    """Make a pause since then a failure since then, of those that are behind."""
    head = Partition.objects.filter(
        number=OuterRef("partition"), last_position__gt=OuterRef("watermark")
    )
    behind = Cursor.objects.using(using).filter(Exists(head), target=target)
    first = Coalesce("failing_since", Value(since, output_field=InstantField()))
    behind.update(failing_since=first, next_attempt=None)


class Lease:
    """The right to work on one (partition, target), and what only its holder may write.

    Attributes:
        has_recovered: The target had been failing, and has accepted something.
    """

    def __init__(
        self, storage: DjangoModelStorage, using: str, partition: int, target: str
    ) -> None:
        self._storage = storage
        self._using = using
        self._partition = partition
        self._target = target
        self._token = secrets.token_hex(16)
        self._renewed_at = 0.0
        self._was_failing = False
        self.has_recovered = False

    def _rows(self) -> QuerySet[Cursor]:
        return Cursor.objects.using(self._using).filter(
            partition=self._partition, target=self._target
        )

    def _mine(self) -> QuerySet[Cursor]:
        return self._rows().filter(lease_token=self._token)

    @property
    def is_failing(self) -> bool:
        """The target has failed before, and accepted nothing of the partition since."""
        return self._was_failing

    def take(self, *, force: bool, few: int = 1) -> Taken | None:
        """Take it, unless another relay has it, the target is paused, or not due.

        Args:
            force: Even if the last failure asked to wait.
            few: Of more events than so many it says `is_behind`.
        """
        began = time.monotonic()
        taken = self._take(force=force, few=few)
        if taken is None:
            return None
        self._renewed_at = began
        known, watermark, self._was_failing, *facts = taken
        missing = set(get_targets()) - set(known)
        _create(self._storage, self._using, self._partition, missing)
        return Taken(watermark, *facts)

    def _take(
        self, *, force: bool, few: int
    ) -> tuple[list[str], int, bool, bool, bool, bool] | None:
        # By database time, in one statement: alike on PostgreSQL, SQLite, behind
        # PgBouncer, and whatever this machine's clock says.
        if self._is_postgresql:
            statement = statements.TAKE if force else statements.TAKE_IF_DUE
            taken: tuple[list[str], int, bool, bool, bool, bool] | None
            taken = self._execute(statement, few=few)
            return taken
        rows = (
            self._rows()
            .filter(Q(lease_until__isnull=True) | Q(lease_until__lt=Now()))
            .exclude(Exists(self._pauses()))
        )
        if not force:
            rows = rows.filter(
                Q(next_attempt__isnull=True) | Q(next_attempt__lte=Now())
            ).exclude(Q(attempts=0) & Exists(self._failing_others()))
        if not rows.update(lease_token=self._token, lease_until=self._end()):
            return None
        cursor = self._rows().get()
        cursors = Cursor.objects.using(self._using).filter(partition=self._partition)
        known = list(cursors.values_list("target", flat=True))
        is_backlog = cursor.failing_since is not None and self._is_backlog()
        # By this machine's clock, as it is for speed only.
        recently = datetime.datetime.now(datetime.UTC) - datetime.timedelta(
            seconds=LIVELY
        )
        is_lively = cursor.confirmed_at is not None and cursor.confirmed_at > recently
        is_failing = cursor.attempts > 0
        return known, cursor.watermark, is_failing, is_backlog, is_lively, False

    def release(self) -> None:
        """Give it back."""
        if self._is_postgresql:
            self._execute(statements.RELEASE)
        else:
            self._mine().update(lease_token="", lease_until=None)

    def renew(self) -> None:
        """Have it for its whole time again.

        Raises:
            LeaseLostError: It is another's.
        """
        self._renewed_at = time.monotonic()
        if not self._mine().update(lease_until=self._end()):
            raise LeaseLostError

    def keep(self) -> None:
        """Renew it if a third of its time is over: between steps that may take long.

        Raises:
            LeaseLostError: It is another's.
        """
        passed = time.monotonic() - self._renewed_at
        if passed > conf.get_options().lease_seconds / 3:
            self.renew()

    def confirm(
        self, position: int, event_count: int, latency: float | None = None
    ) -> bool:
        """Move the watermark, and say whether to go on.

        Args:
            position: The last one that the target has accepted.
            event_count: How many rows that were.
            latency: Seconds from writing the first of them until now, to be recorded.

        Returns:
            Whether there is more.

        Raises:
            LeaseLostError: The lease is another's, or the watermark is further already.
        """
        if self._is_postgresql:
            found = self._execute(
                statements.CONFIRM,
                position=position,
                event_count=event_count,
                latency=latency,
            )
            if found is None:
                raise LeaseLostError
            goes_on = bool(found[0])
        else:
            self._confirm(position, event_count, latency)
            goes_on = self.has_work()
        if self._was_failing:
            self._was_failing, self.has_recovered = False, True
            self._failing_others().update(next_attempt=None)
        return goes_on

    def _confirm(self, position: int, event_count: int, latency: float | None) -> None:
        values: dict[str, Any] = {}
        if latency is not None:
            values["latency"] = datetime.timedelta(seconds=latency)
        mine = self._mine().filter(watermark__lte=position)
        confirmed = mine.update(
            watermark=position,
            lease_until=self._end(),
            attempts=0,
            next_attempt=None,
            failing_since=None,
            confirmed_at=Now(),
            last_error="",
            confirmed_count=F("confirmed_count") + event_count,
            **values,
        )
        if not confirmed:
            raise LeaseLostError

    def fail(self, error: str, *, is_alone: bool = False) -> tuple[int, float] | None:
        """Give it back, for the target has failed, until a time by the number of failures.

        Args:
            error: What it said.
            is_alone: The target accepts other things, now: the failure is of this partition,
                and no reason for others to wait.

        Returns:
            How many in a row these are, and the seconds to wait; None if the lease is
            another's.
        """
        # Confirming a batch resets the count: read it again.
        attempts = self._mine().values_list("attempts", flat=True).first()
        if attempts is None:
            return None
        delay = backoff(attempts + 1)
        self._mine().filter(failing_since__isnull=True).update(failing_since=Now())
        self._mine().update(
            attempts=F("attempts") + 1,
            failure_count=F("failure_count") + 1,
            next_attempt=Now() + datetime.timedelta(seconds=delay),
            last_error=error,
            lease_token="",
            lease_until=None,
            # Later than `failing_since`, which is what says so.
            **({"confirmed_at": Now()} if is_alone else {}),
        )
        if not is_alone:
            self._postpone_others(delay)
        return attempts + 1, delay

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

    # --- what is known of the target

    def pause(self) -> PausedTarget | None:
        """Return the operator's pause of the target, if there is one."""
        return self._pauses().first()

    def has_work(self) -> bool:
        """Say whether anything is unnumbered, or numbered and not confirmed."""
        if self._is_postgresql:
            return self._execute(statements.LOOK) is not None
        unnumbered = Event.objects.using(self._using).filter(
            partition=self._partition, position__isnull=True
        )
        partition = Partition.objects.using(self._using).filter(number=self._partition)
        ahead = partition.filter(last_position__gt=OuterRef("watermark"))
        return self._rows().filter(Exists(unnumbered) | Exists(ahead)).exists()

    def _is_backlog(self) -> bool:
        """Say whether the target has been failing for longer than BACKLOG_AFTER."""
        after = datetime.timedelta(seconds=conf.get_options().backlog_after)
        return self._rows().filter(failing_since__lt=Now() - after).exists()

    def waits_for(self) -> Cursor | None:
        """Return the failure for which the next attempt waits, its own or another's."""
        cursor = self._rows().filter(lease_until=None).first()
        if cursor is None:
            return None
        return cursor if cursor.attempts else self._failing_others().first()

    def count_as_failing(self) -> None:
        """What waits fails by proxy: it is a backlog too, and holds up no pruning for ever."""
        self._rows().filter(failing_since=None).update(failing_since=Now())

    def _failing_others(self) -> QuerySet[Cursor]:
        """Return this target's other cursors that are known to fail, and not alone.

        A target that hangs takes a worker several seconds to find out. One of its
        partitions does so on behalf of all; the others wait, or the workers would be
        busy with the dead target, and the healthy ones be late.
        """
        recent = Now() - datetime.timedelta(seconds=STALE_FAILURE)
        failing = self._others().filter(attempts__gt=0, next_attempt__gt=recent)
        return failing.exclude(confirmed_at__gt=F("failing_since"))

    def _others(self) -> QuerySet[Cursor]:
        rows = Cursor.objects.using(self._using).filter(target=self._target)
        return rows.exclude(partition=self._partition)

    def _pauses(self) -> QuerySet[PausedTarget]:
        rows = PausedTarget.objects.using(self._using)
        return rows.filter(name=self._target)

    def _end(self) -> object:
        return Now() + datetime.timedelta(seconds=conf.get_options().lease_seconds)

    @property
    def _is_postgresql(self) -> bool:
        return connections[self._using].vendor == "postgresql"

    def _execute(self, statement: str, **values: float | None) -> Any:
        """Execute one that is written out: Django takes longer to than PostgreSQL."""
        options = conf.get_options()
        parameters: dict[str, Any] = {
            **values,
            "partition": self._partition,
            "target": self._target,
            "token": self._token,
            "lease": options.lease_seconds,
            "backlog": options.backlog_after,
            "stale": STALE_FAILURE,
            "lively": LIVELY,
        }
        with statements.open_cursor(self._using) as cursor:
            cursor.execute(statement.format(**_names(self._using)), parameters)
            return cursor.fetchone() if cursor.description else None


def _names(using: str) -> dict[str, str]:
    models = {
        "cursor": Cursor, "event": Event, "partition": Partition, "paused": PausedTarget,
    }  # fmt: skip
    names = {name: table_name(using, model) for name, model in models.items()}
    return {
        **names,
        "first_unnumbered": statements.FIRST_UNNUMBERED.format(event=names["event"]),
        "is_behind": statements.IS_BEHIND.format(event=names["event"]),
    }
