"""Pause and resume a target, in every outbox. What command and admin call."""

from __future__ import annotations

import logging

from eventstream import conf
from eventstream.dispatch import get_dispatcher
from eventstream.exceptions import UnknownTargetError
from eventstream.relay import pause_target, pending, resume_target
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
