"""What is known of an installation: pure data, which JSON takes."""

from __future__ import annotations

import dataclasses
import datetime
import enum
from collections.abc import Mapping, Sequence
from typing import Any

from eventstream.dispatch import DispatchStatus

LATE_SECONDS = 30.0
"""An event that is unconfirmed for longer is late: lease, sweep and a retry are over."""
VERY_LATE_SECONDS = 300.0
HOLDER_SECONDS = 60.0
"""A process that holds streams reports every 15 s; one silent for longer is gone."""
PROXY_SECONDS = 150.0
"""A proxy is asked once a minute, by the sweep."""
COUNT_LIMIT = 10_000
"""Dead letters are counted no further."""


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
        state: "ok", "running", "failed", "unfinished" if it began and none has succeeded for
            long, "late", "never", or "new" if its first run is not due.
        age_seconds: Since it last succeeded; None if it never did.
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
        unnumbered_seconds: Age of the first of those.
        undelivered_count: Unnumbered, or not accepted by some configured target.
        oldest_at, oldest_seconds: When the first undelivered one was written; its age.
        dead_letter_count: At most COUNT_LIMIT + 1, which means "more".
        reader_count: Streams that web processes hold; proxies' readers come on top
            where they are known (see `targets`).
        is_read_only: The database takes no writes: nobody can send, no relay can work.
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
    unnumbered_seconds: float | None
    undelivered_count: int
    oldest_at: datetime.datetime | None
    oldest_seconds: float | None
    dead_letter_count: int
    reader_count: int
    is_read_only: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON takes it; instants in ISO 8601."""
        plain: dict[str, Any] = _plain(dataclasses.asdict(self))
        return plain


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
