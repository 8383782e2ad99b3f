"""The last hours, minute by minute: what the overview draws.

The sweep, of which one runs at a time, writes one row a minute; all figures in it come from
the database, so they are those of every worker and web process together. What only grows
(events written, confirmed, failed) is stored as it stands, and read as differences: a minute
in which no sweep ran is missing and loses nothing.
"""

from __future__ import annotations

import datetime
import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from django.db import DatabaseError

from eventstream.holders import report_proxies
from eventstream.log import database_now
from eventstream.models import Holder, Sample
from eventstream.status import Status, get_status

logger = logging.getLogger(__name__)

KEEP_HOURS = 25
"""A day's picture, and its first difference: 1,500 rows."""


@dataclass(frozen=True)
class TargetPoint:
    """One target in one minute.

    Attributes:
        state: As TargetStatus has it.
        confirmed_count, failure_count: Events accepted, attempts failed since the point
            before.
        waiting_count: Events not accepted yet at its end.
        oldest_seconds: Age of the first of them.
        latency_seconds: From writing to confirming.
    """

    state: str
    confirmed_count: int
    failure_count: int
    waiting_count: int
    oldest_seconds: float | None
    latency_seconds: float | None


@dataclass(frozen=True)
class Point:
    """What happened up to `at` since the point before.

    Attributes:
        at: The minute; its figures were taken at some second of it.
        seconds: Since the point before, 60 but for gaps: counts divided by it are rates.
        event_count: Events written.
        oldest_seconds: Age of the oldest unconfirmed event at its end, None without one.
        reader_count: Streams held at its end; None if nobody knows.
        targets: By name; those that were in the settings then.
    """

    at: datetime.datetime
    seconds: float
    event_count: int
    oldest_seconds: float | None
    reader_count: int | None
    targets: Mapping[str, TargetPoint]


def read_series(using: str, *, hours: float = 1) -> list[Point]:
    """Return the points of the last hours, up to 24, the oldest first. One query."""
    now = database_now(using)
    # One more than is asked for: the first is there to subtract from.
    since = now - datetime.timedelta(hours=hours, minutes=1)
    rows = Sample.objects.using(using).filter(minute__gte=since).order_by("minute")
    samples = list(rows)
    return [_point(before, after) for before, after in itertools.pairwise(samples)]


def _point(before: Sample, sample: Sample) -> Point:
    targets = {}
    for name, figures in sample.targets.items():
        earlier = before.targets.get(name, figures)
        targets[name] = TargetPoint(
            state=figures["state"],
            # A removed target's cursors may have been deleted in between.
            confirmed_count=max(0, figures["confirmed"] - earlier["confirmed"]),
            failure_count=max(0, figures["failed"] - earlier["failed"]),
            waiting_count=figures["waiting"],
            oldest_seconds=figures["oldest"],
            latency_seconds=figures["latency"],
        )
    return Point(
        at=sample.minute,
        seconds=(sample.minute - before.minute).total_seconds(),
        event_count=max(0, sample.event_count - before.event_count),
        oldest_seconds=sample.oldest_seconds,
        reader_count=sample.reader_count,
        targets=targets,
    )


def record_sample(using: str) -> Status | None:
    """Write this minute's row if there is none; return what was found if it was written.

    Never an error to the sweep: a picture is not worth an event.
    """
    try:
        minute = database_now(using).replace(second=0, microsecond=0)
        rows = Sample.objects.using(using)
        if rows.filter(minute=minute).exists():
            return None
        report_proxies()
        status = get_status(using)
        rows.bulk_create([_sample(minute, status)], ignore_conflicts=True)
    except DatabaseError:
        logger.warning("No sample of %s was written", using, exc_info=True)
        return None
    return status


def _sample(minute: datetime.datetime, status: Status) -> Sample:
    readers = [t.reader_count for t in status.targets if t.reader_count is not None]
    is_known = bool(status.holders or readers)
    return Sample(
        minute=minute,
        event_count=status.event_count,
        oldest_seconds=status.oldest_seconds,
        reader_count=status.reader_count + sum(readers) if is_known else None,
        targets={
            target.name: {
                "state": target.state,
                "confirmed": target.confirmed_count,
                "failed": target.failure_count,
                "waiting": target.waiting_count,
                "oldest": target.oldest_seconds,
                "latency": target.latency_seconds,
            }
            for target in status.targets
            if target.is_configured
        },
    )


def prune_samples(using: str) -> None:
    """Delete what is older than a day, and holders that have not reported for an hour."""
    now = database_now(using)
    old = now - datetime.timedelta(hours=KEEP_HOURS)
    Sample.objects.using(using).filter(minute__lt=old).delete()
    gone = now - datetime.timedelta(hours=1)
    Holder.objects.using(using).filter(seen_at__lt=gone).delete()
