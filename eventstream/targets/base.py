"""What the relay asks of a target."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from eventstream import conf
from eventstream.models import EventKind
from eventstream.rows import OutboxRow

_PROBE = OutboxRow(0, 0, EventKind.EVENT, "\x7fprobe", None, "message", "", "")
"""Goes to a channel whose name no channel can have."""

MAX_JOINED_BYTES = 32_000
"""Most bytes of events that are published as one item; a larger one is published alone. A
client that does not read has at most so much more of it in the proxy."""


class Item(NamedTuple):
    """A row in the form that goes over the wire.

    Attributes:
        channel: The event's channel.
        body: What the target receives for it.
        is_kick: Whether it is a withdrawn permission.
        head: What the body wants before it, if the target joins some in one wrapping.
        eid: The event id of a body that may be joined with those of the ids next to it.
    """

    channel: str
    body: bytes
    is_kick: bool = False
    head: bytes = b""
    eid: int = 0

    @property
    def size(self) -> int:
        """Return the most bytes that it takes in a call if it is joined with no other."""
        return len(self.head) + len(self.body) + 64

    def __repr__(self) -> str:
        """Return what logs and error pages may show: not the body."""
        return f"<Item of {self.channel}, {len(self.body)} bytes>"


Run = tuple[int, int]
"""Events of a channel that go as one item, so far: the last one's id, or 0 if what came last
is joined with nothing, and bytes of their bodies."""

NO_RUN: Run = (0, 0)


def is_joined(run: Run, item: Item) -> bool:
    """Say whether an item goes on with the run before it in its channel."""
    eid, size = run
    is_next = eid > 0 and item.eid == eid + 1
    return is_next and size + len(item.body) <= MAX_JOINED_BYTES


class CallSize:
    """How many bytes a call takes: they count against BATCH_BYTES.

    Consecutive events of a channel have one head between them, if they have any.

    Attributes:
        total: Bytes, of what there was room for.
    """

    def __init__(self) -> None:
        self.total = 0
        self._runs: dict[str, Run] = {}

    def add(self, items: Sequence[Item], limit: int) -> bool:
        """Count the items of a row; not, if that is more than the limit and not the first.

        Returns:
            Whether there was room.
        """
        item = items[-1]
        run = self._runs.get(item.channel, NO_RUN)
        if len(items) == 1 and is_joined(run, item):
            added = len(item.body)
            run = (item.eid, run[1] + added)
        else:
            added = sum([each.size for each in items])
            run = (item.eid, len(item.body))
        if self.total and self.total + added > limit:
            return False
        self.total += added
        self._runs[item.channel] = run
        return True


class Target(ABC):
    """One GRIP proxy, or the Redis bus.

    Attributes:
        name: Stable over restarts: cursors are kept under it.
        kind: What it is, for people: "GRIP proxy", "bus".
    """

    name: str
    kind: str = "target"

    @property
    def most_events(self) -> int:
        """The most events that it takes in a call, of however few bytes."""
        return conf.get_options().batch_size

    @abstractmethod
    def encode(self, row: OutboxRow) -> list[Item]:
        """Return the items of a row, in order. Pure."""

    @abstractmethod
    def publish(self, items: Sequence[Item]) -> None:
        """Hand the items over, in order, in one call with a time limit.

        Returning means that the target has accepted every one of them.

        Raises:
            PublishUnavailableError: Not now; perhaps accepted all the same.
            PublishRejectedError: At least one item will never be accepted.
        """

    def probe(self) -> list[Item]:
        """Return items that a sound target accepts, and that reach nobody."""
        return self.encode(_PROBE)

    def remind(self) -> None:  # noqa: B027  most targets forget nothing
        """Have the target look after streams that it may have forgotten; once a minute.

        Raises:
            PublishUnavailableError, PublishRejectedError: As publish() does.
        """

    def close(self) -> None:  # noqa: B027  most targets hold nothing
        """Drop connections, for instance after a fork."""
