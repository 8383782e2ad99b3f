"""The channels that somebody reads in this process, and how they are kept up to date.

Order of joining one: subscribe to the bus and see that confirmed, read the log, then go
live. What comes over the bus is taken only if it follows what the tail ends with; any gap
is filled from the log.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator

from django.db import InterfaceError, OperationalError

from eventstream.hub.buslink import BusLink
from eventstream.hub.log import Log
from eventstream.hub.subscribers import Subscriber
from eventstream.hub.tails import ChannelState, retrieve
from eventstream.rows import LogEvent, partition_of
from eventstream.storage import alias_by_router
from eventstream.targets.bus import event_topic

logger = logging.getLogger(__name__)

IDLE_SECONDS = 60.0
"""How long a channel that nobody reads is kept up to date: reconnecting is then cheap."""

MOST_IDLE = 10_000
"""How many, as a client may ask for any and be gone: 20 MB, and those with a tail its size."""

_NAMES_PER_QUERY = 500


class Channels:
    """The channels of one hub, by name."""

    def __init__(self, log: Log, bus: BusLink | None) -> None:
        self._log = log
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._states: dict[str, ChannelState] = {}

    def __iter__(self) -> Iterator[ChannelState]:
        return iter(self._states.values())

    def __len__(self) -> int:
        return len(self._states)

    def __getitem__(self, name: str) -> ChannelState:
        return self._states[name]

    def get(self, name: str) -> ChannelState | None:
        """Return a channel that somebody reads, or read lately."""
        return self._states.get(name)

    def subscribers(self) -> set[Subscriber]:
        """Return all streams of the hub."""
        return {s for state in self for s in state.subscribers}

    def add(self, name: str, *, is_reliable: bool) -> ChannelState:
        """Return a channel, a new one if nobody read it so far."""
        state = self._states.get(name)
        if state is None:
            state = self._states[name] = ChannelState(name, is_reliable=is_reliable)
        return state

    async def join(self, state: ChannelState) -> None:
        """Wait until the channel is live."""
        if state.joined is None:
            state.joined = self._loop.create_task(self._go_live(state))
            state.joined.add_done_callback(retrieve)
        joined = state.joined
        try:
            await asyncio.shield(joined)
        except asyncio.CancelledError:
            raise
        except Exception:
            # The next reader tries again, unless another does so already: of two joins the
            # later would move the head above a tail that ends before it.
            if state.joined is joined:
                state.joined = None
            raise

    async def _go_live(self, state: ChannelState) -> None:
        if self._bus is not None:
            await self._bus.subscribe(event_topic(state.name))
        if not state.is_reliable:
            await self._log.begin(alias_by_router(state.name))  # which has its kicks
            state.is_live = True
            return
        await self._log.find_alias(state)
        await self._log.begin(state.alias)
        heads = await self._log.current_ids(state.alias, [state.name])
        state.head = heads[state.name]
        state.is_live = True
        if state.wanted > state.head:
            self.fill(state, state.wanted)

    async def leave_idle(self, now: float) -> None:
        """Forget the channels that nobody has read for a while, or the first of too many."""
        idle = [state for state in self if not state.subscribers]
        old = {state for state in idle if now - state.idle_since > IDLE_SECONDS}
        spare = len(idle) - MOST_IDLE
        if spare > len(old):
            live = (state for state in idle if state.is_live)  # not while it is joined
            old.update(sorted(live, key=lambda state: state.idle_since)[:spare])
        for state in old:
            if state.subscribers:
                continue  # somebody came while another was being unsubscribed
            del self._states[state.name]
            if self._bus is not None:
                await self._bus.unsubscribe(event_topic(state.name))

    # --- what is new

    def receive(self, name: str, events: list[LogEvent]) -> None:
        """Take events of a reliable channel from the bus."""
        state = self._states.get(name)
        if state is None:
            return
        # Of a kick that was pruned before it was heard no event tells.
        if state.is_live and self._log.is_known(state.alias):
            state.extend(events)
        if events[-1].eid > state.head:
            self.fill(state, events[-1].eid)

    def receive_unstored(self, name: str, events: list[LogEvent]) -> None:
        """Take best-effort events: they get places of this process, and no id."""
        state = self._states.get(name)
        if state is not None and not state.is_reliable:
            head = state.head
            state.extend(
                [event._replace(eid=head + n) for n, event in enumerate(events, 1)]
            )

    async def look(self, using: str, partitions: set[int] | None) -> None:
        """Find what the bus did not bring, in channels of these partitions, None for all.

        And what is known to be there, and could not be read when it was.
        """
        for each in self:
            if each.alias == using and each.wanted > each.head:
                self.fill(each, each.wanted)
        states = [
            state
            for state in self
            if (state.alias == using or (state.alias and not state.is_alias_known))
            and (partitions is None or partition_of(state.name) in partitions)
        ]
        for first in range(0, len(states), _NAMES_PER_QUERY):
            # Of now: what comes meanwhile, the answer may not have.
            heads = {s.name: s.head for s in states[first : first + _NAMES_PER_QUERY]}
            last_eids = await self._log.current_ids(using, list(heads))
            for name, last_eid in last_eids.items():
                state = self._states.get(name)
                if state is None:
                    continue
                is_its_log = state.alias == using and state.is_alias_known
                if state.is_live and is_its_log and last_eid < heads[name]:
                    logger.warning("The log of %s has lost events", name)
                    state.go_back(last_eid)
                elif last_eid > state.head:
                    self.fill(state, last_eid)

    def fill(self, state: ChannelState, wanted: int) -> None:
        """Read the log from the head on until it reaches an event id. Once at a time.

        Joining does it for a channel that is not live: the head that it reads may be older
        than this event, and a tail that was begun before would not end at it.
        """
        state.wanted = max(state.wanted, wanted)
        if state.filling is None and state.is_live:
            state.filling = self._loop.create_task(self._fill_tail(state))

    async def filled(self, state: ChannelState) -> None:
        """Wait until nothing is being filled."""
        if state.filling is not None:
            await asyncio.shield(state.filling)

    async def _fill_tail(self, state: ChannelState) -> None:
        try:
            while state.head < state.wanted:
                log = await self._log.read(state, state.head)
                if log.is_reset:
                    # The log was pruned past us: readers will find that out, each for
                    # itself, when it reads from its own position.
                    state.start_from(log.last_eid)
                    return
                if not log.rows:
                    return
                state.extend(log.events)
        except (OperationalError, InterfaceError) as error:
            logger.warning("Cannot read the log of %s: %s", state.name, error)
        finally:
            state.filling = None
