"""The periodic tasks, as rows of django-celery-beat."""

from __future__ import annotations

import datetime
from typing import Any

from django.conf import settings
from django.utils import timezone
from django_celery_beat.models import IntervalSchedule, PeriodicTask

from eventstream_tasks.conf import get_options


def install_schedule() -> list[str]:
    """Create or correct the periodic tasks; return the names of those that changed.

    Safe to run at any time and any number of times. A task that an operator has switched
    off stays off; only what this package decides (task, queue, expiry) is corrected, and
    the interval only while it is the one that was installed: as long as the expiry, which
    was installed with it.
    """
    options = get_options()
    wanted = {
        "eventstream.republish": options.republish_every,
        "eventstream.prune": options.prune_every,
    }
    changed = []
    for name, seconds in wanted.items():
        interval = _interval(seconds)
        # Two sweeps waiting are no better than one: an old message expires.
        values: dict[str, Any] = {
            "task": name,
            "queue": options.queue,
            "expire_seconds": seconds,
            "description": "Installed by eventstream_schedule.",
        }
        row, is_new = PeriodicTask.objects.get_or_create(
            name=name, defaults={**values, **_never_run(), "interval": interval}
        )
        if is_new:
            changed.append(name)
            continue
        if _has_installed_timing(row):
            values["interval"] = interval
        differing = {k: v for k, v in values.items() if getattr(row, k) != v}
        if differing:
            for key, value in differing.items():
                setattr(row, key, value)
            row.save()  # not update(): saving tells a running beat
            changed.append(name)
    return changed


def _never_run() -> dict[str, Any]:
    """Have beat run a new task at once where USE_TZ is off.

    It counts from when the row was written, which it takes for UTC: east of that this is
    in the future, and nothing would be swept for as many hours.
    """
    if settings.USE_TZ:
        return {}
    return {"last_run_at": timezone.now() - datetime.timedelta(days=1)}


def _has_installed_timing(row: PeriodicTask) -> bool:
    """Say whether no operator has given the row a timing of their own."""
    if row.interval is None:
        return not (row.crontab_id or row.solar_id or row.clocked_id)
    is_in_seconds: bool = row.interval.period == "seconds"
    return is_in_seconds and row.interval.every == row.expire_seconds


def _interval(seconds: int) -> IntervalSchedule:
    rows = IntervalSchedule.objects.filter(every=seconds, period="seconds")
    return rows.first() or IntervalSchedule.objects.create(
        every=seconds, period="seconds"
    )
