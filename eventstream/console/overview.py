"""status: the table of the overview."""

from __future__ import annotations

import datetime
import json
import time
from typing import Any

from django.db import DatabaseError
from django.utils import timezone

from eventstream import conf
from eventstream.console.outboxes import (
    describe_away,
    has_several_outboxes,
    tell_away,
    try_each,
)
from eventstream.console.screen import LEVEL_WORDS, Screen
from eventstream.status import Level, Status, TargetStatus, get_status
from eventstream.words import describe_count, describe_seconds

EXIT_CODES = {Level.OK: 0, Level.WARNING: 1, Level.ERROR: 2}
"""As monitoring plugins have it; 3, unknown, is a database that does not answer, or a setting
that cannot be."""


def show_status(
    screen: Screen, *, as_json: bool, ask: bool, watch: float | None
) -> int:
    """Write the state of every outbox; return the exit code."""
    while True:
        states, away = _look(ask=ask)
        if as_json and states:
            content: Any = [state.as_dict() for state in states]
            screen.line(json.dumps(content if has_several_outboxes() else content[0]))
        elif not as_json:
            for state in states:
                write_status(screen, state)
        if watch is None or as_json:
            tell_away(away)
        if watch is None:
            return max(EXIT_CODES[state.level] for state in states)
        for using, error in away.items():
            screen.finding(Level.ERROR, "database", describe_away(error, using), "")
        screen.flush()
        time.sleep(watch)


def _look(*, ask: bool) -> tuple[list[Status], dict[str, DatabaseError]]:
    states: list[Status] = []

    def look(using: str) -> None:
        states.append(get_status(using, ask=ask))

    return states, try_each(conf.get_options().databases, look)


def write_status(screen: Screen, status: Status) -> None:
    """Write one outbox's state: what is wrong first, then the parts."""
    name = f" of {status.using!r}" if has_several_outboxes() else ""
    at = timezone.localtime(status.checked_at).strftime("%Y-%m-%d %H:%M:%S %z")
    screen.line(f"eventstream{name} at {at}: {LEVEL_WORDS[status.level]}", status.level)
    if not status.findings:
        screen.line(status.summary)
    for finding in status.findings:
        screen.finding(finding.level, finding.subject, finding.text, finding.hint)
    screen.line()
    screen.table(
        ["target", "state", "waiting", "oldest", "last success", "latency", "error"],
        [_target_row(target, status) for target in status.targets],
        levels=[target.level for target in status.targets],
    )
    screen.line()
    screen.table(
        ["job", "state", "last run", "result"],
        [
            [job.name, job.state, _ago(job.age_seconds), job.result or None]
            for job in status.jobs
        ],
        levels=[job.level for job in status.jobs],
    )
    screen.line()
    screen.table(["what", "value"], _facts(status))


def _target_row(target: TargetStatus, status: Status) -> list[object]:
    confirmed = target.confirmed_at
    age = None
    if confirmed:  # since it was checked, it may be
        age = max(0.0, (status.checked_at - confirmed).total_seconds())
    error = " ".join(target.last_error.split())
    return [
        target.name,
        target.state,
        target.waiting_count,
        _seconds(target.oldest_seconds),
        _ago(age),
        _seconds(target.latency_seconds),
        f"{error[:119]}…" if len(error) > 120 else error or None,
    ]


def _facts(status: Status) -> list[list[str]]:
    wake_ups = status.wake_ups
    facts = [
        ["events written so far", f"{status.event_count:,}"],
        ["undelivered", f"{status.undelivered_count:,}"],
        ["of these without an id", f"{status.unnumbered_count:,}"],
        ["oldest undelivered", _seconds(status.oldest_seconds) or "none"],
        ["dead letters", f"{status.dead_letter_count:,}"],
        ["readers", _readers(status)],
        ["wake-ups", wake_ups.name],
    ]
    if wake_ups.broker:
        known = []
        if wake_ups.worker_count is not None:
            known.append(describe_count(wake_ups.worker_count, "worker"))
        if wake_ups.waiting_count is not None:
            known.append(f"{describe_count(wake_ups.waiting_count, 'task')} waiting")
        state = wake_ups.error or "not asked"
        if known:
            state = f"answers; {', '.join(known)}"
        facts.append(["broker", f"{wake_ups.broker}: {state}"])
    return facts


def _readers(status: Status) -> str:
    parts = []
    if status.holders:
        where = describe_count(len(status.holders), "web process", "web processes")
        parts.append(f"{status.reader_count:,} in {where}")
    for target in status.targets:
        if target.kind == "GRIP proxy":
            count_text = (
                "not known"
                if target.reader_count is None
                else f"{target.reader_count:,}"
            )
            parts.append(f"{count_text} at {target.name}")
    return "; ".join(parts) or "none"


def _seconds(seconds: float | None) -> str | None:
    return None if seconds is None else describe_seconds(seconds)


def _ago(seconds: float | None) -> str:
    return "never" if seconds is None else f"{describe_seconds(seconds)} ago"


def format_instant(at: datetime.datetime) -> str:
    """Return an instant as a table has it: in the project's time, as in admin and logs."""
    return timezone.localtime(at).strftime("%Y-%m-%d %H:%M:%S")
