"""The periodic jobs: sweep and prune. Whoever calls them, one of each runs at a time."""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable

from django.db.models import Q
from django.db.models.functions import Now

from eventstream import conf
from eventstream.cursors import undo_impossible_waits
from eventstream.exceptions import PublishRejectedError, PublishUnavailableError
from eventstream.models import Job, PausedTarget
from eventstream.relay import Outcome, relay_all
from eventstream.series import prune_samples, record_sample
from eventstream.stalls import report_stalls
from eventstream.storage import get_storage
from eventstream.targets import get_targets
from eventstream.words import describe_cause, describe_count

logger = logging.getLogger(__name__)

SWEEP_LEASE = 8.0
"""Seconds for which a sweep keeps others away. Less than the ten between two sweeps: one
that died, or is busy with one partition's backlog, must not hold up the next one, which
passes over the partitions that are leased."""


def republish(
    using: str,
    *,
    ends: tuple[type[Exception], ...] = (),
    hand_on: Callable[[set[int]], object] = lambda partitions: None,
) -> str | None:
    """Publish whatever is unnumbered or unconfirmed, due and unleased.

    Purpose: part of the promise, not a convenience. A wake-up may be lost with the
    broker, or a worker die between taking it and publishing.

    Args:
        using: Database alias.
        ends: As `relay_all` has it.
        hand_on: Called with the partitions that have more, for others to go on with.

    Returns:
        What was done, in words; None if another process is at it.
    """

    def work() -> tuple[str, int]:
        undo_impossible_waits(using)
        reports = relay_all(using, ends=ends)
        if more := {p for (p, _), r in reports.items() if r.outcome is Outcome.MORE}:
            hand_on(more)
        failed = sum(r.outcome is Outcome.FAILED for r in reports.values())
        events = sum(r.event_count for r in reports.values())
        behind = describe_count(len(reports), "partition")
        text = f"{describe_count(events, 'event')}, {behind} behind, {failed} failed"
        return text, len(reports)

    result = _run(using, Job.REPUBLISH, work, lease_seconds=SWEEP_LEASE)
    status = None if result is None else record_sample(using)
    if status is not None:  # once a minute
        report_stalls(status)
        _remind_targets(using)
    return result


def _remind_targets(using: str) -> None:
    paused = set(PausedTarget.objects.using(using).values_list("name", flat=True))
    for name, target in get_targets().items():
        if name in paused:
            continue
        try:
            target.remind()
        except (PublishUnavailableError, PublishRejectedError) as error:
            # If that matters there are events that it does not take either.
            logger.info("%s was not reminded of its streams: %s", name, error)


def prune(
    using: str,
    *,
    lease_seconds: float = 600,
    on_batch: Callable[[int], object] = lambda count: None,
) -> str | None:
    """Delete the confirmed prefix of each partition that is past the retention.

    Args:
        using: Database alias.
        lease_seconds: How long it may take before another process may do the same.
        on_batch: Called with the number of rows deleted, time and again.

    Returns:
        What was done, in words; None if another process is at it.
    """

    def work() -> tuple[str, int]:
        storage = get_storage()
        retention = conf.get_options().retention
        targets = list(get_targets())
        count = sum(
            storage.prune(
                using,
                partition,
                retention=retention,
                targets=targets,
                on_batch=on_batch,
            )
            for partition in storage.partitions(using)
        )
        prune_samples(using)
        return f"{describe_count(count, 'event')} deleted", count

    return _run(using, Job.PRUNE, work, lease_seconds=lease_seconds)


def count_prunable(using: str) -> int:
    """Return how many events `prune` would delete now."""
    storage = get_storage()
    retention = conf.get_options().retention
    targets = list(get_targets())
    return sum(
        storage.count_prunable(using, partition, retention=retention, targets=targets)
        for partition in storage.partitions(using)
    )


def _run(
    using: str, name: str, work: Callable[[], tuple[str, int]], *, lease_seconds: float
) -> str | None:
    """Run a job under its lease, and record when it last succeeded: a missing beat is visible,
    and so is one whose job always fails.
    """
    Job.objects.using(using).get_or_create(name=name)
    rows = Job.objects.using(using).filter(name=name)
    free = rows.filter(Q(lease_until__isnull=True) | Q(lease_until__lt=Now()))
    until = Now() + datetime.timedelta(seconds=lease_seconds)
    if not free.update(lease_until=until, started_at=Now()):
        return None
    try:
        result, count = work()
    except BaseException as error:
        rows.update(
            lease_until=None, result=f"{Job.FAILED}: {describe_cause(error)}"[:500]
        )
        raise
    rows.update(lease_until=None, finished_at=Now(), result=result)
    level = logging.INFO if count else logging.DEBUG
    logger.log(
        level, "%s of %s: %s", name, using, result,
        extra={"task": name, "database": using, "result": result},
    )  # fmt: skip
    return result
