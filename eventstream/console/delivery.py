"""republish, relay, prune, pause, resume, reset-readers: what changes something."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from django.db import Error, connections

from eventstream import conf, jobs, pausing
from eventstream.console.outboxes import has_several_outboxes, tell_away, try_each
from eventstream.console.screen import Screen
from eventstream.models import PausedTarget
from eventstream.relay import NO_TARGET, Outcome, Report, pending, relay_partition
from eventstream.status import Level
from eventstream.storage import get_storage
from eventstream.targets import get_targets
from eventstream.undelivered import WAITING, Search, find_undelivered
from eventstream.words import describe_count

logger = logging.getLogger(__name__)

PRUNE_SECONDS = 600.0
FAILING_SECONDS = 10.0
"""A target that has failed for so long is tried in no further partition: one that hangs costs
its time limit in each, and the others wait for it."""


def republish(
    screen: Screen, *, databases: Sequence[str], targets: Sequence[str]
) -> int:
    """Publish whatever waits, due or not; say what became of each target."""
    reports: dict[tuple[str, str], list[Report]] = {}
    failing_seconds: dict[str, float] = {}

    def relay(using: str, partition: int, name: str) -> Report:
        if failing_seconds.get(name, 0) > FAILING_SECONDS:
            text = "the last were not tried, as it took too long"
            return Report(Outcome.FAILED, error=text)
        started = time.monotonic()
        report = relay_partition(using, partition, name, force=True)
        if report.outcome is Outcome.FAILED:
            passed = time.monotonic() - started
            failing_seconds[name] = failing_seconds.get(name, 0) + passed
        return report

    def publish(using: str) -> None:
        work = [each for each in pending(using) if not targets or each[1] in targets]
        with screen.progress("Partitions", len(work)) as advance:
            for partition, name in work:
                report = relay(using, partition, name)
                reports.setdefault((using, name), []).append(report)
                advance(1)

    away = try_each(databases, publish)
    levels = _show_reports(screen, reports) if reports else []
    for using in databases:
        if using not in away:
            levels += _show_paused(screen, using, targets)
    if not levels and not away:
        screen.line("Nothing was waiting.")
    tell_away(away)
    return 2 if Level.ERROR in levels else 0


def _show_reports(
    screen: Screen, reports: dict[tuple[str, str], list[Report]]
) -> list[Level]:
    columns = ["target", "confirmed", "partitions failed", "busy", "error"]
    rows: list[list[object]] = []
    levels = []
    for (using, name), found in reports.items():
        errors = list(dict.fromkeys(r.error for r in found if r.error))
        is_failed = any(r.outcome in (Outcome.FAILED, Outcome.PAUSED) for r in found)
        rows.append(
            [
                "(numbered only)" if name == NO_TARGET else name,
                sum(r.event_count for r in found),
                sum(r.outcome is Outcome.FAILED for r in found),
                sum(r.outcome is Outcome.BUSY for r in found),
                "; ".join(errors[:3]) or None,
            ]
        )
        if has_several_outboxes():
            rows[-1].insert(0, using)
        levels.append(Level.ERROR if is_failed else Level.OK)
    if has_several_outboxes():
        columns.insert(0, "database")
    screen.table(columns, rows, levels=levels)
    return levels


def _show_paused(screen: Screen, using: str, targets: Sequence[str]) -> list[Level]:
    """Say which targets got nothing because they are paused."""
    where = f" in {using!r}" if has_several_outboxes() else ""
    levels = []
    for pause in PausedTarget.objects.using(using).order_by("name"):
        if pause.name not in (targets or get_targets()):
            continue
        search = Search(target=pause.name, state=WAITING)
        is_behind = bool(find_undelivered(using, search, limit=1).events)
        if not is_behind and pause.name not in targets:
            continue
        level = Level.ERROR if is_behind else Level.WARNING
        why = f" ({pause.reason})" if pause.reason else ""
        waits = "events wait" if is_behind else "nothing waits"
        screen.finding(
            level,
            pause.name,
            f"paused{why}, so nothing was published; {waits} for it{where}.",
            f"`python manage.py eventstream resume {pause.name}`.",
        )
        levels.append(level)
    return levels


def run_relay(screen: Screen, *, interval: float, once: bool) -> int:
    """Sweep and prune in this process, without Celery, until it is told to end."""
    if once:
        done = [_tend(screen, u, is_told=True) for u in conf.get_options().databases]
        return 0 if all(done) else 2
    stopped = threading.Event()
    pruned_at = -PRUNE_SECONDS
    screen.line(
        f"Publishing what waits every {interval:g} s, pruning every "
        f"{PRUNE_SECONDS:g} s. Ctrl-C ends it."
    )
    with _set_when_told_to_end(stopped):
        while True:
            began = time.monotonic()
            is_due = began - pruned_at >= PRUNE_SECONDS
            for using in conf.get_options().databases:
                _tend(screen, using, prunes=is_due)
            if is_due:
                pruned_at = time.monotonic()
            if stopped.wait(max(0.0, began + interval - time.monotonic())):
                return 0


def _tend(
    screen: Screen, using: str, *, prunes: bool = False, is_told: bool = False
) -> bool:
    """Sweep one outbox, and prune it; what fails keeps no other waiting.

    Args:
        screen: Where to say what came of it.
        using: Database alias.
        prunes: Prune as well.
        is_told: Say so also if nothing was waiting.

    Returns:
        Whether it could be done.
    """
    try:
        result = jobs.republish(using) or "another process is sweeping"
        if is_told or not result.startswith("0 events, 0 partitions"):
            screen.line(f"{using}: {result}")
        if prunes:
            jobs.prune(using)
    except Error as error:
        logger.warning("The outbox %s cannot be swept: %s", using, error)
    except Exception:
        logger.exception("The outbox %s cannot be swept", using)
    else:
        return True
    connections[using].close()
    return False


@contextmanager
def _set_when_told_to_end(stopped: threading.Event) -> Iterator[None]:
    """Have SIGTERM and Ctrl-C set an event, and then what they did before again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: stopped.set()) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def prune(screen: Screen, *, dry_run: bool) -> int:
    """Delete what is past the retention, or say how much that is."""

    def delete(using: str) -> None:
        total = jobs.count_prunable(using)
        if dry_run:
            screen.line(f"{using}: {describe_count(total, 'event')} would be deleted.")
            return
        with screen.progress(f"Deleting from {using}", total) as advance:
            result = jobs.prune(using, on_batch=advance)
        screen.line(f"{using}: {result or 'another process is pruning'}.")

    tell_away(try_each(conf.get_options().databases, delete))
    return 0


def pause(screen: Screen, *, target: str, reason: str) -> int:
    """Pause a target."""
    is_new = pausing.pause(target, reason=reason)
    screen.line(
        f"{target} is paused: nothing is published there."
        if is_new
        else f"{target} was paused already."
    )
    screen.line(f"To go on: `python manage.py eventstream resume {target}`.")
    return 0


def resume(screen: Screen, *, target: str) -> int:
    """Resume a target."""
    if pausing.resume(target):
        screen.line(f"{target} is resumed: a worker publishes what waits for it.")
    else:
        screen.line(f"{target} was not paused.")
    return 0


def reset_readers(screen: Screen) -> int:
    """Have every client that holds a position load anew."""
    for using in conf.get_options().databases:
        count = get_storage().reset_readers(using)
        screen.line(
            f"{using}: {describe_count(count, 'channel')}; every old position is now a reset."
        )
    screen.line(
        "Restart the web processes and the GRIP proxies, so that all clients come back."
    )
    return 0
