"""Take over the log of django-eventstream: its events and counters, with their ids.

Its tables are only read, whether or not it is installed. So it may go on serving meanwhile,
and the whole can be repeated: what is here already is passed over, what has come since is
added. A client that comes back with an id of its own finds the log as it was there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from django.apps.registry import Apps
from django.db import connections, models, transaction

from eventstream.cursors import move_along
from eventstream.exceptions import AdoptionError
from eventstream.instants import as_instant
from eventstream.models import Channel, Event
from eventstream.rows import LogEntry, partition_of
from eventstream.storage import get_storage

BATCH = 1000


class _Counter(models.Model):
    """Its table of counters. In a registry of its own: no migration, no content type."""

    name = models.CharField(max_length=255)
    value = models.BigIntegerField()

    class Meta:
        app_label = "django_eventstream"
        apps = Apps()
        managed = False
        db_table = "django_eventstream_eventcounter"

    def __str__(self) -> str:
        return self.name


class _Stored(models.Model):
    """Its table of events. `eid` 0 is a placeholder at the beginning of each channel."""

    channel = models.CharField(max_length=255)
    type = models.CharField(max_length=255)
    data = models.TextField()
    eid = models.BigIntegerField()
    created = models.DateTimeField()

    class Meta:
        app_label = "django_eventstream"
        apps = Apps()
        managed = False
        db_table = "django_eventstream_event"

    def __str__(self) -> str:
        return f"{self.channel}:{self.eid}"


@dataclass
class Adoption:
    """What a run has found and done.

    Attributes:
        channel_count: Channels of django-eventstream.
        event_count: Events taken over by this run.
        conflicts: Channels in which both have given the same id to different events.
    """

    channel_count: int = 0
    event_count: int = 0
    conflicts: list[str] = field(default_factory=list)


def adopt(using: str) -> Iterator[Adoption]:
    """Take over channel by channel; yields the same object after each.

    Transactions of at most 1,000 events under the numbering lock, which no sender takes.
    Only the consecutive end of a channel's log is taken: a client further back than a hole
    gets a stream-reset, as its old server had no more to give it either.

    Raises:
        AdoptionError: The tables are not in this database.
    """
    tables = connections[using].introspection.table_names()
    for model in (_Counter, _Stored):
        if model._meta.db_table not in tables:
            raise AdoptionError(
                f"Database {using!r} has no table {model._meta.db_table}: no log of "
                "django-eventstream is kept here. Its Redis storage cannot be taken over: "
                "run `manage.py eventstream reset-readers` before the first event is sent."
            )
    found = Adoption()
    name = ""
    while True:
        # By name, and not one long query: channels may be added meanwhile.
        counters = _Counter._default_manager.using(using).filter(name__gt=name)
        page = list(counters.order_by("name").values_list("name", "value")[:BATCH])
        if not page:
            return
        for name, value in page:
            found.channel_count += 1
            if _is_in_conflict(using, name, value):
                found.conflicts.append(name)
            else:
                found.event_count += _adopt_channel(using, name, value)
            yield found


def _adopt_channel(using: str, channel: str, last_eid: int) -> int:
    """Take over a channel up to an id, which was read before its events."""
    storage = get_storage()
    known = Channel.objects.using(using).filter(name=channel)
    here = known.values_list("last_eid", flat=True).first()
    if here is not None and here >= last_eid:
        return 0
    rows = _Stored._default_manager.using(using).filter(
        channel=channel, eid__gt=here or 0, eid__lte=last_eid
    )
    first = _first_consecutive(rows, last_eid)
    count, eid = 0, first - 1
    while True:
        some = (
            rows.filter(eid__gt=eid).order_by("eid")[:BATCH] if eid < last_eid else []
        )
        entries = _without_holes(
            [
                LogEntry(row.eid, row.type, _text(row.data), as_instant(row.created))
                for row in some
            ]
        )
        # Not where the last ones ended: the old one may have deleted what followed.
        after = entries[0].eid - 1 if entries else last_eid
        with transaction.atomic(using=using):
            moved = storage.adopt(using, channel, after=after, entries=entries)
            if moved is not None:
                # Targets that had everything: whoever reads here can come for the log
                # only now.
                base, head = moved
                move_along(using, partition_of(channel), base=base, head=head)
        if not entries:
            return count
        count += len(entries)
        eid = entries[-1].eid


def _without_holes(entries: list[LogEntry]) -> list[LogEntry]:
    """Return those behind the last hole."""
    for place in range(len(entries) - 1, 0, -1):
        if entries[place].eid != entries[place - 1].eid + 1:
            return entries[place:]
    return entries


def _first_consecutive(rows: models.QuerySet[Any], last_eid: int) -> int:
    """Return the id from which on none is missing; last_eid + 1 if the last one is."""
    first = last_eid + 1
    for eid in rows.order_by("-eid").values_list("eid", flat=True).iterator():
        if eid != first - 1:
            break
        first = eid
    return first


def _is_in_conflict(using: str, channel: str, last_eid: int) -> bool:
    """Say whether the newest id that both have given is that of different events."""
    known = Channel.objects.using(using).filter(name=channel)
    here = known.values_list("last_eid", flat=True).first()
    if here is None:
        return False
    eid = min(here, last_eid)
    mine = Event.objects.using(using).filter(channel=channel, eid=eid).first()
    theirs = _Stored._default_manager.using(using).filter(channel=channel, eid=eid)
    other = theirs.first()
    if mine is None or other is None:
        return False  # one of them has deleted it, as it was too old
    return (mine.type, mine.created) != (other.type, as_instant(other.created))


def _text(stored: str) -> str:
    """Return what clients receive: the column holds that, encoded as JSON once more."""
    try:
        value = json.loads(stored)
    except ValueError:
        return stored
    # Releases before 4.4 kept the data itself, and encoded it for the client. A text alone
    # may be either: it is taken for one that was sent as it is.
    return value if isinstance(value, str) else json.dumps(value)
