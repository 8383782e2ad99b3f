"""How one stream goes: opening, what the client has missed, and live from there.

A stream is a position. Whenever the client can take more, everything above the position
is taken from the channel's tail or, if that no longer reaches back so far, from the log.
"""

from __future__ import annotations

import time

from eventstream import conf, instruments, sse
from eventstream.exceptions import InitialStateError
from eventstream.hub.beginnings import Beginnings, encode_beginnings
from eventstream.hub.channels import Channels
from eventstream.hub.log import Log
from eventstream.hub.subscribers import Subscriber
from eventstream.hub.tails import CHUNK_BYTES, ChannelState
from eventstream.initial import has_initial_states
from eventstream.latency import Sampler
from eventstream.log import NO_END
from eventstream.positions import format_position
from eventstream.rows import ChannelLog


class Streams:
    """Writes the streams of one hub."""

    def __init__(
        self, log: Log, channels: Channels, beginnings: Beginnings, sampler: Sampler
    ) -> None:
        self._log = log
        self._channels = channels
        self._beginnings = beginnings
        self._sampler = sampler

    async def open(self, subscriber: Subscriber) -> str:
        """Put the reader where its stream begins, in channels that are live; greet it."""
        options = conf.get_options()
        reader, states = subscriber.reader, subscriber.states
        for state in states:
            place = state.head
            if state.is_reliable:
                place = reader.positions.get(state.name, place)
            subscriber.places[state.name] = place
        fresh = [state for state in states if state.name not in reader.positions]
        beginnings = await self._beginnings.read(subscriber, fresh)
        if beginnings:
            await subscriber.wait_until_checked()
        opening = sse.encode_preamble(
            options.padding,
            options.retry,
            subscriber.event_id(),
            head=format_position({s.name: s.head for s in states if s.is_reliable}),
            keep_alive=options.keep_alive,
            state_count=len(beginnings) if has_initial_states() else None,
        )
        if not subscriber.error:
            opening += encode_beginnings(subscriber, beginnings)
        return opening

    async def advance(self, subscriber: Subscriber) -> bytes:
        """Wait for what the reader has not had, and return it: it is to be written now.

        Called again once it has been. After the last of a stream `is_over` is set.
        """
        subscriber.written_at = time.monotonic()
        if subscriber.is_sample:
            subscriber.is_sample = False
            self._take_sample(subscriber)
        while True:
            await subscriber.wait_until_checked()
            chunk, behind = subscriber.collect()
            subscriber.is_sample = (
                bool(chunk) and not behind and self._sampler.is_next()
            )
            if behind and subscriber.is_live:
                instruments.active.overflow()
            subscriber.is_live = not behind
            if behind:
                try:
                    chunk += await self._catch_up(subscriber, behind)
                except InitialStateError:
                    subscriber.is_over = True  # as where a stream begins
                    return b""
                await subscriber.wait_until_checked()
            if subscriber.error:
                subscriber.is_over = True
                # Alone: what was read may have come after the permission was gone.
                return subscriber.error.encode()
            if not chunk and subscriber.is_due:
                chunk = sse.KEEP_ALIVE.encode()
            subscriber.is_due = False
            if subscriber.is_leaving:
                subscriber.is_over = True
                return chunk + sse.FAREWELL.encode()
            if chunk:
                return chunk
            if not behind:
                await subscriber.wait()

    async def _catch_up(
        self, subscriber: Subscriber, states: list[ChannelState]
    ) -> bytes:
        """Read a page of the channels from the log, and move the position behind it.

        As many as there is room for in a chunk: those that are left have their turn next.
        Not those whose position no log has, which the id of every event names: they have no
        event, and come first.
        """
        instruments.active.catch_up("hub")
        places = subscriber.places
        states = sorted(
            states,
            key=lambda s: s.name not in subscriber.lost and places[s.name] <= s.head,
        )
        logs: list[tuple[ChannelState, ChannelLog]] = []
        loss_count = subscriber.loss_count
        size = 0
        id_size = len(subscriber.event_id())
        for state in states:
            if size >= CHUNK_BYTES:
                subscriber.put_last([state for state, _ in logs])
                break
            # An id that no log has: to be told where the log ends.
            is_lost = state.name in subscriber.lost
            place = NO_END if is_lost else subscriber.places[state.name]
            logs.append((state, await self._log.read(state, place)))
            rows = logs[-1][1].rows
            size += sum([len(row[2]) for row in rows]) + id_size * len(rows)
        if subscriber.loss_count != loss_count:
            return b""  # a log has gone back meanwhile: it is to be read again
        chunk = b""
        lost = [state for state, log in logs if log.is_reset]
        for state, log in logs:
            if log.is_reset:
                subscriber.places[state.name] = log.last_eid
                subscriber.lost -= {state.name}
        for state in lost:
            await self._reach(state, subscriber.places[state.name])
        if lost:
            instruments.active.reset("hub")
            beginnings = await self._beginnings.read(subscriber, lost)
            # Before any event: the ids of those pass over what was lost.
            names = [state.name for state in lost]
            text = sse.encode_reset(names, subscriber.event_id())
            chunk = (text + encode_beginnings(subscriber, beginnings)).encode()
        for state, log in logs:
            if subscriber.loss_count != loss_count:
                break
            chunk += subscriber.encode_log(state, log.rows)
            await self._reach(state, subscriber.places[state.name])
        return chunk

    async def _reach(self, state: ChannelState, place: int) -> None:
        """Have the tail end no earlier than where a reader stands."""
        if place > state.head:
            self._channels.fill(state, place)
            await self._channels.filled(state)

    def _take_sample(self, subscriber: Subscriber) -> None:
        """Note when this reader got the newest event of one of its channels."""
        for state in subscriber.states:
            place = subscriber.places[state.name]
            if state.is_reliable and state.tail and place == state.tail[-1].place:
                self._sampler.take(state.alias, state.name, place)
                return
