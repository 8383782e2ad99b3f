"""The direct hold: streams that this process keeps open itself.

One hub for each event loop. It keeps a short tail of each channel that somebody reads, fed
by the bus and, in case that is silent, by a look at the log every few seconds. A
subscriber is little more than a position: whenever it can write it takes everything above
it, from the tail or, if that no longer reaches back so far, from the log. So a slow client
costs no memory, nothing is ever dropped for it, and no client has a database connection:
the log is read by a few threads.

Order of joining a channel: subscribe to the bus and see that confirmed, read the log, then
go live. What comes over the bus is taken only if it follows what the tail ends with; any gap
is filled from the log, and with it come the kicks that this process has not heard of. The
first event after a kick names the kicked. So none that follows a kick is ever sent to them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import redis
import redis.asyncio
from django.db import InterfaceError, OperationalError, connections

from eventstream import conf, draining, instruments, sse
from eventstream.channelmanager import (
    asks_permissions,
    check_reader,
    is_operator,
)
from eventstream.exceptions import ChannelPermissionError, InitialStateError
from eventstream.holders import REPORT_SECONDS, holder_name, report, sign_off
from eventstream.initial import (
    encode_initial_state,
    has_initial_states,
    read_initial_states,
)
from eventstream.latency import Sampler, measure
from eventstream.limits import counts
from eventstream.positions import format_position, quote_channel
from eventstream.reading import Reader, number_stale
from eventstream.signals import events_numbered, events_sent_unstored
from eventstream.storage import (
    ChannelLog,
    LogEvent,
    OutboxRow,
    alias_of,
    get_storage,
    is_skipped,
    partition_of,
    split_users,
)
from eventstream.targets.bus import connect_async, decode, event_topic, kick_topic

logger = logging.getLogger(__name__)

T = TypeVar("T")

IDLE_SECONDS = 60.0
"""How long a channel that nobody reads is kept up to date: reconnecting is then cheap."""

_TICK = 1.0
_LONGEST_DELAY = 5.0
# Longer than it takes from a permission check to the stream's start.
_KICK_MEMORY = 60.0
_NAMES_PER_QUERY = 500
_BUS_PING = 5.0
_BUS_SILENCE = 15.0
_BUS_CONFIRM = 2.0


class TailEvent:
    """An event in memory, encoded once for all readers.

    `place` is its event id; of a best-effort event, a number of this process.
    """

    __slots__ = ("body", "place", "size", "skip_users")

    def __init__(self, place: int, event: LogEvent) -> None:
        self.place = place
        self.body = sse.encode_data(event.type, event.data) + "\n"
        self.skip_users = event.skip_users
        self.size = len(self.body)


class ChannelState:
    """A channel as this process knows it: a tail without gaps, ending at `head`."""

    def __init__(self, name: str, *, is_reliable: bool) -> None:
        self.name = name
        self.quoted = quote_channel(name)
        self.is_reliable = is_reliable
        self.alias = ""
        self.head = 0
        self.wanted = 0
        self.tail: deque[TailEvent] = deque()
        self.tail_bytes = 0
        self.subscribers: set[Subscriber] = set()
        self.idle_since = time.monotonic()
        self.joined: asyncio.Task[None] | None = None
        self.filling: asyncio.Task[None] | None = None
        self.reads: dict[int, asyncio.Task[ChannelLog]] = {}
        self.beginnings: dict[str, asyncio.Task[tuple[int, str]]] = {}
        self._chunk: tuple[int, int, bytes] | None = None

    @property
    def start(self) -> int:
        """The place before the tail's first event: what the tail can serve from."""
        return self.tail[0].place - 1 if self.tail else self.head

    def extend(self, events: Iterable[LogEvent]) -> None:
        """Take the events that follow the head, and wake the readers."""
        options = conf.get_options()
        before = self.head
        for event in events:
            if event.eid == self.head + 1:
                item = TailEvent(event.eid, event)
                self.tail.append(item)
                self.tail_bytes += item.size
                self.head = event.eid
        while self.tail and (
            len(self.tail) > options.queue_length
            or self.tail_bytes > options.queue_bytes
        ):
            self.tail_bytes -= self.tail.popleft().size
        if self.head > before:
            self.wake()

    def prepend(self, events: list[LogEvent]) -> None:
        """Put a page that was read from the log before the tail, if it fits and joins.

        When a thousand readers come back at once, the first one's page serves them all.
        """
        options = conf.get_options()
        older = [event for event in events if event.eid <= self.start]
        if not older or older[-1].eid != self.start:
            return
        for event in reversed(older):
            item = TailEvent(event.eid, event)
            if (
                len(self.tail) >= options.queue_length
                or self.tail_bytes + item.size > options.queue_bytes
            ):
                return
            self.tail.appendleft(item)
            self.tail_bytes += item.size

    def after(self, place: int) -> list[TailEvent]:
        """Return the tail above a place that is not before its start."""
        count = min(self.head - place, len(self.tail))
        if count <= 0:
            return []
        if count == len(self.tail):
            return list(self.tail)
        return [self.tail[index] for index in range(-count, 0)]

    def chunk_after(self, place: int) -> bytes:
        """Return the same encoded with ids, for readers of this channel alone.

        Most readers stand at the same place; the text is made once for all of them.
        """
        if self._chunk is not None and self._chunk[:2] == (place, self.head):
            return self._chunk[2]
        parts = []
        for item in self.after(place):
            prefix = f"id: {self.quoted}:{item.place}\n" if self.is_reliable else ""
            parts.append(prefix + item.body)
        chunk = "".join(parts).encode()
        self._chunk = (place, self.head, chunk)
        return chunk

    def wake(self) -> None:
        """Tell every reader that there is something above its position."""
        for subscriber in self.subscribers:
            subscriber.wake()


