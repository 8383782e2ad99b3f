"""For the tests of applications that send events."""

from __future__ import annotations

from eventstream.models import Event, EventKind
from eventstream.storage import get_storage


def drain_outbox(using: str = "default") -> list[Event]:
    """Number every event sent so far and return those, in order; nothing is published.

    Works inside TestCase, whose transaction never commits: the test is then its own
    relay. What an earlier call returned is not returned again.

        def test_order_is_announced(self):
            place_order(item="tea")

            [event] = drain_outbox()
            assert (event.channel, event.eid) == ("orders", 1)
    """
    storage = get_storage()
    rows = Event.objects.using(using).filter(position__isnull=True)
    ids = list(rows.filter(kind=EventKind.EVENT).values_list("pk", flat=True))
    for partition in storage.partitions(using):
        storage.number_all(using, partition)
    return list(Event.objects.using(using).filter(pk__in=ids).order_by("pk"))
