"""What is wrong with an installation, since when, and what to do about it."""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Sequence

from eventstream.status.facts import (
    COUNT_LIMIT,
    LATE_SECONDS,
    Finding,
    Level,
    Status,
    TargetStatus,
)
from eventstream.words import describe_count, describe_seconds

_RELAY = "`python manage.py eventstream relay`"


def judge(status: Status) -> Status:
    """Return the same facts with what is wrong about them, the worst first."""
    found = [  # causes before what follows from them
        *_judge_database(status),
        *_judge_wake_ups(status),
        *_judge_failures(status),
        *_judge_sweep(status),
        *_judge_prune(status),
        *_judge_targets(status),
        *_judge_events(status),
    ]
    found.sort(key=lambda finding: -finding.level.rank)
    level = max((f.level for f in found), key=lambda x: x.rank, default=Level.OK)
    return dataclasses.replace(
        status, findings=found, level=level, summary=_summary(found)
    )


def _summary(findings: Sequence[Finding]) -> str:
    if not findings:
        return "Every event has reached every target."
    first = findings[0]
    rest = len(findings) - 1
    text = f"{first.subject}: {first.text}"
    return f"{text} (and {rest} more)" if rest else text


def _judge_database(status: Status) -> Iterator[Finding]:
    if status.is_read_only:
        yield Finding(
            Level.ERROR,
            "database",
            f"{status.using!r} is read-only: no event can be sent, and no relay can work.",
            f"Have DATABASES[{status.using!r}] name the primary, no replica; if it does, "
            "see who has set default_transaction_read_only.",
        )


def _is_swept(status: Status) -> bool:
    return status.jobs[0].state not in ("late", "never")


def _unswept(status: Status, who: str = "sweep") -> str:
    seconds = status.jobs[0].age_seconds
    if seconds is None:
        return f"no {who} has ever run"
    return f"no {who} has run for {describe_seconds(seconds)}"


def _judge_failures(status: Status) -> Iterator[Finding]:
    """Tell of jobs that run and come to nothing."""
    for job, subject in zip(status.jobs, ("sweep", "prune"), strict=True):
        if job.state == "failed":
            since = "has never succeeded"
            if job.age_seconds is not None:
                since = f"last succeeded {describe_seconds(job.age_seconds)} ago"
            text = f"Its last run {job.result.rstrip('.')}. It {since}."
            hint = "The worker's log has the traceback."
            yield Finding(job.level, subject, text, hint)
        elif job.state == "unfinished":
            began = (status.checked_at - (job.started_at or status.checked_at)).seconds
            text = (
                f"A run began {describe_seconds(began)} ago and has not ended, and none "
                f"has succeeded for {describe_seconds(job.age_seconds or 0)}."
            )
            hint = "If that stays so, the worker is killed or hangs: its log says more."
            yield Finding(job.level, subject, text, hint)


def _judge_sweep(status: Status) -> Iterator[Finding]:
    """Say who is missing, unless a worker or the broker is: that is said already."""
    wake_ups = status.wake_ups
    is_wanted = any(t.is_configured for t in status.targets) or wake_ups.start_beat
    is_told = wake_ups.error or wake_ups.worker_count == 0 or status.is_read_only
    if _is_swept(status) or not is_wanted or is_told:
        return
    text = _unswept(status)
    if not wake_ups.start_beat:
        text += ": what failed once is not tried again."
        hint = f"Keep {_RELAY} running."
    elif wake_ups.worker_count and not wake_ups.waiting_count:
        text = _unswept(status, "beat")
        text += ": a worker is there, and nothing asks it to sweep."
        hint = (
            f"Start beat: `{wake_ups.start_beat}`, and see that its task "
            "`eventstream.republish` is enabled. If beat runs, see that its clock and the "
            "workers' agree: they discard what seems to be over "
            f"{wake_ups.sweep_seconds:g} s old. Until then: {_RELAY}."
        )
    elif wake_ups.worker_count:
        tasks = describe_count(wake_ups.waiting_count or 0, "task")
        text += f", and {tasks} wait in the queue {wake_ups.queue!r}: too few workers."
        hint = f"Start more, or look what keeps them busy: `{wake_ups.start_worker}`."
    else:
        text += ": no beat, or no worker, is at work."
        hint = (
            f"Start `{wake_ups.start_beat}` and `{wake_ups.start_worker}`. Until then: "
            f"{_RELAY}."
        )
    is_late = _is_late(status.unnumbered_seconds)
    level = Level.ERROR if is_late else Level.WARNING
    yield Finding(level, "sweep", text[0].upper() + text[1:], hint)


