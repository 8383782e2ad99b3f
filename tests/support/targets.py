"""A target that records, fails or refuses; and a dispatcher that wakes nobody, a relay at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence

from eventstream.dispatch import Dispatcher
from eventstream.exceptions import PublishRejectedError, PublishUnavailableError
from eventstream.relay import pending, relay_partition
from eventstream.rows import OutboxRow
from eventstream.targets.base import Item, Target


class RecordingTarget(Target):
    """Accepts everything, unless told otherwise.

    Attributes:
        received: (channel, eid or "kick", data) of what was accepted, in order.
        batches: How many items each accepted call had.
        is_down: Fail every call.
        poison: Refuse, for good, any call with one of these data.
        chokes_on: Fail any call with one of these data, each time, and not for good.
        refuses_all: Refuse whatever comes, as a proxy with a wrong route does.
        before: Called before each call is answered.
        reminders: How often it was reminded of its streams.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.received: list[tuple[str, object, str]] = []
        self.batches: list[int] = []
        self.is_down = False
        self.poison: set[str] = set()
        self.chokes_on: set[str] = set()
        self.refuses_all = False
        self.before: Callable[[], object] = lambda: None
        self.reminders = 0

    def encode(self, row: OutboxRow) -> list[Item]:
        place = "kick" if row.kind else row.eid
        body = json.dumps([row.channel, place, row.data]).encode()
        return [Item(row.channel, body, bool(row.kind))]

    def publish(self, items: Sequence[Item]) -> None:
        self.before()
        if self.is_down:
            raise PublishUnavailableError(f"{self.name} is down")
        decoded = [tuple(json.loads(item.body)) for item in items]
        if any(data in self.chokes_on for _, _, data in decoded):
            raise PublishUnavailableError("internal server error")
        if self.refuses_all or any(data in self.poison for _, _, data in decoded):
            raise PublishRejectedError("bad content", status=400)
        self.received += decoded
        self.batches.append(len(items))

    def remind(self) -> None:
        self.reminders += 1
        if self.is_down:
            raise PublishUnavailableError(f"{self.name} is down")

    def ids(self, channel: str) -> list[object]:
        """Return the ids accepted for a channel, in order."""
        return [eid for name, eid, _ in self.received if name == channel]


def relay_now(using: str) -> None:
    """Relay every partition that has work, due or not."""
    for partition, name in pending(using):
        relay_partition(using, partition, name, force=True)


class IdleDispatcher(Dispatcher):
    """Leaves everything to whoever calls the relay."""

    def wake(self, using: str, partitions: Collection[int]) -> None:
        pass

    def publish_unstored(self, rows: list[OutboxRow]) -> None:
        pass
