"""bench-proxy: what a target takes, by the road that the relay goes."""

from __future__ import annotations

import time
from collections.abc import Sequence

from django.core.management.base import CommandError

from eventstream.console.screen import Screen
from eventstream.exceptions import PublishError
from eventstream.models import EventKind
from eventstream.rows import OutboxRow
from eventstream.status import Level
from eventstream.targets import get_targets
from eventstream.targets.base import Item, Target

BATCH_SIZES = (1, 10, 100, 1000)
CHANNEL = "\x7fbench"
"""No channel can have this name: what is published reaches nobody."""


def measure(
    screen: Screen, *, targets: Sequence[str], seconds: float, size: int
) -> int:
    """Publish batches one after the other for some seconds, for each size of batch."""
    known = get_targets()
    if not known:
        raise CommandError("No target is configured.")
    rows, code = [], 0
    for name in targets or list(known):
        for batch_size in BATCH_SIZES:
            try:
                rows.append(_measure(known[name], batch_size, seconds, size))
            except PublishError as error:
                screen.finding(Level.ERROR, name, str(error), "See `doctor`.")
                code = 2
                break
    if rows:
        screen.table(
            ["target", "batch", "events/s", "POSTs/s", "median ms", "99 % ms"], rows
        )
    return code


def _measure(
    target: Target, batch_size: int, seconds: float, size: int
) -> list[object]:
    items = _items(target, batch_size, size)
    target.publish(items)  # connected, and warm
    durations: list[float] = []
    started = time.monotonic()
    while time.monotonic() - started < seconds:
        before = time.monotonic()
        target.publish(items)
        durations.append(time.monotonic() - before)
    elapsed = time.monotonic() - started
    durations.sort()
    return [
        target.name,
        batch_size,
        round(len(durations) * batch_size / elapsed),
        round(len(durations) / elapsed),
        f"{durations[len(durations) // 2] * 1000:.2f}",
        f"{durations[int(len(durations) * 0.99)] * 1000:.2f}",
    ]


def _items(target: Target, count: int, size: int) -> list[Item]:
    rows = [
        OutboxRow(0, 0, EventKind.EVENT, CHANNEL, None, "message", "x" * size, "")
        for _ in range(count)
    ]
    return [item for row in rows for item in target.encode(row)]
