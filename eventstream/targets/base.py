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
        """Return the most bytes that it takes in a call: they count against BATCH_BYTES."""
        return len(self.head) + len(self.body) + 64

    def __repr__(self) -> str:
        """Return what logs and error pages may show: not the body."""
        return f"<Item of {self.channel}, {len(self.body)} bytes>"


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

    def close(self) -> None:  # noqa: B027  most targets hold nothing
        """Drop connections, for instance after a fork."""
