"""Best-effort events: in no table, published once the transaction has committed."""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connections, transaction

from eventstream.dispatch import get_dispatcher
from eventstream.models import Event, EventKind
from eventstream.rows import OutboxRow
from eventstream.signals import events_sent_unstored


class _UnstoredBatch:
    """The best-effort events of one transaction: one task, so that their order is kept."""

    def __init__(self, rows: list[OutboxRow]) -> None:
        self.rows = rows
        # Django logs an error of a hook by this name, and would raise another for want of it.
        self.__qualname__ = "publish_unstored"

    def __call__(self) -> None:
        events_sent_unstored.send_robust(OutboxRow, rows=self.rows)
        get_dispatcher().publish_unstored(self.rows)


def pending_unstored(alias: str) -> list[list[OutboxRow]]:
    """Return the best-effort events that wait for the commit of the open transaction."""
    calls = [entry[1] for entry in connections[alias].run_on_commit]
    return [call.rows for call in calls if isinstance(call, _UnstoredBatch)]


def publish_on_commit(alias: str, events: Sequence[Event]) -> None:
    """Have the dispatcher publish the events when the transaction commits."""
    rows = [_as_row(event) for event in events]
    connection = connections[alias]
    for savepoints, call, *_ in reversed(connection.run_on_commit):
        if isinstance(call, _UnstoredBatch):
            if savepoints == set(connection.savepoint_ids):  # shares the same fate
                call.rows += rows
                return
            break
    transaction.on_commit(_UnstoredBatch(rows), using=alias, robust=True)


def _as_row(event: Event) -> OutboxRow:
    return OutboxRow(
        id=0,
        position=0,
        kind=EventKind.EVENT,
        channel=event.channel,
        eid=None,
        type=event.type,
        data=event.data,
        skip_users=event.skip_users,
    )
