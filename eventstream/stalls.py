"""Tell the application which channels do not move."""

from __future__ import annotations

import datetime

from django.db.models import Min, Q

from eventstream.models import Cursor, Event, EventKind
from eventstream.signals import channel_stalled
from eventstream.status import LATE_SECONDS, Status

MAX_CHANNELS = 100


def report_stalls(status: Status) -> int:
    """Send channel_stalled for each channel of which a target is late; return how many.

    Costs a query for each partition that is late, and one for what has no id yet; nothing if
    nobody listens.
    """
    if not channel_stalled.has_listeners():
        return 0
    before = status.checked_at - datetime.timedelta(seconds=LATE_SECONDS)
    sent = 0
    for target in status.targets:
        if target.state not in ("failing", "behind"):
            continue
        # One partition tries a failing target for all: its answer is the others', too.
        reason = target.last_error or "no relay has come by"
        late: dict[str, tuple[object, str]] = {}
        for partition in target.partitions:
            if partition.oldest_at is None or partition.oldest_at > before:
                continue
            mark = Cursor.objects.using(status.using).filter(
                target=target.name, partition=partition.number
            )
            waiting = Q(
                partition=partition.number, position__gt=mark.values("watermark")[:1]
            )
            for channel, since in _oldest(status.using, waiting, before):
                late[channel] = (since, partition.last_error or reason)
        for channel, since in _oldest(status.using, Q(position=None), before):
            late.setdefault(channel, (since, reason))
        for channel, (since, why) in list(late.items())[:MAX_CHANNELS]:
            channel_stalled.send_robust(
                Event,
                using=status.using,
                channel=channel,
                target=target.name,
                since=since,
                reason=why,
            )
            sent += 1
    return sent


def _oldest(
    using: str, waiting: Q, before: datetime.datetime
) -> list[tuple[str, object]]:
    rows = Event.objects.using(using).filter(
        waiting, kind=EventKind.EVENT, created__lte=before
    )
    oldest = rows.values("channel").annotate(since=Min("created")).order_by("since")
    return list(oldest.values_list("channel", "since")[:MAX_CHANNELS])
