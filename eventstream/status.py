"""The health of the installation, in plain words, with what to do next.

Pure data: the command, the health view, the admin's overview and the metrics all render
what `get_status` returns. It asks the database only, in a dozen queries whose cost does not
grow with the events stored, unless it is told to `ask` the bus, the broker and the proxies.
"""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from django.db.models import DateTimeField, F, OuterRef, Subquery
from django.db.models.functions import Coalesce

from eventstream import conf
from eventstream.dispatch import DispatchStatus, get_dispatcher
from eventstream.exceptions import PublishError
from eventstream.models import (
    Cursor,
    DeadLetter,
    Event,
    Holder,
    Job,
    Partition,
    PausedTarget,
)
from eventstream.storage import database_now, get_storage
from eventstream.targets import get_targets
from eventstream.targets.base import Target

LATE_SECONDS = 30.0
"""An event that is unconfirmed for longer is late: lease, sweep and a retry are over."""
VERY_LATE_SECONDS = 300.0
HOLDER_SECONDS = 60.0
"""A process that holds streams reports every 15 s; one silent for longer is gone."""
PROXY_SECONDS = 150.0
"""A proxy is asked once a minute, by the sweep."""
COUNT_LIMIT = 10_000


class Level(enum.StrEnum):
    """How bad something is; the worst is the level of the whole."""

    OK = "ok"
    WARNING = "warning"  # nothing is late, but somebody should look
    ERROR = "error"  # events do not arrive, or will not

    @property
    def rank(self) -> int:
        return list(Level).index(self)


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something that is not as it should be.

    Attributes:
        level: WARNING or ERROR.
        subject: "database", "sweep", "prune", "broker", "worker", "bus", "readers", or
            a target's name.
        text: What is wrong, and since when.
        hint: What to do: a command to run or a button to press.
    """

    level: Level
    subject: str
    text: str
    hint: str


@dataclasses.dataclass(frozen=True)
class PartitionStatus:
    """How far one target has come in one partition, if it is behind or failing."""

    number: int
    waiting_count: int
    oldest_at: datetime.datetime | None
    attempts: int
    next_attempt: datetime.datetime | None
    failing_since: datetime.datetime | None
    last_error: str


@dataclasses.dataclass(frozen=True)
class TargetStatus:
    """One target of the settings, or one that has left them and still has cursors.

    Attributes:
        name: "grip:http://…" or "bus".
        kind: "GRIP proxy", "bus", or "unknown" if it is not in the settings.
        is_configured: It is in the settings.
        level: How it is.
        state: "up", "failing", "paused", "behind", "idle" (nothing was ever sent) or
            "removed".
        waiting_count: Events that it has not accepted yet.
        oldest_at, oldest_seconds: When the first of them was written; its age.
        paused_since, pause_reason: Set while it is paused.
        failing_since, attempts, next_attempt, last_error: Of the partition that has
            failed the longest; attempts is the most of any.
        confirmed_at: When it last accepted something.
        latency_seconds: From writing to confirming, lately: the worst partition's.
        confirmed_count, failure_count, refused_count: Since the beginning.
        reader_count: Clients that it holds; None if that is not known.
        answer: If it was asked: "" when it took a probe, else its error; None if not.
        partitions: Those that are behind or failing, the worst first.
    """

    name: str
    kind: str
    is_configured: bool
    level: Level
    state: str
    waiting_count: int
    oldest_at: datetime.datetime | None
    oldest_seconds: float | None
    paused_since: datetime.datetime | None
    pause_reason: str
    failing_since: datetime.datetime | None
    attempts: int
    next_attempt: datetime.datetime | None
    last_error: str
    confirmed_at: datetime.datetime | None
    latency_seconds: float | None
    confirmed_count: int
    failure_count: int
    refused_count: int
    reader_count: int | None
    answer: str | None
    partitions: Sequence[PartitionStatus]


@dataclasses.dataclass(frozen=True)
class JobStatus:
    """A periodic job: the sweep ("republish") or "prune".

    Attributes:
        state: "ok", "running", "late", "never", or "new" if its first run is not due.
        age_seconds: Since it last finished; None if it never did.
        due_seconds: After how long it counts as late.
    """

    name: str
    level: Level
    state: str
    started_at: datetime.datetime | None
    finished_at: datetime.datetime | None
    age_seconds: float | None
    due_seconds: float
    result: str


@dataclasses.dataclass(frozen=True)
class HolderStatus:
    """A web process that holds streams itself, as it last reported.

    `channels` are the readers by channel, of those that have the most.
    """

    name: str
    stream_count: int
    channel_count: int
    seen_at: datetime.datetime
    channels: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class Status:
    """One outbox, as of `checked_at` (the database's clock).

    Attributes:
        using: Its database alias.
        level: The worst of the findings.
        summary: One sentence for a headline.
        findings: What is wrong, the worst first; empty if all is well.
        targets, jobs, holders: The parts. Configured targets first.
        wake_ups: The dispatcher, and what it knows of broker and workers.
        bus_answer: If asked: "" when the bus answered, else the error; None if not
            asked, or if there is no bus.
        event_count: Events written so far, kicks included.
        unnumbered_count: Of these, committed without an id yet.
        undelivered_count: Unnumbered, or not accepted by some configured target.
        oldest_at, oldest_seconds: When the first undelivered one was written; its age.
        dead_letter_count: At most COUNT_LIMIT + 1, which means "more".
        reader_count: Streams that web processes hold; proxies' readers come on top
            where they are known (see `targets`).
    """

    using: str
    checked_at: datetime.datetime
    level: Level
    summary: str
    findings: Sequence[Finding]
    targets: Sequence[TargetStatus]
    jobs: Sequence[JobStatus]
    holders: Sequence[HolderStatus]
    wake_ups: DispatchStatus
    bus_answer: str | None
    event_count: int
    unnumbered_count: int
    undelivered_count: int
    oldest_at: datetime.datetime | None
    oldest_seconds: float | None
    dead_letter_count: int
    reader_count: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it; instants in ISO 8601."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


def get_status(using: str | None = None, *, ask: bool = False) -> Status:
    """Return the health of one outbox.

    Args:
        using: Database alias; by default the first of EVENTSTREAM_DATABASES.
        ask: Ask bus, broker and proxies too, each bounded by its time limits: a few
            milliseconds if all is well, a few seconds for each that hangs.

    Raises:
        DatabaseError: The database does not answer, or is not migrated.
    """
    return _Survey(using or conf.get_options().databases[0], ask=ask).status()


def get_all(*, ask: bool = False) -> list[Status]:
    """Return the health of every outbox. Raises what get_status raises."""
    return [get_status(using, ask=ask) for using in conf.get_options().databases]


class _Survey:
    """One look at one outbox."""

    def __init__(self, using: str, *, ask: bool) -> None:
        self._using = using
        self._ask = ask
        self._now = database_now(using)
        self._configured = get_targets()
        storage = get_storage()
        self._heads = storage.heads(using)
        self._unnumbered = storage.count_unnumbered(using)
        self._unnumbered_at = min(
            (oldest for _, oldest in self._unnumbered.values()), default=None
        )
        self._unnumbered_count = sum(count for count, _ in self._unnumbered.values())
        self._wake_ups = get_dispatcher().status(ask=ask)
        # Every process reports in the first database.
        since = self._now - datetime.timedelta(seconds=PROXY_SECONDS)
        reports = Holder.objects.using(conf.get_options().databases[0])
        self._reports = list(reports.filter(seen_at__gte=since).order_by("name"))

    def status(self) -> Status:
        targets = self._targets()
        jobs = [self._job(Job.REPUBLISH), self._job(Job.PRUNE)]
        holders = self._holders()
        bus = next((t.answer for t in targets if t.kind == "bus"), None)
        letters = DeadLetter.objects.using(self._using)[: COUNT_LIMIT + 1].count()
        findings = sorted(
            [
                *self._judge_jobs(jobs),
                *self._judge_wake_ups(),
                *self._judge_targets(targets),
                *self._judge_events(letters),
            ],
            key=lambda finding: -finding.level.rank,
        )
        oldest_at = _earliest(
            [self._unnumbered_at, *(t.oldest_at for t in targets if t.is_configured)]
        )
        level = max((f.level for f in findings), key=lambda x: x.rank, default=Level.OK)
        return Status(
            using=self._using,
            checked_at=self._now,
            level=level,
            summary=_summary(findings),
            findings=findings,
            targets=targets,
            jobs=jobs,
            holders=holders,
            wake_ups=self._wake_ups,
            bus_answer=bus,
            event_count=sum(self._heads.values()) + self._unnumbered_count,
            unnumbered_count=self._unnumbered_count,
            undelivered_count=self._undelivered_count(targets),
            oldest_at=oldest_at,
            oldest_seconds=self._age(oldest_at),
            dead_letter_count=letters,
            reader_count=sum(holder.stream_count for holder in holders),
        )

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
            oldest_at=Subquery(first, output_field=DateTimeField()),
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
        if row and row.lease_until and row.lease_until > self._now:
            state, level = "running", Level.OK
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
            if row.name not in self._configured
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

    # --- what is wrong, and what to do

    def _judge_jobs(self, jobs: Sequence[JobStatus]) -> Iterator[Finding]:
        sweep, prune = jobs
        wake_ups = self._wake_ups
        is_swept = sweep.state not in ("late", "never")
        if not is_swept and (self._configured or wake_ups.start_beat):
            if sweep.age_seconds is None:
                text = "No sweep has ever run"
            else:
                text = f"No sweep has run for {describe_seconds(sweep.age_seconds)}"
            if wake_ups.waiting_count:
                tasks = describe_count(wake_ups.waiting_count, "task")
                text += f", and {tasks} in the queue {wake_ups.queue!r}: no worker takes them."
                hint = f"Start a worker: `{wake_ups.start_worker}`."
            elif wake_ups.start_beat:
                text += ": no beat, or no worker, is at work."
                hint = (
                    f"Start `{wake_ups.start_beat}` and `{wake_ups.start_worker}`. "
                    "Until then: `python manage.py eventstream relay`."
                )
            else:
                text += ": what failed once is not tried again."
                hint = "Run `python manage.py eventstream relay` all the time."
            is_late = self._is_very_late()
            yield Finding(
                Level.ERROR if is_late else Level.WARNING, "sweep", text, hint
            )
        if prune.state in ("late", "never") and (is_swept or not wake_ups.start_beat):
            if prune.age_seconds is None:
                text = "No pruning has ever run"
            else:
                text = f"No pruning has run for {describe_seconds(prune.age_seconds)}"
            hint = "Run `python manage.py eventstream prune`"
            if wake_ups.start_beat:
                hint += ", and see that beat has the task `eventstream.prune`"
            yield Finding(
                Level.WARNING, "prune", f"{text}: the outbox grows.", f"{hint}."
            )

    def _is_very_late(self) -> bool:
        age = self._age(self._unnumbered_at)
        return age is not None and age > LATE_SECONDS

    def _judge_wake_ups(self) -> Iterator[Finding]:
        wake_ups = self._wake_ups
        if wake_ups.error:
            yield Finding(
                Level.ERROR,
                "broker",
                f"The broker {wake_ups.broker} does not answer: {wake_ups.error}",
                "Start it, or mend CELERY_BROKER_URL. Until then: `python manage.py "
                "eventstream relay`.",
            )
        elif wake_ups.worker_count == 0:
            yield Finding(
                Level.ERROR,
                "worker",
                f"No worker takes tasks from the queue {wake_ups.queue!r}.",
                f"Start one: `{wake_ups.start_worker}`.",
            )

    def _judge_targets(self, targets: Sequence[TargetStatus]) -> Iterator[Finding]:
        for target in targets:
            verb = "waits" if target.waiting_count == 1 else "wait"
            waits = f"{describe_count(target.waiting_count, 'event')} {verb} for it"
            if target.oldest_seconds is not None:
                waits += f", the oldest for {describe_seconds(target.oldest_seconds)}"
            if target.state == "paused":
                why = f" ({target.pause_reason})" if target.pause_reason else ""
                since = describe_seconds(self._age(target.paused_since) or 0)
                yield Finding(
                    Level.WARNING,
                    target.name,
                    f"Paused for {since}{why}; {waits}.",
                    f"`python manage.py eventstream resume {target.name}`.",
                )
            elif target.state == "failing":
                since = ""
                if target.failing_since is not None:
                    seconds = self._age(target.failing_since) or 0
                    since = f" for {describe_seconds(seconds)}"
                yield Finding(
                    Level.ERROR,
                    target.name,
                    f"Failing{since}; {waits}. Its answer: {target.last_error[:300]}",
                    f"See that it runs and is reached from here; it is tried again by "
                    "itself, or at once by `python manage.py eventstream republish "
                    f"--target {target.name}`.",
                )
            elif target.state == "behind":
                yield Finding(
                    target.level,
                    target.name,
                    f"Behind: {waits}.",
                    "No relay is at work on it: see that a worker runs, or run `python "
                    f"manage.py eventstream republish --target {target.name}`.",
                )

    def _judge_events(self, letter_count: int) -> Iterator[Finding]:
        age = self._age(self._unnumbered_at)
        if not self._configured and age is not None and age > LATE_SECONDS:
            yield Finding(
                Level.ERROR,
                "events",
                f"{self._unnumbered_count:,} events have no id yet, the oldest for "
                f"{describe_seconds(age)}: nobody reads, and no sweep runs.",
                "`python manage.py eventstream republish`.",
            )
        if letter_count:
            count = (
                f"{letter_count:,}" if letter_count <= COUNT_LIMIT else "Over 10,000"
            )
            yield Finding(
                Level.WARNING,
                "dead letters",
                f"{count} events were refused for good by a target; readers get them "
                "from the log.",
                "See why in the admin's dead letters, or `python manage.py eventstream "
                "undelivered --dead`.",
            )


def _probe(target: Target) -> str:
    """Publish what reaches nobody; return the error, or ""."""
    try:
        target.publish(target.probe())
    except PublishError as error:
        return str(error) or type(error).__name__
    return ""


def _summary(findings: Sequence[Finding]) -> str:
    if not findings:
        return "Every event has reached every target."
    first = findings[0]
    rest = len(findings) - 1
    text = f"{first.subject}: {first.text}"
    return f"{text} (and {rest} more)" if rest else text


def _earliest(
    instants: Sequence[datetime.datetime | None],
) -> datetime.datetime | None:
    return min((at for at in instants if at is not None), default=None)


def describe_count(count: int, noun: str) -> str:
    """Return a count with its noun: "1 event", "2,000 events"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def describe_seconds(seconds: float) -> str:
    """Return a duration in words: "40 s", "4 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, datetime.datetime):
        return value.isoformat()
    if isinstance(value, Level):
        return value.value
    return value
