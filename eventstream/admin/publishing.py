"""Publish at an operator's request, and put what happened into words."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

from django.contrib import messages
from django.db.models import Count, Max

from eventstream.models import DeadLetter
from eventstream.relay import NO_TARGET, Outcome, Report, relay_partition
from eventstream.retrying import RetryReport, retry_dead_letters
from eventstream.words import describe_count

logger = logging.getLogger(__name__)

TARGET_SECONDS = 10.0
"""After so long no further partition is begun for a target: the operator is waiting."""

_NAMED = 10
_LETTERS_AT_A_TIME = 20
_ERRORS = 3
_ERROR_LENGTH = 300


@dataclass
class _Tally:
    """What happened with one target."""

    event_count: int = 0
    refused_count: int = 0
    failed: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)
    pause: str = ""
    untried: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0

    def add(self, partition: int, report: Report) -> None:
        self.event_count += report.event_count
        if report.outcome is Outcome.DONE:
            return
        if report.outcome is Outcome.BUSY:
            self.busy.append(partition)
            return
        if report.outcome is Outcome.PAUSED:
            self.pause = report.error
            return
        self.failed.append(partition)
        if report.error not in self.errors:
            self.errors.append(report.error)


def publish_now(
    using: str, pairs: Collection[tuple[int, str]]
) -> Iterator[tuple[int, str]]:
    """Relay (partition, target) pairs at once; yield (message level, text).

    Whoever is failing is tried all the same. A target that does not answer costs its time
    limit for each partition, so it is given up after TARGET_SECONDS.
    """
    tallies: dict[str, _Tally] = {}
    newest_letter = DeadLetter.objects.using(using).aggregate(pk=Max("pk"))["pk"] or 0
    for partition, name in pairs:
        tally = tallies.setdefault(name, _Tally())
        if tally.seconds > TARGET_SECONDS:
            tally.untried.append(partition)
            continue
        started = time.monotonic()
        tally.add(partition, _relay(using, partition, name))
        tally.seconds += time.monotonic() - started
    letters = DeadLetter.objects.using(using).filter(
        pk__gt=newest_letter, partition__in={partition for partition, _ in pairs}
    )
    refused = letters.order_by().values("target").annotate(count=Count("pk"))
    for name, count in refused.values_list("target", "count"):
        if name in tallies:
            tallies[name].refused_count = count
    for name, tally in tallies.items():
        yield from _describe(name, tally)


def retry_letters(
    using: str, letters: Collection[DeadLetter]
) -> Iterator[tuple[int, str]]:
    """Publish dead letters again where that is of use; yield (message level, text)."""
    by_target: dict[str, list[int]] = {}
    for letter in sorted(letters, key=lambda x: (x.partition, x.position)):
        by_target.setdefault(letter.target, []).append(letter.pk)
    for name, keys in by_target.items():
        total = RetryReport()
        started = time.monotonic()
        left = len(keys)
        for first in range(0, len(keys), _LETTERS_AT_A_TIME):
            if total.error or time.monotonic() - started > TARGET_SECONDS:
                break
            some = keys[first : first + _LETTERS_AT_A_TIME]
            left -= len(some)
            try:
                total.add(retry_dead_letters(using, name, some))
            except Exception as error:
                # One target's fault must not hide what became of the others.
                logger.exception("Retrying dead letters of %s failed", name)
                total.error = f"{type(error).__name__}: {error}"
        yield from _describe_retry(name, total, left)


def _describe_retry(
    name: str, report: RetryReport, left: int
) -> Iterator[tuple[int, str]]:
    if report.published:
        text = f"{name}: accepted {describe_count(report.published, 'event')}."
        yield messages.SUCCESS, text
    if report.due:
        text = (
            f"{name}: {describe_count(report.due, 'event')} will be published in turn."
        )
        yield messages.SUCCESS, text
    if report.superseded:
        text = (
            f"{name}: {describe_count(report.superseded, 'event')} not published: newer ones have been, "
            "so readers have had them from the log. The letters are removed."
        )
        yield messages.INFO, text
    if report.refused:
        text = f"{name}: refused {describe_count(report.refused, 'event')} again; see the last error."
        yield messages.ERROR, text
    if report.busy:
        text = f"{name}: busy: another process is publishing there. Look again in a moment."
        yield messages.WARNING, text
    if report.error:
        yield messages.ERROR, f"{name}: {report.error[:_ERROR_LENGTH]}"
    if left:
        text = f"{name}: {describe_count(left, 'event')} not tried. Try those again."
        yield messages.WARNING, text


def _relay(using: str, partition: int, name: str) -> Report:
    try:
        return relay_partition(using, partition, name, force=True)
    except Exception as error:
        # One target's fault must not hide what became of the others.
        logger.exception("Publishing partition %s to %s failed", partition, name)
        return Report(Outcome.FAILED, error=f"{type(error).__name__}: {error}")


def _describe(name: str, tally: _Tally) -> Iterator[tuple[int, str]]:
    if name == NO_TARGET:
        text = f"No target is configured: numbered {describe_count(tally.event_count, 'event')}."
        yield messages.WARNING, text
        name = "numbering"
    elif tally.event_count > tally.refused_count:
        count = tally.event_count - tally.refused_count
        yield messages.SUCCESS, f"{name}: confirmed {describe_count(count, 'event')}."
    elif not (
        tally.failed
        or tally.busy
        or tally.untried
        or tally.refused_count
        or tally.pause
    ):
        yield messages.INFO, f"{name}: nothing was waiting."
    if tally.refused_count:
        refused = describe_count(tally.refused_count, "event")
        text = f"{name}: refused {refused} for good; see the dead letters."
        yield messages.ERROR, text
    if tally.pause:
        text = f"Nothing was published: {tally.pause}. Resume it first."
        yield messages.WARNING, text
    if tally.failed:
        errors = "; ".join(error[:_ERROR_LENGTH] for error in tally.errors[:_ERRORS])
        text = f"{name}: failed in {_partitions(tally.failed)}: {errors}"
        yield messages.ERROR, text
    if tally.busy:
        text = (
            f"{name}: busy in {_partitions(tally.busy)}: another process is publishing "
            "there. Look again in a moment."
        )
        yield messages.WARNING, text
    if tally.untried:
        text = (
            f"{name}: not tried in {_partitions(tally.untried)}, as it took too long. "
            "Try those again."
        )
        yield messages.WARNING, text


def _partitions(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"partition {numbers[0]}"
    named = ", ".join(str(number) for number in numbers[:_NAMED])
    rest = len(numbers) - _NAMED
    return f"partitions {named} and {rest} more" if rest > 0 else f"partitions {named}"
