"""How long events take to a client: a few of all, asked of the database in between."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from typing import NamedTuple

from django.db import DatabaseError

from eventstream.log import database_now
from eventstream.models import Event

SAMPLES = 20
"""About so many are taken between two reports of a hub."""


class Delivery(NamedTuple):
    """One event, as it was handed to one client."""

    using: str
    channel: str
    eid: int
    at: float


class Sampler:
    """Chooses deliveries at random, so that each is as likely as any other."""

    def __init__(self) -> None:
        self._taken: list[Delivery] = []
        self._seen = 0
        self._left = 1
        self._gap = 1

    def is_next(self) -> bool:
        """Say whether this delivery is to be taken: a comparison, in most cases."""
        self._seen += 1
        self._left -= 1
        return self._left <= 0

    def take(self, using: str, channel: str, eid: int) -> None:
        self._left = random.randint(1, 2 * self._gap - 1)  # noqa: S311  no secret
        if len(self._taken) < 2 * SAMPLES:
            self._taken.append(Delivery(using, channel, eid, time.time()))

    def drain(self) -> list[Delivery]:
        """Return what was taken, and take as many until the next time."""
        taken, self._taken = self._taken, []
        self._gap = max(1, self._seen // SAMPLES)
        self._seen = 0
        return taken


def measure(deliveries: Sequence[Delivery]) -> list[float]:
    """Return the seconds from writing each event to its delivery, by one clock."""
    found = []
    try:
        for using in {delivery.using for delivery in deliveries}:
            ahead = time.time() - database_now(using).timestamp()
            for delivery in deliveries:
                if delivery.using != using:
                    continue
                rows = Event.objects.using(using).filter(
                    channel=delivery.channel, eid=delivery.eid
                )
                created = rows.values_list("created", flat=True).first()
                if created is not None:
                    seconds = delivery.at - ahead - created.timestamp()
                    found.append(max(0.0, seconds))
    except DatabaseError:
        pass  # the hub's own looks at the log tell it
    return found