class Subscriber:
    """One open stream: a position in each channel, and a way to be woken."""

    def __init__(self, reader: Reader, states: list[ChannelState]) -> None:
        self.reader = reader
        self.states = states
        self.places: dict[str, int] = {}
        self.unbegun: set[str] = set()  # channels whose initial state is yet to be sent
        self.error = ""
        self.check_count = 0
        self.written_at = time.monotonic()
        self.is_due = False
        self.is_leaving = False
        self._event = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return any(self in state.subscribers for state in self.states)

    def wake(self) -> None:
        self._event.set()

    def leave(self) -> None:
        """End the stream after what is being written; the client comes back elsewhere."""
        self.is_leaving = True
        self.wake()

    async def wait(self) -> None:
        await self._event.wait()
        self._event.clear()

    async def wait_until_checked(self) -> None:
        """Wait while it is being asked whether the user may read on."""
        while self.check_count:
            await self.wait()

    def event_id(self) -> str:
        """Return the position in all reliable channels, as Last-Event-ID has it.

        Without those that are unbegun: a client that is cut off must come back for them.
        """
        return format_position(
            {
                s.name: self.places[s.name]
                for s in self.states
                if s.is_reliable and s.name not in self.unbegun
            }
        )

    def collect(self) -> tuple[bytes, list[ChannelState]]:
        """Return all that the tails have for this reader, and channels it is behind in.

        Moves the position; whoever calls must write what it gets.
        """
        parts: list[bytes] = []
        behind = []
        for state in self.states:
            place = self.places[state.name]
            if place == state.head:
                continue
            if place > state.head or place < state.start:
                if state.is_reliable:
                    behind.append(state)
                    continue
                place = state.start  # best-effort: what fell out of the tail is lost
            parts.append(self._encode(state, place))
            self.places[state.name] = state.head
        return b"".join(parts), behind

    def _encode(self, state: ChannelState, place: int) -> bytes:
        if len(self.states) == 1 and not self.reader.user_id:
            return state.chunk_after(place)
        items = state.after(place)
        if len(self.states) == 1 and not any(item.skip_users for item in items):
            return state.chunk_after(place)
        return self.encode_items(state, items)

    def encode_items(self, state: ChannelState, items: Iterable[TailEvent]) -> bytes:
        """Return the items for this reader, each with the position in all channels."""
        parts = []
        for item in items:
            self.places[state.name] = item.place
            if not is_skipped(item.skip_users, self.reader.user_id):
                prefix = f"id: {self.event_id()}\n" if state.is_reliable else ""
                parts.append(prefix + item.body)
        return "".join(parts).encode()