def _judge_prune(status: Status) -> Iterator[Finding]:
    prune, wake_ups = status.jobs[1], status.wake_ups
    if prune.state not in ("late", "never"):
        return
    if status.is_read_only or (wake_ups.start_beat and not _is_swept(status)):
        return  # the same beat, or worker, is missing: one finding will do
    if prune.age_seconds is None:
        text = "No pruning has ever run"
    else:
        text = f"No pruning has run for {describe_seconds(prune.age_seconds)}"
    hint = "Run `python manage.py eventstream prune`"
    if wake_ups.start_beat:
        hint += ", and see that beat has the task `eventstream.prune`"
    text += ": the outbox grows."
    yield Finding(Level.WARNING, "prune", text, f"{hint}.")


def _is_late(seconds: float | None) -> bool:
    return seconds is not None and seconds > LATE_SECONDS


def _judge_wake_ups(status: Status) -> Iterator[Finding]:
    wake_ups = status.wake_ups
    unswept = "" if _is_swept(status) else f"; {_unswept(status)}"
    if wake_ups.error:
        yield Finding(
            Level.ERROR,
            "broker",
            f"The broker {wake_ups.broker} takes no tasks: "
            f"{wake_ups.error.rstrip('.')}{unswept}.",
            f"Start or mend it, or mend CELERY_BROKER_URL. Until then: {_RELAY}.",
        )
    elif wake_ups.worker_count == 0:
        tasks = ""
        if wake_ups.waiting_count:
            verb = "waits" if wake_ups.waiting_count == 1 else "wait"
            tasks = f"; {describe_count(wake_ups.waiting_count, 'task')} {verb}"
        yield Finding(
            Level.ERROR,
            "worker",
            f"No worker takes tasks from the queue {wake_ups.queue!r}{tasks}{unswept}.",
            f"Start one: `{wake_ups.start_worker}`. Until then: {_RELAY}. If there is one, "
            "with `-P solo`, it answers once its task is done.",
        )


def _judge_targets(status: Status) -> Iterator[Finding]:
    for target in status.targets:
        if target.state == "paused":
            yield _paused(status, target)
        elif target.state == "failing":
            yield _failing(status, target)
        elif target.state == "behind":
            yield _behind(status, target)


def _paused(status: Status, target: TargetStatus) -> Finding:
    why = f" ({target.pause_reason})" if target.pause_reason else ""
    since = _since(status, target.paused_since)
    return Finding(
        Level.WARNING,
        target.name,
        f"Paused{since}{why}; {_waits(target)}.",
        f"`python manage.py eventstream resume {target.name}`.",
    )


def _failing(status: Status, target: TargetStatus) -> Finding:
    what = "Redis or Valkey" if target.kind == "bus" else "it"
    since = _since(status, target.failing_since)
    return Finding(
        Level.ERROR,
        target.name,
        f"Failing{since}; {_waits(target)}. Its answer: {target.last_error[:300]}",
        f"See that {what} runs and is reached from here. It is tried again by itself, or "
        f"at once by `python manage.py eventstream republish --target {target.name}`.",
    )


def _behind(status: Status, target: TargetStatus) -> Finding:
    why = "No relay gets on with it: see that a worker runs, and what its log says"
    if status.wake_ups.error:
        why = "It waits for the broker"
    elif status.wake_ups.worker_count == 0:
        why = "It waits for a worker"
    command = f"`python manage.py eventstream republish --target {target.name}`"
    return Finding(
        target.level,
        target.name,
        f"Behind: {_waits(target)}.",
        f"{why}. To publish at once: {command}.",
    )


def _since(status: Status, at: datetime.datetime | None) -> str:
    if at is None:
        return ""
    seconds = max(0.0, (status.checked_at - at).total_seconds())
    return f" for {describe_seconds(seconds)}"


def _waits(target: TargetStatus) -> str:
    if not target.waiting_count:
        return "nothing waits for it"
    verb = "waits" if target.waiting_count == 1 else "wait"
    text = f"{describe_count(target.waiting_count, 'event')} {verb} for it"
    if target.oldest_seconds is not None:
        text += f", the oldest for {describe_seconds(target.oldest_seconds)}"
    return text


def _judge_events(status: Status) -> Iterator[Finding]:
    has_targets = any(t.is_configured for t in status.targets)
    age = status.unnumbered_seconds
    if not has_targets and age is not None and _is_late(age):
        count = status.unnumbered_count
        verb = "has" if count == 1 else "have"
        yield Finding(
            Level.ERROR,
            "events",
            f"{describe_count(count, 'event')} {verb} no id yet, the oldest for "
            f"{describe_seconds(age)}: nobody reads, and no sweep runs.",
            "`python manage.py eventstream republish`.",
        )
    letters = status.dead_letter_count
    if letters:
        count_text = f"Over {COUNT_LIMIT:,} events"
        if letters <= COUNT_LIMIT:
            count_text = describe_count(letters, "event")
        was, they = ("was", "it") if letters == 1 else ("were", "them")
        yield Finding(
            Level.WARNING,
            "dead letters",
            f"{count_text} {was} refused for good by a target; readers get {they} from "
            "the log.",
            "See why in the admin's dead letters, or `python manage.py eventstream "
            "undelivered --dead`.",
        )
