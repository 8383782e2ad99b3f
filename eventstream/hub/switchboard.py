"""The hub itself: what it is made of, and what goes on in the background."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
import weakref
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from django.db import InterfaceError, OperationalError

from eventstream import conf, draining, instruments
from eventstream.exceptions import InitialStateError
from eventstream.holders import REPORT_SECONDS, holder_name, report, sign_off
from eventstream.hub.beginnings import Beginnings
from eventstream.hub.buslink import BusLink
from eventstream.hub.channels import Channels
from eventstream.hub.log import Log
from eventstream.hub.permissions import Permissions
from eventstream.hub.pool import ReaderPool
from eventstream.hub.streams import Streams
from eventstream.hub.subscribers import Subscriber
from eventstream.latency import Sampler, measure
from eventstream.limits import counts
from eventstream.reading import Reader
from eventstream.rows import LogEvent, OutboxRow
from eventstream.signals import events_numbered, events_sent_unstored

logger = logging.getLogger(__name__)

_TICK = 1.0
_CUT_OFF_REPORT = 5.0


class Hub:
    """The switchboard of one event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: list[asyncio.Task[None]] = []
        self._pool = ReaderPool(conf.get_options().reader_threads)
        self._bus = BusLink(self) if conf.redis_arguments() is not None else None
        self._log = Log(self._pool, self.receive_kick, self._ask_again)
        self.channels = Channels(self._log, self._bus)
        self._permissions = Permissions(self._pool, self.channels.get, self._spawn)
        self._sampler = Sampler()
        beginnings = Beginnings(self._pool)
        self._streams = Streams(self._log, self.channels, beginnings, self._sampler)
        self._look_soon = {
            using: asyncio.Event() for using in conf.get_options().databases
        }
        self._name = holder_name()
        self._reported_at = 0.0
        self._cut_off_count = 0
        self._is_ending = False
        self.is_closed = False

    # --- streams

    async def stream(self, reader: Reader) -> AsyncIterator[bytes]:
        """Yield a stream's bytes, for as long as the client stays."""
        subscriber = self.enter(reader)
        try:
            while not subscriber.is_over:
                yield await self.advance(subscriber)
        except (OperationalError, InterfaceError) as error:
            self.count_cut_off(error)
        finally:
            self.leave(subscriber)

    def count_cut_off(self, error: Exception) -> None:
        """Note that a stream ends because its database cannot be asked: clients come back.

        They do so together, and again and again: one line for all of some seconds.
        """
        self._cut_off_count += 1
        if self._cut_off_count == 1:
            self._loop.call_later(_CUT_OFF_REPORT, self._report_cut_off, str(error))

    def _report_cut_off(self, error: str) -> None:
        logger.warning(
            "The database cannot be read (%s). In %.0f s that has ended %s streams, whose "
            "clients come back for what they have missed",
            error.strip(), _CUT_OFF_REPORT, self._cut_off_count,
        )  # fmt: skip
        self._cut_off_count = 0

    def enter(self, reader: Reader) -> Subscriber:
        """Take in a stream. It must leave."""
        self._start()
        reliable = reader.reliable
        states = [
            self.channels.add(name, is_reliable=name in reliable)
            for name in reader.channels
        ]
        subscriber = Subscriber(reader, states)
        for state in states:
            state.subscribers.add(subscriber)
        if self._is_ending:
            subscriber.leave()
        return subscriber

    def leave(self, subscriber: Subscriber) -> None:
        """Forget a stream."""
        for state in subscriber.states:
            state.subscribers.discard(subscriber)
            state.idle_since = time.monotonic()

    def advance(self, subscriber: Subscriber) -> Coroutine[Any, Any, bytes]:
        """Wait for a stream's next bytes: see `Streams.advance`. The first open it."""
        if subscriber.is_begun:
            return self._streams.advance(subscriber)
        return self._begin(subscriber)

    async def _begin(self, subscriber: Subscriber) -> bytes:
        subscriber.is_begun = True
        try:
            await asyncio.gather(*map(self.channels.join, subscriber.states))
            self._permissions.begin(subscriber, self._log.heard_since)
            return (await self._streams.open(subscriber)).encode()
        except InitialStateError:
            subscriber.is_over = True  # it is logged; the client comes back
            return b""

    def _ask_again(self) -> None:
        """Ask for streams that began before the hub has heard of a database's kicks.

        None of their channels is in it, but a kick may be sent `using` it.
        """
        for subscriber in self.channels.subscribers():
            if subscriber.places:  # the others ask as they begin
                self._permissions.begin(subscriber, self._log.heard_since)

    # --- what the bus brings

    def receive(self, name: str, events: list[LogEvent]) -> None:
        """Take events of a reliable channel."""
        self.channels.receive(name, events)

    def receive_unstored(self, name: str, events: list[LogEvent]) -> None:
        """Take best-effort events."""
        self.channels.receive_unstored(name, events)

    def receive_kick(self, channel: str, user_id: str) -> None:
        """Take a withdrawn permission: what follows it is not for the user any more."""
        self._permissions.receive_kick(channel, user_id)

    def bus_is_whole(self) -> None:
        """Find what was published while the connection was down."""
        self._spawn(self._look_again())

    async def _look_again(self) -> None:
        with contextlib.suppress(OperationalError, InterfaceError):
            await self.look(is_full=True)

    # --- background

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(coroutine)
        self._tasks.append(task)
        task.add_done_callback(self._tasks.remove)
        return task

    def _start(self) -> None:
        if self._tasks:
            return
        draining.listen(self)
        events_numbered.connect(self._on_numbered)
        events_sent_unstored.connect(self._on_unstored)
        for using in self._look_soon:
            self._spawn(self._look_loop(using))
        self._spawn(self._tick_loop())
        if self._bus is not None:
            self._spawn(self._bus.run())

    def hear_end(self) -> None:
        """The process is to end: let each stream end after a while of its own."""
        self._call_soon(self._end_streams)

    def _end_streams(self) -> None:
        self._is_ending = True
        subscribers = self.channels.subscribers()
        for subscriber in subscribers:
            delay = draining.draw_delay(
                len(subscribers), at_most=conf.get_options().drain_seconds
            )
            self._loop.call_later(delay, subscriber.leave)
        if subscribers:
            logger.info("Ending %s streams: the process stops", len(subscribers))

    def _on_numbered(self, using: str, partition: int, **_: object) -> None:
        if using in self._look_soon:
            self._call_soon(self._look_soon[using].set)

    def _on_unstored(self, rows: list[OutboxRow], **_: object) -> None:
        if self._bus is None:
            for row in rows:
                event = LogEvent(0, row.type, row.data, row.skip_users)
                self._call_soon(self.receive_unstored, row.channel, [event])

    def _call_soon(self, callback: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            self._loop.call_soon_threadsafe(callback, *args)

    async def _look_loop(self, using: str) -> None:
        options = conf.get_options()
        interval = options.poll_interval
        if self._bus is None:
            interval = options.poll_interval_without_bus
        while True:
            try:
                await self._look(using)
            except (OperationalError, InterfaceError) as error:
                logger.warning("Cannot look at the log of %s: %s", using, error)
            except Exception:
                logger.exception("Looking at the log failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await self._look_soon[using].wait()
            self._look_soon[using].clear()

    async def look(self, *, is_full: bool = False) -> None:
        """Look at the log: number what is stale, find what the bus did not bring.

        Args:
            is_full: Look at every channel, not only where positions have moved.

        Raises:
            OperationalError, InterfaceError: A database is away. The others were looked at.
        """
        looks = [self._look(using, is_full=is_full) for using in self._look_soon]
        for failure in await asyncio.gather(*looks, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _look(self, using: str, *, is_full: bool = False) -> None:
        heads, moved = await self._log.look(using)
        await self.channels.look(using, None if is_full else moved)
        self._log.done(using, heads)

    async def _tick_loop(self) -> None:
        """Keep-alives, permissions asked again, and channels that nobody reads."""
        while True:
            await asyncio.sleep(_TICK)
            try:
                await self._tick(time.monotonic())
            except Exception:
                logger.exception("What the hub does each second failed")
            if not self.channels:
                self.is_closed = True  # now, so that whoever comes next gets a new hub
                self._spawn(self.close())
                return

    async def _tick(self, now: float) -> None:
        subscribers = self.channels.subscribers()
        for subscriber in subscribers:
            if now - subscriber.written_at >= conf.get_options().keep_alive:
                subscriber.is_due = True
                subscriber.wake()
        if now - self._reported_at >= REPORT_SECONDS:
            self._reported_at = now
            self._spawn(self._report(len(subscribers)))
        if counts.is_behind():
            self._spawn(asyncio.to_thread(counts.publish_in_thread))
        self._permissions.tick(now, subscribers)
        await self.channels.leave_idle(now)

    async def _report(self, stream_count: int) -> None:
        readers = {state.name: len(state.subscribers) for state in self.channels}
        call = functools.partial(
            report, self._name, stream_count=stream_count, readers=readers
        )
        await self._pool.run(call)
        deliveries = self._sampler.drain()
        if deliveries and instruments.active.is_enabled:
            for seconds in await self._pool.run(functools.partial(measure, deliveries)):
                instruments.active.delivered(seconds)

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
        await self._pool.run(functools.partial(sign_off, self._name))
        await self._pool.close()


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
