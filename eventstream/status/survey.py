"""Look at one outbox: a dozen queries, whatever is stored, and questions to the others."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from typing import Any

from django.db import DatabaseError
from django.db.models import F, OuterRef, Subquery
from django.db.models.functions import Coalesce

from eventstream import conf
from eventstream.dispatch import get_dispatcher
from eventstream.exceptions import PublishError
from eventstream.log import database_now, is_read_only
from eventstream.models import (
    Cursor,
    DeadLetter,
    Event,
    Holder,
    Job,
    Partition,
    PausedTarget,
)
from eventstream.status.facts import (
    COUNT_LIMIT,
    HOLDER_SECONDS,
    LATE_SECONDS,
    PROXY_SECONDS,
    VERY_LATE_SECONDS,
    HolderStatus,
    JobStatus,
    Level,
    PartitionStatus,
    Status,
    TargetStatus,
)
from eventstream.storage import get_storage
from eventstream.targets import get_targets
from eventstream.targets.base import Target

_UNFINISHED = "unfinished", Level.WARNING


class Survey:
    """One look at one outbox: the facts, without what is wrong about them."""

    def __init__(self, using: str, *, ask: bool) -> None:
        self._using = using
        self._ask = ask
        # First, as it may take seconds, in which the relay goes on.
        self._wake_ups = get_dispatcher().status(ask=ask)
        self._now = database_now(using)
        self._configured = get_targets()
        self._numbered_count, self._unnumbered_count, self._unnumbered_at = (
            get_storage().count_written(using)
        )
        self._reports = self._read_reports()

    def status(self) -> Status:
        targets = self._targets()
        jobs = [self._job(Job.REPUBLISH), self._job(Job.PRUNE)]
        holders = self._holders()
        bus = next((t.answer for t in targets if t.kind == "bus"), None)
        letters = DeadLetter.objects.using(self._using)[: COUNT_LIMIT + 1].count()
        oldest_at = _earliest(
            [self._unnumbered_at, *(t.oldest_at for t in targets if t.is_configured)]
        )
        return Status(
            using=self._using,
            checked_at=self._now,
            level=Level.OK,
            summary="",
            findings=(),
            targets=targets,
            jobs=jobs,
            holders=holders,
            wake_ups=self._wake_ups,
            bus_answer=bus,
            event_count=self._numbered_count + self._unnumbered_count,
            unnumbered_count=self._unnumbered_count,
            unnumbered_seconds=self._age(self._unnumbered_at),
            undelivered_count=self._undelivered_count(targets),
            oldest_at=oldest_at,
            oldest_seconds=self._age(oldest_at),
            dead_letter_count=letters,
            reader_count=sum(holder.stream_count for holder in holders),
            is_read_only=is_read_only(self._using),
        )

    def _read_reports(self) -> list[Holder]:
        """Return who holds streams; nobody, if that is elsewhere and out of reach."""
        # Every process reports in the first database.
        first = conf.get_options().databases[0]
        since = self._now - datetime.timedelta(seconds=PROXY_SECONDS)
        reports = Holder.objects.using(first).filter(seen_at__gte=since)
        try:
            return list(reports.order_by("name"))
        except DatabaseError:
            if first == self._using:
                raise
            return []

    def _age(self, at: datetime.datetime | None) -> float | None:
        return None if at is None else max(0.0, (self._now - at).total_seconds())

    # --- the parts

    def _targets(self) -> list[TargetStatus]:
        head = Partition.objects.filter(number=OuterRef("partition"))
        first = (
            Event.objects.filter(
                partition=OuterRef("partition"), position__gt=OuterRef("watermark")
            )
            .order_by("position")
            .values("created")[:1]
        )
        rows = Cursor.objects.using(self._using).annotate(
            behind=Coalesce(Subquery(head.values("last_position")[:1]), 0)
            - F("watermark"),
            oldest_at=Subquery(first),
        )
        cursors: dict[str, list[Any]] = {name: [] for name in self._configured}
        for row in rows.order_by("target", "partition"):
            cursors.setdefault(row.target, []).append(row)
        pauses = {p.name: p for p in PausedTarget.objects.using(self._using)}
        found = [self._target(n, rows, pauses.get(n)) for n, rows in cursors.items()]
        return sorted(found, key=lambda t: (not t.is_configured, t.kind == "bus"))

    def _target(
        self, name: str, cursors: list[Any], pause: PausedTarget | None
    ) -> TargetStatus:
        target = self._configured.get(name)
        troubled = [c for c in cursors if c.behind > 0 or c.attempts]
        failing = [c for c in cursors if c.attempts]
        # A new target has no cursors yet, and starts at the head: nothing waits for it.
        waiting = sum(max(0, c.behind) for c in cursors)
        oldest_at = _earliest([c.oldest_at for c in cursors if c.behind > 0])
        if target is not None:
            waiting += self._unnumbered_count
            oldest_at = _earliest([oldest_at, self._unnumbered_at])
        longest = min(failing, key=lambda c: c.failing_since or self._now, default=None)
        latencies = [
            c.latency.total_seconds()
            for c in cursors
            if c.latency is not None and (self._age(c.confirmed_at) or 0) < 3600
        ]
        answer = _probe(target) if self._ask and target and not pause else None
        state, level = self._judge_target(target, failing, pause, oldest_at, answer)
        if state == "up" and not cursors:
            state = "idle"
        return TargetStatus(
            name=name,
            kind=target.kind if target else "unknown",
            is_configured=target is not None,
            level=level,
            state=state,
            waiting_count=waiting,
            oldest_at=oldest_at,
            oldest_seconds=self._age(oldest_at),
            paused_since=pause.since if pause else None,
            pause_reason=pause.reason if pause else "",
            failing_since=longest.failing_since if longest else None,
            attempts=max((c.attempts for c in cursors), default=0),
            next_attempt=_earliest([c.next_attempt for c in failing]),
            last_error=answer or (longest.last_error if longest else ""),
            confirmed_at=max(
                (c.confirmed_at for c in cursors if c.confirmed_at), default=None
            ),
            latency_seconds=max(latencies, default=None),
            confirmed_count=sum(c.confirmed_count for c in cursors),
            failure_count=sum(c.failure_count for c in cursors),
            refused_count=sum(c.refused_count for c in cursors),
            reader_count=self._proxy_readers(name),
            answer=answer,
            partitions=[
                PartitionStatus(
                    number=c.partition,
                    waiting_count=max(0, c.behind),
                    oldest_at=c.oldest_at,
                    attempts=c.attempts,
                    next_attempt=c.next_attempt,
                    failing_since=c.failing_since,
                    last_error=c.last_error,
                )
                for c in sorted(troubled, key=lambda c: (-c.attempts, -c.behind))
            ],
        )

    def _judge_target(
        self,
        target: Target | None,
        failing: list[Any],
        pause: PausedTarget | None,
        oldest_at: datetime.datetime | None,
        answer: str | None,
    ) -> tuple[str, Level]:
        if target is None:
            return "removed", Level.OK
        if pause is not None:
            return "paused", Level.WARNING
        if failing or answer:
            return "failing", Level.ERROR
        age = self._age(oldest_at)
        if age is not None and age > LATE_SECONDS:
            return "behind", Level.WARNING if age <= VERY_LATE_SECONDS else Level.ERROR
        return "up", Level.OK

    def _job(self, name: str) -> JobStatus:
        due = {
            Job.REPUBLISH: max(60.0, 6 * self._wake_ups.sweep_seconds),
            Job.PRUNE: max(3600.0, 3 * self._wake_ups.prune_seconds),
        }[name]
        row = Job.objects.using(self._using).filter(name=name).first()
        age = self._age(row.finished_at) if row else None
        is_long = age is None or age > due
        is_new = row is not None and (self._age(row.started_at) or 0) <= due
        if row and row.lease_until and row.lease_until > self._now:
            # Of one that is killed or hangs each time the lease is as a rule still there.
            is_first = age is None or not is_long
            state, level = ("running", Level.OK) if is_first else _UNFINISHED
        elif row and row.has_failed and is_new:
            state, level = "failed", Level.ERROR if is_long else Level.WARNING
        elif is_new and age is not None and is_long:
            state, level = _UNFINISHED
        elif age is None and name == Job.PRUNE and self._is_young(due):
            state, level = "new", Level.OK
        elif age is None:
            state, level = "never", Level.WARNING
        elif age > due:
            state, level = "late", Level.WARNING
        else:
            state, level = "ok", Level.OK
        return JobStatus(
            name=name,
            level=level,
            state=state,
            started_at=row.started_at if row else None,
            finished_at=row.finished_at if row else None,
            age_seconds=age,
            due_seconds=due,
            result=row.result if row else "",
        )

    def _is_young(self, seconds: float) -> bool:
        """Say whether no event has been stored for longer than this."""
        first = Event.objects.using(self._using).order_by("pk")
        created = first.values_list("created", flat=True).first()
        return created is None or (self._now - created).total_seconds() < seconds

    def _holders(self) -> list[HolderStatus]:
        return [
            HolderStatus(
                row.name,
                row.stream_count,
                row.channel_count,
                row.seen_at,
                row.channels or {},
            )
            for row in self._reports
            # Proxies; also one that was taken out of the settings a minute ago.
            if not row.name.startswith("grip:http")
            and (self._age(row.seen_at) or 0) <= HOLDER_SECONDS
        ]

    def _proxy_readers(self, name: str) -> int | None:
        return next((r.stream_count for r in self._reports if r.name == name), None)

    def _undelivered_count(self, targets: Sequence[TargetStatus]) -> int:
        """Return the events that some configured target lacks, each counted once."""
        behind: dict[int, int] = {}
        for target in targets:
            if target.is_configured:
                for row in target.partitions:
                    most = max(behind.get(row.number, 0), row.waiting_count)
                    behind[row.number] = most
        return sum(behind.values()) + self._unnumbered_count


def _probe(target: Target) -> str:
    """Publish what reaches nobody; return the error, or ""."""
    try:
        target.publish(target.probe())
    except PublishError as error:
        return str(error) or type(error).__name__
    return ""


def _earliest(
    instants: Sequence[datetime.datetime | None],
) -> datetime.datetime | None:
    return min((at for at in instants if at is not None), default=None)