class Hub:
    """The switchboard of one event loop."""

    def __init__(self) -> None:
        options = conf.get_options()
        self._loop = asyncio.get_running_loop()
        self._states: dict[str, ChannelState] = {}
        self._thread_count = options.reader_threads
        self._pool = ThreadPoolExecutor(self._thread_count, "eventstream-reader")
        # One thread less than there are, so that slow states do not hold up the log.
        self._state_slots = asyncio.Semaphore(max(1, self._thread_count - 1))
        self._bus = _Bus(self) if conf.redis_arguments() is not None else None
        self._tasks: list[asyncio.Task[None]] = []
        self._heads: dict[str, dict[int, int]] = {}
        self._looked: asyncio.Task[None] | None = None
        self._kicks: dict[tuple[str, str], float] = {}
        self._poll_soon = asyncio.Event()
        self._checked_at = time.monotonic()
        self._name = holder_name()
        self._reported_at = 0.0
        self._sampler = Sampler()
        self._asking: asyncio.Task[None] | None = None
        self._is_ending = False
        self.is_closed = False

    # --- streams

    async def stream(self, reader: Reader) -> AsyncIterator[bytes]:
        """Yield a stream's bytes, for as long as the client stays."""
        options = conf.get_options()
        self._start()
        reliable = reader.reliable
        states = [self._get_state(name, name in reliable) for name in reader.channels]
        subscriber = Subscriber(reader, states)
        for state in states:
            state.subscribers.add(subscriber)
        if self._is_ending:
            subscriber.leave()
        try:
            await self._look_first()
            await asyncio.gather(*[self._join(state) for state in states])
            if any(
                self._kicks.get((name, reader.user_id), -1.0) >= reader.checked_at
                for name in reader.channels
            ):
                subscriber.check_count += 1
                self._spawn(self._kick([subscriber]))
            for state in states:
                place = state.head
                if state.is_reliable:
                    place = reader.positions.get(state.name, place)
                subscriber.places[state.name] = place
            fresh = [state for state in states if state.name not in reader.positions]
            beginnings = await self._begin(subscriber, fresh)
            if beginnings:
                await subscriber.wait_until_checked()
            opening = sse.encode_preamble(
                options.padding,
                options.retry,
                subscriber.event_id(),
                head=format_position({s.name: s.head for s in states if s.is_reliable}),
                keep_alive=options.keep_alive,
            )
            if not subscriber.error:
                opening += self._encode_beginnings(subscriber, beginnings)
            yield opening.encode()
            is_live = False
            while True:
                await subscriber.wait_until_checked()
                chunk, behind = subscriber.collect()
                is_sample = bool(chunk) and not behind and self._sampler.is_next()
                if behind and is_live:
                    instruments.active.overflow()
                is_live = not behind
                if behind:
                    chunk += await self._catch_up(subscriber, behind)
                    await subscriber.wait_until_checked()
                if subscriber.error:
                    # Alone: what was read may have come after the permission was gone.
                    yield subscriber.error.encode()
                    return
                if not chunk and subscriber.is_due:
                    chunk = sse.KEEP_ALIVE.encode()
                subscriber.is_due = False
                if chunk:
                    yield chunk
                    subscriber.written_at = time.monotonic()
                if is_sample:
                    self._take_sample(subscriber)
                if subscriber.is_leaving:
                    yield sse.FAREWELL.encode()
                    return
                if not chunk and not behind:
                    await subscriber.wait()
        except InitialStateError:
            return  # it is logged; the client comes back
        finally:
            for state in states:
                state.subscribers.discard(subscriber)
                state.idle_since = time.monotonic()

    async def _look_first(self) -> None:
        """Wait until the hub knows how far the log is: later kicks are those above it."""
        if self._looked is None:
            self._looked = self._loop.create_task(self.poll())
        try:
            await asyncio.shield(self._looked)
        except asyncio.CancelledError:
            raise
        except Exception:
            self._looked = None  # the next reader tries again
            raise

    async def _catch_up(
        self, subscriber: Subscriber, states: list[ChannelState]
    ) -> bytes:
        """Read one page of each channel from the log, and move the position behind it."""
        instruments.active.catch_up("hub")
        logs = [
            (state, await self._read_log(state, subscriber.places[state.name]))
            for state in states
        ]
        chunk = b""
        lost = [state for state, log in logs if log.is_reset]
        for state, log in logs:
            if log.is_reset:
                subscriber.places[state.name] = log.last_eid
                if log.last_eid > state.head:
                    self._fill(state, log.last_eid)
                    await self._filled(state)
        if lost:
            instruments.active.reset("hub")
            beginnings = await self._begin(subscriber, lost)
            # Before any event: the ids of those pass over what was lost.
            names = [state.name for state in lost]
            text = sse.encode_reset(names, subscriber.event_id())
            chunk = (text + self._encode_beginnings(subscriber, beginnings)).encode()
        for state, log in logs:
            items = [TailEvent(event.eid, event) for event in log.events]
            chunk += subscriber.encode_items(state, items)
            if subscriber.places[state.name] > state.head:
                self._fill(state, subscriber.places[state.name])
                await self._filled(state)
        return chunk

    async def _begin(
        self, subscriber: Subscriber, states: list[ChannelState]
    ) -> dict[str, str]:
        """Read initial states, and put the reader where each of them leads to.

        The places are known before the states are read: no event is between the two.
        """
        if not states or not has_initial_states():
            return {}
        user_id = subscriber.reader.user_id
        try:
            found = await asyncio.gather(
                *[self._read_state(s, user_id) for s in states]
            )
        except ChannelPermissionError as error:
            subscriber.error = _forbidden(error)
            return {}
        beginnings = {}
        for state, (place, body) in zip(states, found, strict=True):
            if body:
                subscriber.places[state.name] = place
                subscriber.unbegun.add(state.name)
                beginnings[state.name] = body
        return beginnings

    def _encode_beginnings(
        self, subscriber: Subscriber, beginnings: dict[str, str]
    ) -> str:
        parts = []
        for name, body in beginnings.items():
            subscriber.unbegun.discard(name)
            # Where there is no log the position does not move: with its id again, a
            # client would take the state for an event that it has had.
            event_id = subscriber.event_id() if self._states[name].is_reliable else ""
            parts.append(encode_initial_state(body, event_id))
        return "".join(parts)

    async def _read_state(self, state: ChannelState, user_id: str) -> tuple[int, str]:
        """Return a place and the channel's state as of then or later, "" if it has none.

        All of a user's streams that ask at a time share one read, hence its place.
        """
        task = state.beginnings.get(user_id)
        if task is None:
            task = self._loop.create_task(self._ask_state(state, user_id))
            state.beginnings[user_id] = task
            task.add_done_callback(lambda _: state.beginnings.pop(user_id, None))
        return await asyncio.shield(task)

    async def _ask_state(self, state: ChannelState, user_id: str) -> tuple[int, str]:
        async with self._state_slots:
            place = state.head
            read = functools.partial(_read_initial_state, user_id, state.name)
            return place, await self._in_thread(read)

    async def _read_log(self, state: ChannelState, place: int) -> ChannelLog:
        """Read the log after a place; all who ask for the same share one read."""
        task = state.reads.get(place)
        if task is None:
            task = self._loop.create_task(self._read_page(state, place))
            state.reads[place] = task
            task.add_done_callback(lambda _: state.reads.pop(place, None))
        log = await asyncio.shield(task)
        state.prepend(log.events)
        return log

    async def _read_page(self, state: ChannelState, place: int) -> ChannelLog:
        partition = partition_of(state.name)
        known = self._heads[state.alias].get(partition, 0)
        read = functools.partial(
            _read, state.alias, state.name, place, partition, known
        )
        log, kicks = await self._in_thread(read, state.alias)
        for _, _, channel, user_id in kicks:
            self.receive_kick(channel, user_id)
        return log

    async def _in_thread(self, call: Callable[[], T], *aliases: str) -> T:
        return await self._loop.run_in_executor(self._pool, _with_retry, call, aliases)

    # --- channels

    def _get_state(self, name: str, is_reliable: bool) -> ChannelState:
        state = self._states.get(name)
        if state is None:
            state = self._states[name] = ChannelState(name, is_reliable=is_reliable)
        return state

    async def _join(self, state: ChannelState) -> None:
        if state.joined is None:
            state.joined = self._loop.create_task(self._go_live(state))
        try:
            await asyncio.shield(state.joined)
        except asyncio.CancelledError:
            raise
        except Exception:
            state.joined = None  # the next reader tries again
            raise

    async def _go_live(self, state: ChannelState) -> None:
        if self._bus is not None:
            await self._bus.subscribe(event_topic(state.name))
        if not state.is_reliable:
            return
        state.alias = await self._in_thread(functools.partial(alias_of, state.name))
        heads = await self._in_thread(
            functools.partial(get_storage().current_ids, state.alias, [state.name]),
            state.alias,
        )
        state.head = heads[state.name]
        if state.wanted > state.head:
            self._fill(state, state.wanted)

    def receive(self, name: str, events: list[LogEvent]) -> None:
        """Take events of a reliable channel from the bus."""
        state = self._states.get(name)
        if state is None:
            return
        if state.joined is None or not state.joined.done():
            # The head may have been read before this event was there: joining looks.
            state.wanted = max(state.wanted, events[-1].eid)
            return
        state.extend(events)
        if events[-1].eid > state.head:
            self._fill(state, events[-1].eid)

    def receive_unstored(self, name: str, events: list[LogEvent]) -> None:
        """Take best-effort events: they get places of this process, and no id."""
        state = self._states.get(name)
        if state is not None and not state.is_reliable:
            head = state.head
            state.extend(
                [event._replace(eid=head + n) for n, event in enumerate(events, 1)]
            )

    def _fill(self, state: ChannelState, wanted: int) -> None:
        """Read the log from the head on until it reaches an event id. Once at a time."""
        state.wanted = max(state.wanted, wanted)
        if state.filling is None:
            state.filling = self._loop.create_task(self._fill_tail(state))

    async def _filled(self, state: ChannelState) -> None:
        if state.filling is not None:
            await asyncio.shield(state.filling)

    async def _fill_tail(self, state: ChannelState) -> None:
        try:
            while state.head < state.wanted:
                log = await self._read_log(state, state.head)
                if log.is_reset:
                    # The log was pruned past us: readers will find that out, each for
                    # itself, when it reads from its own position.
                    state.tail.clear()
                    state.tail_bytes = 0
                    state.head = log.last_eid
                    state.wake()
                    return
                if not log.events:
                    return
                state.extend(log.events)
        except (OperationalError, InterfaceError) as error:
            logger.warning("Cannot read the log of %s: %s", state.name, error)
        finally:
            state.filling = None

    # --- permissions

    async def _check_permissions(
        self, subscribers: Collection[Subscriber]
    ) -> list[Subscriber]:
        """Ask the channel manager again, and close the streams that it refuses.

        Returns:
            Those for which it could not be asked: it failed, or the database did.
        """
        unknown: list[Subscriber] = []
        groups: dict[tuple[str, tuple[str, ...]], list[Subscriber]] = {}
        for subscriber in subscribers:
            key = (subscriber.reader.user_id, subscriber.reader.channels)
            groups.setdefault(key, []).append(subscriber)
        for (user_id, channels), group in groups.items():
            call = functools.partial(_ask_permission, user_id, channels)
            try:
                error = await self._in_thread(call, *connections)
            except Exception:
                logger.exception("Cannot ask for permissions again")
                unknown += group
                continue
            if error:
                for subscriber in group:
                    subscriber.error = error
                    subscriber.wake()
        return unknown

    async def _check_in_turn(self, subscribers: Collection[Subscriber]) -> None:
        if await self._check_permissions(subscribers):
            self._checked_at = -math.inf  # not in a minute: at the next tick

    def receive_kick(self, channel: str, user_id: str) -> None:
        """Take a withdrawn permission: what follows it is not for the user any more."""
        instruments.active.kick()
        self._kicks[channel, user_id] = time.monotonic()
        state = self._states.get(channel)
        if state is None:
            return
        mine = [s for s in state.subscribers if s.reader.user_id == user_id]
        for subscriber in mine:
            # At once, before asking: the next event may be in the same message.
            subscriber.check_count += 1
        if mine:
            self._spawn(self._kick(mine))

    async def _kick(self, subscribers: list[Subscriber]) -> None:
        """Ask for these until there is an answer; till then they are sent nothing."""
        delay = _TICK
        while subscribers:
            unknown = await self._check_permissions(subscribers)
            for subscriber in subscribers:
                if subscriber not in unknown:
                    subscriber.check_count -= 1
                    subscriber.wake()
            subscribers = [s for s in unknown if s.is_open]
            if subscribers:
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)
        return task

    # --- background

    def _start(self) -> None:
        if self._tasks:
            return
        draining.listen(self)
        events_numbered.connect(self._on_numbered)
        events_sent_unstored.connect(self._on_unstored)
        self._spawn(self._poll_loop())
        self._spawn(self._tick_loop())
        if self._bus is not None:
            self._spawn(self._bus.run())

    def hear_end(self) -> None:
        """The process is to end: let each stream end after a while of its own."""
        self._call_soon(self._end_streams)

    def _end_streams(self) -> None:
        self._is_ending = True
        subscribers = {s for state in self._states.values() for s in state.subscribers}
        for subscriber in subscribers:
            delay = draining.draw_delay(
                len(subscribers), at_most=conf.get_options().drain_seconds
            )
            self._loop.call_later(delay, subscriber.leave)
        if subscribers:
            logger.info("Ending %s streams: the process stops", len(subscribers))

    def _on_numbered(self, using: str, partition: int, **_: object) -> None:
        self._call_soon(self._poll_soon.set)

    def _on_unstored(self, rows: list[OutboxRow], **_: object) -> None:
        if self._bus is None:
            for row in rows:
                event = LogEvent(0, row.type, row.data, row.skip_users)
                self._call_soon(self.receive_unstored, row.channel, [event])

    def _call_soon(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(callback, *args)

    async def _poll_loop(self) -> None:
        options = conf.get_options()
        interval = options.poll_interval
        if self._bus is None:
            interval = options.poll_interval_without_bus
        while True:
            try:
                await self.poll()
            except (OperationalError, InterfaceError) as error:
                logger.warning("Cannot look at the log: %s", error)
            except Exception:
                logger.exception("Looking at the log failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._poll_soon.wait()
            self._poll_soon.clear()

    async def poll(self, *, is_full: bool = False) -> None:
        """Look at the log: number what is stale, find what the bus did not bring.

        Args:
            is_full: Look at every channel, not only where positions have moved.
        """
        for using in conf.get_options().databases:
            known = self._heads.get(using)
            heads, kicks = await self._in_thread(
                functools.partial(_look, using, known), using
            )
            self._heads[using] = heads
            for _, _, channel, user_id in kicks:
                self.receive_kick(channel, user_id)
            moved = {p for p, head in heads.items() if head != (known or {}).get(p)}
            names = [
                state.name
                for state in self._states.values()
                if state.alias == using
                and (is_full or known is None or partition_of(state.name) in moved)
            ]
            for first in range(0, len(names), _NAMES_PER_QUERY):
                some = names[first : first + _NAMES_PER_QUERY]
                last_eids = await self._in_thread(
                    functools.partial(get_storage().current_ids, using, some), using
                )
                for name, last_eid in last_eids.items():
                    state = self._states.get(name)
                    if state is not None and last_eid > state.head:
                        self._fill(state, last_eid)

    async def _tick_loop(self) -> None:
        """Keep-alives, permissions asked again, and channels that nobody reads."""
        while True:
            await asyncio.sleep(_TICK)
            now = time.monotonic()
            options = conf.get_options()
            subscribers = {
                s for state in self._states.values() for s in state.subscribers
            }
            for subscriber in subscribers:
                if now - subscriber.written_at >= options.keep_alive:
                    subscriber.is_due = True
                    subscriber.wake()
            if now - self._reported_at >= REPORT_SECONDS:
                self._reported_at = now
                self._spawn(self._report(len(subscribers)))
            if counts.is_behind():
                self._spawn(asyncio.to_thread(counts.publish_in_thread))
            is_asking = self._asking is not None and not self._asking.done()
            if now - self._checked_at >= options.permission_interval and not is_asking:
                self._checked_at = now
                if asks_permissions() or any(
                    is_operator(s.reader.user_id) for s in subscribers
                ):
                    self._asking = self._spawn(self._check_in_turn(subscribers))
            for key, heard_at in list(self._kicks.items()):
                if now - heard_at > _KICK_MEMORY:
                    del self._kicks[key]
            idle = [
                state
                for state in self._states.values()
                if not state.subscribers and now - state.idle_since > IDLE_SECONDS
            ]
            for state in idle:
                if state.subscribers:
                    continue  # somebody came while another was being unsubscribed
                del self._states[state.name]
                if self._bus is not None:
                    await self._bus.unsubscribe(event_topic(state.name))
            if not self._states:
                self.is_closed = True  # now, so that whoever comes next gets a new hub
                self._spawn(self.close())
                return

    async def _report(self, stream_count: int) -> None:
        readers = {s.name: len(s.subscribers) for s in self._states.values()}
        call = functools.partial(
            report, self._name, stream_count=stream_count, readers=readers
        )
        await self._in_thread(call)
        deliveries = self._sampler.drain()
        if deliveries and instruments.active.is_enabled:
            for seconds in await self._in_thread(
                functools.partial(measure, deliveries)
            ):
                instruments.active.delivered(seconds)

    def _take_sample(self, subscriber: Subscriber) -> None:
        """Note when this reader got the newest event of one of its channels."""
        for state in subscriber.states:
            if state.is_reliable and state.tail:
                self._sampler.take(state.alias, state.name, state.tail[-1].place)
                return

    async def close(self) -> None:
        """Stop: nobody reads any more. Whoever comes next gets a new hub."""
        self.is_closed = True
        events_numbered.disconnect(self._on_numbered)
        events_sent_unstored.disconnect(self._on_unstored)
        current = asyncio.current_task()
        tasks = {task for task in self._tasks if task is not current}
        while tasks:
            for task in tasks:
                task.cancel()
            # Again and again: redis-py can swallow a cancellation that comes together
            # with a message.
            _, tasks = await asyncio.wait(tasks, timeout=0.5)
        await self._in_thread(functools.partial(sign_off, self._name))
        await asyncio.to_thread(self._close_pool)

    def _close_pool(self) -> None:
        """Close each reader thread's connections, which only that thread can."""
        barrier = threading.Barrier(self._thread_count)

        def close_mine() -> None:
            connections.close_all()
            # A thread that waits here takes no second turn before the others had one.
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(5)

        for _ in range(self._thread_count):
            self._pool.submit(close_mine)
        self._pool.shutdown()


class _Bus:
    """The hub's one connection to the Redis bus, renewed whenever it breaks."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._topics: set[str] = {kick_topic()}
        self._pubsub: Any = None
        self._waiting: dict[str, asyncio.Event] = {}
        self._unconfirmed: set[str] = set()
        self._is_up = False
        self._lock = asyncio.Lock()

    async def subscribe(self, topic: str) -> None:
        """Subscribe and wait until the server has confirmed it.

        Where the bus is down the stream opens all the same: the hub looks at the log.
        """
        self._topics.add(topic)
        confirmed = self._waiting.setdefault(topic, asyncio.Event())
        if self._is_up:
            await self._send("subscribe", topic)
        try:
            async with asyncio.timeout(_BUS_CONFIRM):
                await confirmed.wait()
        except TimeoutError:
            self._unconfirmed.add(topic)  # look again once it is

    async def unsubscribe(self, topic: str) -> None:
        self._topics.discard(topic)
        self._unconfirmed.discard(topic)
        self._waiting.pop(topic, None)
        if self._is_up:
            await self._send("unsubscribe", topic)

    async def _send(self, command: str, *topics: str) -> None:
        try:
            async with self._lock:
                await getattr(self._pubsub, command)(*topics)
        except (redis.RedisError, OSError) as error:
            logger.warning("The bus does not take %s: %s", command, error)

    async def run(self) -> None:
        """Read messages; on any failure connect again, and look at every channel."""
        delay = 0.2
        while True:
            client = None
            try:
                arguments = conf.redis_arguments()
                assert arguments is not None  # noqa: S101  there is a bus, or no _Bus
                client = connect_async(arguments)
                self._pubsub = client.pubsub()
                topics = set(self._topics)
                self._unconfirmed = set(topics)
                await self._pubsub.subscribe(*topics)
                self._is_up = True
                if late := self._topics - topics:  # came while it was connecting
                    await self._send("subscribe", *late)
                await self._read()
            except (redis.RedisError, OSError, TimeoutError) as error:
                logger.warning("Lost the bus: %s", error)
            finally:
                self._is_up = False
                if client is not None:
                    with contextlib.suppress(redis.RedisError, OSError):
                        await self._pubsub.aclose()
                        await client.aclose()
            delay = 0.2 if not self._unconfirmed else min(delay * 2, 5.0)
            await asyncio.sleep(delay)

    async def _look_again(self) -> None:
        """Find what was published while the connection was down."""
        with contextlib.suppress(OperationalError, InterfaceError):
            await self._hub.poll(is_full=True)

    async def _read(self) -> None:
        prefix = event_topic("")
        heard_at = asked_at = time.monotonic()
        while True:
            message = await self._pubsub.get_message(
                ignore_subscribe_messages=False, timeout=_BUS_PING
            )
            now = time.monotonic()
            if message is not None:
                heard_at = now
            if now - asked_at >= _BUS_PING:
                if now - heard_at > _BUS_SILENCE:
                    raise TimeoutError("no answer to pings")
                asked_at = now
                async with self._lock:
                    await self._pubsub.ping()
            if message is None:
                continue
            kind, topic = message["type"], message["channel"]
            topic = topic.decode() if isinstance(topic, bytes) else topic or ""
            if kind == "subscribe":
                self._confirm(topic)
            elif kind == "message" and topic == kick_topic():
                channel, user_id = json.loads(message["data"])
                self._hub.receive_kick(channel, user_id)
            elif kind == "message" and topic.startswith(prefix):
                self._receive(topic.removeprefix(prefix), message["data"])

    def _confirm(self, topic: str) -> None:
        waiting = self._waiting.get(topic)
        if waiting is not None:
            waiting.set()
        if topic in self._unconfirmed:
            self._unconfirmed.discard(topic)
            if not self._unconfirmed:
                # Not before: what is published between a look and its subscription
                # would be seen by neither.
                self._hub._spawn(self._look_again())

    def _receive(self, channel: str, payload: bytes) -> None:
        stored, unstored = [], []
        for eid, event_type, data, skip_users, *kicked in decode(payload):
            # Before any event of the message: the bus may have lost word of the kick.
            for user_id in split_users(kicked[0] if kicked else ""):
                self._hub.receive_kick(channel, user_id)
            if eid is None:
                unstored.append(LogEvent(0, event_type, data, skip_users))
            else:
                stored.append(LogEvent(eid, event_type, data, skip_users))
        if stored:
            self._hub.receive(channel, stored)
        if unstored:
            self._hub.receive_unstored(channel, unstored)


_hubs: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Hub] = (
    weakref.WeakKeyDictionary()
)


def get_hub() -> Hub:
    """Return the hub of the running event loop."""
    loop = asyncio.get_running_loop()
    hub = _hubs.get(loop)
    if hub is None or hub.is_closed:
        hub = _hubs[loop] = Hub()
    return hub


def _with_retry(call: Callable[[], T], aliases: tuple[str, ...]) -> T:
    """Run in a reader thread, whose connections stay open; once more if one was cut."""
    try:
        return call()
    except (OperationalError, InterfaceError):
        for alias in aliases or connections:
            connections[alias].close()
        return call()


def _look(
    using: str, known: dict[int, int] | None
) -> tuple[dict[int, int], list[tuple[int, int, str, str]]]:
    storage = get_storage()
    number_stale(storage, using)
    heads = storage.heads(using)
    if known is None:
        return heads, []
    moved = {p: known.get(p, 0) for p, head in heads.items() if head != known.get(p)}
    return heads, storage.kicks_after(using, moved)


def _read(
    using: str, channel: str, place: int, partition: int, known: int
) -> tuple[ChannelLog, list[tuple[int, int, str, str]]]:
    """Return a page of the log, and the kicks above a position of the channel's partition.

    In this order: whatever kick comes before an event of the page is among those returned.
    """
    storage = get_storage()
    log = storage.read_after(using, channel, place, limit=conf.get_options().page_size)
    return log, storage.kicks_after(using, {partition: known}) if log.events else []


def _read_initial_state(user_id: str, channel: str) -> str:
    """Return a channel's initial state, "" if it has none. Permission is asked after it."""
    body = read_initial_states(user_id, [channel]).get(channel, "")
    if body and (asks_permissions() or is_operator(user_id)):
        check_reader(user_id, [channel])
    return body


def _ask_permission(user_id: str, channels: tuple[str, ...]) -> str:
    """Return the stream-error that a refusal calls for, or ""."""
    try:
        check_reader(user_id, channels)
    except ChannelPermissionError as error:
        return _forbidden(error)
    return ""


def _forbidden(error: ChannelPermissionError) -> str:
    return sse.encode_error("forbidden", str(error), {"channels": error.channels})
