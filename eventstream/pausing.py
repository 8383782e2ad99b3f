"""Pause and resume a target, in every outbox. What command and admin call."""

from __future__ import annotations

import logging

from django.db import transaction

from eventstream import conf
from eventstream.cursors import resume_cursors
from eventstream.dispatch import get_dispatcher
from eventstream.exceptions import UnknownTargetError
from eventstream.models import PausedTarget
from eventstream.relay import pending
from eventstream.targets import get_targets

logger = logging.getLogger(__name__)


def pause(target: str, *, reason: str = "") -> bool:
    """Publish nothing to a target until it is resumed.

    For a proxy that is being mended or replaced: nothing is tried in vain, and the other
    targets go on. After the retention it no longer holds up pruning.

    Returns:
        False if it was paused already; its reason then stays.

    Raises:
        UnknownTargetError: It is not in the settings.
    """
    names = list(get_targets())
    if target not in names:
        raise UnknownTargetError(
            f"{target!r} is not a target of the settings; there are: "
            + (", ".join(names) or "none")
        )
    is_new = False
    for using in conf.get_options().databases:
        is_new = pause_target(using, target, reason=reason) or is_new
    if is_new:
        logger.warning("Paused %s: %s", target, reason or "no reason given")
    return is_new


def resume(target: str) -> bool:
    """Let a paused target have what waits for it, and wake a worker for it.

    After a long pause it gets the newest event of each channel: its readers see the gap
    and read the log.

    Returns:
        False if it was not paused.
    """
    found = False
    for using in conf.get_options().databases:
        if resume_target(using, target):
            found = True
            partitions = {number for number, name in pending(using) if name == target}
            get_dispatcher().wake(using, partitions)
    if found:
        logger.warning("Resumed %s", target)
    return found


def pause_target(using: str, target_name: str, *, reason: str = "") -> bool:
    """Publish nothing to a target until it is resumed; False if it was paused already.

    A relay that is at work on it ends after its batch. Events are numbered, stored and
    published to the other targets as before.
    """
    pause = PausedTarget(name=target_name, reason=reason)
    rows = PausedTarget.objects.using(using)
    with transaction.atomic(using=using):
        if rows.filter(name=target_name).exists():
            return False
        rows.bulk_create([pause], ignore_conflicts=True)
    return True


def resume_target(using: str, target_name: str) -> bool:
    """Let a paused target have what waits for it; False if it was not paused.

    What it missed counts as a failure since the pause: if that was longer ago than
    BACKLOG_AFTER it gets the newest event of each channel, and its readers the rest from
    the log. Wakes nobody.
    """
    with transaction.atomic(using=using):
        rows = PausedTarget.objects.using(using).filter(name=target_name)
        pause = rows.first()
        if pause is None:
            return False
        resume_cursors(using, target_name, pause.since)
        rows.delete()
    return True
