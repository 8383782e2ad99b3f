"""One open stream: a position in each of its channels."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence

from eventstream import sse
from eventstream.hub.tails import CHUNK_BYTES, ChannelState, TailEvent
from eventstream.positions import count_fitting, format_position, split_position
from eventstream.reading import Reader
from eventstream.rows import LogRow, is_skipped, without_skipped


class Subscriber:
    """One open stream: a position in each channel, and a way to be woken.

    As small as can be: of what a process holds there is most of these.
    """

    __slots__ = (
        "_is_woken",
        "_waiter",
        "check_count",
        "error",
        "is_begun",
        "is_due",
        "is_leaving",
        "is_live",
        "is_over",
        "is_sample",
        "lost",
        "places",
        "reader",
        "states",
        "unbegun",
        "written_at",
    )

    def __init__(self, reader: Reader, states: list[ChannelState]) -> None:
        self.reader = reader
        self.states = states
        self.places: dict[str, int] = {}
        # Channels whose initial state is yet to be sent.
        self.unbegun: frozenset[str] = frozenset()
        # Channels whose log has gone back behind the reader: to be reset.
        self.lost: frozenset[str] = frozenset()
        self.error = ""
        self.check_count = 0
        self.written_at = time.monotonic()
        self.is_begun = False
        self.is_due = False
        self.is_leaving = False
        self.is_live = False
        self.is_sample = False
        self.is_over = False
        self._is_woken = False
        self._waiter: asyncio.Future[None] | None = None

    @property
    def is_open(self) -> bool:
        return any(self in state.subscribers for state in self.states)

    @property
    def loss_count(self) -> int:
        """How often the logs of its channels have lost their end."""
        return sum(state.loss_count for state in self.states)

    def wake(self) -> None:
        """Have the stream look what there is to write."""
        self._is_woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def leave(self) -> None:
        """End the stream after what is being written; the client comes back elsewhere."""
        self.is_leaving = True
        self.wake()

    async def wait(self) -> None:
        """Wait until it is woken, or has been since it last waited."""
        if not self._is_woken:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._is_woken = False

    async def wait_until_checked(self) -> None:
        """Wait while it is being asked whether the user may read on."""
        while self.check_count:
            await self.wait()

    def position(self) -> dict[str, int]:
        """Return the reader's place in all reliable channels.

        Without those that are unbegun: a client that is cut off must come back for them.
        """
        return {
            s.name: self.places[s.name]
            for s in self.states
            if s.is_reliable and s.name not in self.unbegun
        }

    def event_id(self) -> str:
        """Return the same as Last-Event-ID has it."""
        return format_position(self.position())

    def collect(self) -> tuple[bytes, list[ChannelState]]:
        """Return what the tails have for this reader, and channels it is behind in.

        A chunk, or one event, at most, however many channels there are: those that are left
        have their turn next. Moves the position; whoever calls must write what it gets.
        """
        if len(self.states) > 1 and (lost := self._lost_states()):
            # Alone: the id of every event would name a position that no log has.
            return b"", lost
        parts: list[bytes] = []
        behind, served = [], []
        size = 0
        has_more = False
        for state in self.states:
            place = self.places[state.name]
            if state.name in self.lost:
                behind.append(state)
                continue
            if place == state.head:
                continue
            if place > state.head or place < state.start:
                if state.is_reliable:
                    behind.append(state)
                    continue
                # Best-effort: what fell out of the tail is lost.
                place = self.places[state.name] = state.start
            if size >= CHUNK_BYTES:
                has_more = True
                continue
            parts.append(self._encode(state, place))
            size += len(parts[-1])
            served.append(state)
            if self.places[state.name] != state.head:
                self.wake()  # for the rest, even if none of this is for the reader
        if has_more:
            self.put_last(served)
        return b"".join(parts), behind

    def _lost_states(self) -> list[ChannelState]:
        """Return the channels whose log ends, or has ended, before the reader's place."""
        places, lost = self.places, self.lost
        return [
            state
            for state in self.states
            if state.is_reliable
            and (places[state.name] > state.head or state.name in lost)
        ]

    def put_last(self, states: Collection[ChannelState]) -> None:
        """Have these channels come after the others: there was room for no more."""
        others = [state for state in self.states if state not in states]
        self.states = [*others, *states]

    def _encode(self, state: ChannelState, place: int) -> bytes:
        if len(self.states) == 1 and not self.reader.user_id:
            return self._share(state, place)
        items = state.after(place)
        if len(self.states) == 1 and not any(item.skip_users for item in items):
            return self._share(state, place)
        return self.encode_items(state, items)

    def _share(self, state: ChannelState, place: int) -> bytes:
        self.places[state.name], chunk = state.chunk_after(place)
        return chunk

    def encode_items(self, state: ChannelState, items: Sequence[TailEvent]) -> bytes:
        """Return a tail's items for this reader, as many as their ids leave room for.

        Its place moves to the last of them.
        """
        if not items:
            return b""
        if state.is_reliable and len(items) > 1:
            items = items[: self._most_events()]
        self.places[state.name] = items[-1].place
        user_id = self.reader.user_id
        if any(item.skip_users for item in items):
            items = [item for item in items if not is_skipped(item.skip_users, user_id)]
        if not state.is_reliable:
            return "".join([item.body for item in items]).encode()
        before, after = split_position(self.position(), state.name)
        return "".join(
            [f"id: {before}{item.place}{after}\n{item.body}" for item in items]
        ).encode()

    def encode_log(self, state: ChannelState, rows: list[LogRow]) -> bytes:
        """Return a page of the log for this reader, as much as its ids leave room for.

        Its place moves to the last event of that.
        """
        if not rows:
            return b""
        rows = rows[: self._most_events()]
        self.places[state.name] = rows[-1][0]
        rows = without_skipped(rows, self.reader.user_id)
        before, after = split_position(self.position(), state.name)
        return sse.encode_log(rows, before, after).encode()

    def _most_events(self) -> int:
        return count_fitting(CHUNK_BYTES, self.position())
