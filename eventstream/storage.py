"""The storage: append, and what its parts do: number, read after a position, prune.

Every method takes the database alias, so that a project with several outboxes has one
storage class.
"""

from __future__ import annotations

from collections.abc import Sequence

from django.db import connections, router

from eventstream import conf
from eventstream.log import table_name
from eventstream.models import Event
from eventstream.numbering import Numbering
from eventstream.pruning import Pruning
from eventstream.statements import open_cursor

SUPPORTED_VENDORS = ("postgresql", "sqlite")

_WRITTEN = ("partition", "kind", "channel", "type", "data", "skip_users", "idempotency_key")  # fmt: skip
_INSERT = f"""
INSERT INTO {{event}} ({", ".join(_WRITTEN)})
VALUES ({", ".join(["%s"] * len(_WRITTEN))}) RETURNING id
"""  # noqa: S608  names of columns


class DjangoModelStorage(Numbering, Pruning):
    """The log in Django's databases. The one class for EVENTSTREAM_STORAGE_CLASS."""

    def append(self, using: str, events: Sequence[Event]) -> None:
        """Insert the rows in the caller's transaction; their primary keys are set.

        One statement for up to a thousand, no lock, no other row read or written.
        """
        if len(events) == 1:
            self._insert(using, events[0])
        else:
            Event.objects.using(using).bulk_create(events, batch_size=1000)

    def _insert(self, using: str, event: Event) -> None:
        """Insert one row. Django takes longer to say so than PostgreSQL to do it."""
        if connections[using].vendor == "sqlite":  # RETURNING came late
            event.save(using=using, force_insert=True)
            return
        values = [getattr(event, name) for name in _WRITTEN]
        with open_cursor(using) as cursor:
            cursor.execute(_INSERT.format(event=table_name(using, Event)), values)
            event.pk = cursor.fetchone()[0]
        event._state.adding, event._state.db = False, using

    def append_once(self, using: str, event: Event) -> Event:
        """Insert the row unless its channel has its idempotency key; return what is there.

        A concurrent transaction with the same key is waited for, as a unique key must.
        """
        rows = Event.objects.using(using)
        known = rows.filter(
            channel=event.channel, idempotency_key=event.idempotency_key
        )
        while True:
            rows.bulk_create([event], ignore_conflicts=True)
            if (found := known.first()) is not None:
                return found
            # It was there, and has been pruned in between.


def get_storage() -> DjangoModelStorage:
    """Return the storage that the settings name.

    With EVENTSTREAM_STORAGE_CLASS = None no event is stored, but a withdrawn permission
    still is until it is confirmed: hence the default class then, too.
    """
    path = conf.get_options().storage_class or conf.DEFAULT_STORAGE
    storage: DjangoModelStorage = conf.load(path)
    return storage


def find_alias(channel: str) -> tuple[str, bool]:
    """Return the database alias that holds a channel's log, and whether that is known.

    The only one, or the first of EVENTSTREAM_DATABASES that has events of the channel. As
    long as none has, it is the one to which the routers would have an event written, and
    not known: an event may be sent `using` another.
    """
    databases = conf.get_options().databases
    if len(databases) == 1:
        return databases[0], True
    storage = get_storage()
    for using in databases:
        if storage.has_channel(using, channel):
            return using, True
    return alias_by_router(channel), False


def alias_by_router(channel: str) -> str:
    """Return the database alias to which the routers would have an event written."""
    databases = conf.get_options().databases
    using = router.db_for_write(Event, channel=channel)
    return using if using in databases else databases[0]


def alias_of(channel: str) -> str:
    """Return the database alias of a channel's log, for who asks each time."""
    return find_alias(channel)[0]
