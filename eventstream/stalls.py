"""Tell the application which channels do not move."""

from __future__ import annotations

from django.db.models import Min

from eventstream.models import Cursor, Event, EventKind
from eventstream.signals import channel_stalled
from eventstream.status import LATE_SECONDS, Status

MAX_CHANNELS = 100


def report_stalls(status: Status) -> int:
    """Send channel_stalled for each channel of which a target is late; return how many.

    Costs a query for each partition that is late, and nothing if nobody listens.
    """
    if not channel_stalled.has_listeners():
        return 0
    sent = 0
    for target in status.targets:
        if target.state not in ("failing", "behind"):
            continue
        left = MAX_CHANNELS
        for partition in target.partitions:
            at = partition.oldest_at
            if at is None or (status.checked_at - at).total_seconds() < LATE_SECONDS:
                continue
            for channel, since in _waiting(status.using, target.name, partition.number)[
                :left
            ]:
                channel_stalled.send_robust(
                    Event,
                    using=status.using,
                    channel=channel,
                    target=target.name,
                    since=since,
                    reason=partition.last_error or "no relay has come by",
                )
                left -= 1
                sent += 1
    return sent


def _waiting(using: str, target: str, partition: int) -> list[tuple[str, object]]:
    mark = Cursor.objects.using(using).filter(target=target, partition=partition)
    rows = Event.objects.using(using).filter(
        partition=partition,
        kind=EventKind.EVENT,
        position__gt=mark.values("watermark")[:1],
    )
    oldest = rows.values("channel").annotate(since=Min("created")).order_by("since")
    return list(oldest.values_list("channel", "since")[:MAX_CHANNELS])
