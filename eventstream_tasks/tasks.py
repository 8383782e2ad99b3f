"""The tasks: policy only, a few lines each over relay and jobs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from celery import Task, shared_task
from celery.exceptions import SoftTimeLimitExceeded

from eventstream import conf as core_conf
from eventstream import jobs, tracing
from eventstream.dispatch import get_dispatcher
from eventstream.exceptions import PublishUnavailableError
from eventstream.relay import (
    Outcome,
    Report,
    pending,
    publish_unstored,
    relay_partition,
)
from eventstream.rows import OutboxRow
from eventstream_tasks.backoff import MAX_RETRIES, retry_delay
from eventstream_tasks.conf import SOFT_TIME_LIMIT, TIME_LIMIT, get_options
from eventstream_tasks.connections import with_kept_connections
from eventstream_tasks.dispatch import HIDDEN, TaskFlag

T = TypeVar("T")

# Acknowledged as soon as begun: what is to be done is in the outbox, and a worker that dies
# strands nothing, as the sweep comes by. Late acknowledgements would bring nothing but
# their risks: a worker that has one to send when the broker restarts ends with an error.
_options: dict[str, Any] = {
    "bind": True,
    "acks_late": False,
    "ignore_result": True,
    "max_retries": MAX_RETRIES,
    # Unchecked: this is read at start-up, and `manage.py check` would not get to its checks.
    "soft_time_limit": SOFT_TIME_LIMIT.value(),
    "time_limit": TIME_LIMIT.value(),
}


def _call(task: Task[Any, Any], call: Callable[[], T]) -> T:
    """Call with kept connections; in an eager task with the caller's, in its transaction."""
    with tracing.active.going_on(_carried(task)):
        return call() if task.request.is_eager else with_kept_connections(call)


def _carried(task: Task[Any, Any]) -> dict[str, str]:
    """Return the message's headers that carry a trace; Celery makes attributes of them."""
    names = tracing.active.fields()
    return {name: task.request.get(name) for name in names if task.request.get(name)}


@shared_task(name="eventstream.publish", **_options)
def publish(self: Task[Any, Any], using: str, partition: int, target: str) -> None:
    """Relay one partition to one target; retry three times, then leave it to the sweep."""

    # An eager one is in its sender, who waits for nothing.
    may_wait = not self.request.is_eager
    flag = TaskFlag(using, partition, target, may_wait=may_wait)

    def relay() -> Report:
        report = relay_partition(using, partition, target, flag=flag)
        if report.has_recovered:
            get_dispatcher().wake(using, {number for number, _ in pending(using)})
        return report

    report = _call(self, relay)
    if report.outcome is Outcome.DONE and flag.has_watched():
        # Before the next event, which would have to wait for a task of its own.
        flag.hand_on()
    retries = self.request.retries
    is_failing = report.outcome is Outcome.FAILED or (
        report.outcome is Outcome.WAITING and retries > 0
    )
    if is_failing and retries < MAX_RETRIES:
        raise self.retry(countdown=retry_delay(retries + 1))


@shared_task(name="eventstream.publish_unstored", **_options)
def publish_best_effort(
    self: Task[Any, Any], target: str, rows: list[list[Any]]
) -> None:
    """Publish best-effort events, which are in no table, to one target."""
    left = [OutboxRow(*row) for row in rows]
    try:
        publish_unstored(target, left)
    except PublishUnavailableError as error:
        if self.request.retries < MAX_RETRIES:
            raise self.retry(  # type: ignore[call-arg]  # takes apply_async's
                args=(target, [list(row) for row in left]),
                countdown=retry_delay(self.request.retries + 1),
                exc=error,
                argsrepr=HIDDEN,
            ) from error


def _do_each(job: Callable[[str], object]) -> None:
    """Do a job for every outbox: one whose database is away keeps no other waiting.

    Raises:
        ExceptionGroup: What went wrong, at the end.
    """
    errors: list[Exception] = []
    for using in core_conf.get_options().databases:
        try:
            job(using)
        except SoftTimeLimitExceeded:
            raise
        except Exception as error:
            error.add_note(f"In the outbox {using!r}.")
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup("Several outboxes failed", errors)


@shared_task(name="eventstream.republish", **_options)
def republish(self: Task[Any, Any]) -> None:
    """Sweep every outbox."""
    ends = (SoftTimeLimitExceeded,)

    def sweep(using: str) -> None:
        hand_on = partial(get_dispatcher().wake, using)
        _call(self, partial(jobs.republish, using, ends=ends, hand_on=hand_on))

    _do_each(sweep)


@shared_task(name="eventstream.prune", **_options)
def prune(self: Task[Any, Any]) -> None:
    """Prune every outbox."""
    _do_each(partial(jobs.prune, lease_seconds=get_options().time_limit))
