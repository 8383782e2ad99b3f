"""Who may read on: asked at an interval, and at once where a permission was withdrawn."""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Collection, Coroutine
from typing import Any

from django.db import connections

from eventstream import conf, instruments, sse
from eventstream.channelmanager import asks_permissions, check_reader, is_operator
from eventstream.exceptions import ChannelPermissionError
from eventstream.hub.pool import ReaderPool
from eventstream.hub.subscribers import Subscriber
from eventstream.hub.tails import ChannelState

logger = logging.getLogger(__name__)

_DELAY = 1.0
_LONGEST_DELAY = 5.0
# Longer than it takes from a permission check to the stream's start.
_KICK_MEMORY = 60.0

Spawn = Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]


class Permissions:
    """The permissions of one hub's streams.

    Args:
        pool: Where the channel manager is asked.
        get_state: Returns a channel that somebody reads, or None.
        spawn: Starts a task that ends with the hub.
    """

    def __init__(
        self,
        pool: ReaderPool,
        get_state: Callable[[str], ChannelState | None],
        spawn: Spawn,
    ) -> None:
        self._pool = pool
        self._get_state = get_state
        self._spawn = spawn
        self._kicks: dict[tuple[str, str], float] = {}
        self._checked_at = time.monotonic()
        self._asking: asyncio.Task[None] | None = None
        # About whom there was no answer the last time, and when to ask about them again.
        self._unknown: list[Subscriber] = []
        self._ask_unknown_at = 0.0

    def receive_kick(self, channel: str, user_id: str) -> None:
        """Take a withdrawn permission: what follows it is not for the user any more."""
        instruments.active.kick()
        self._kicks[channel, user_id] = time.monotonic()
        state = self._get_state(channel)
        if state is None:
            return
        mine = [s for s in state.subscribers if s.reader.user_id == user_id]
        for subscriber in mine:
            # At once, before asking: the next event may be in the same message.
            subscriber.check_count += 1
        if mine:
            self._spawn(self._kick(mine))

    def begin(self, subscriber: Subscriber, heard_since: float) -> None:
        """Ask again for a stream that begins, if a kick came since it was asked about.

        Or may have come: of those before some moment this process has not heard.
        """
        reader = subscriber.reader
        is_unsure = (
            bool(reader.user_id)  # others cannot be kicked
            and reader.checked_at <= heard_since
            and (asks_permissions() or is_operator(reader.user_id))
        )
        if is_unsure or any(
            self._kicks.get((name, reader.user_id), -1.0) >= reader.checked_at
            for name in reader.channels
        ):
            subscriber.check_count += 1
            self._spawn(self._kick([subscriber]))

    async def _kick(self, subscribers: list[Subscriber]) -> None:
        """Ask for these until there is an answer; till then they are sent nothing."""
        delay = _DELAY
        while subscribers:
            unknown = await self._check(subscribers)
            for subscriber in subscribers:
                if subscriber not in unknown:
                    subscriber.check_count -= 1
                    subscriber.wake()
            subscribers = [s for s in unknown if s.is_open]
            if subscribers:
                await asyncio.sleep(delay)
                delay = min(2 * delay, _LONGEST_DELAY)

    def tick(self, now: float, subscribers: Collection[Subscriber]) -> None:
        """Ask again if it is time to; forget old kicks."""
        if self._asking is None or self._asking.done():
            asked: Collection[Subscriber] = ()
            if now - self._checked_at >= conf.get_options().permission_interval:
                self._checked_at = now
                asked = subscribers
            elif now >= self._ask_unknown_at:
                # Not all: there may be one about whom the channel manager always fails.
                asked = self._unknown = [s for s in self._unknown if s.is_open]
            if asked and (
                asks_permissions() or any(is_operator(s.reader.user_id) for s in asked)
            ):
                self._asking = self._spawn(self._check_in_turn(asked))
        for key, heard_at in list(self._kicks.items()):
            if now - heard_at > _KICK_MEMORY:
                del self._kicks[key]

    async def _check_in_turn(self, subscribers: Collection[Subscriber]) -> None:
        self._unknown = await self._check(subscribers)
        self._ask_unknown_at = time.monotonic() + _LONGEST_DELAY  # not in a minute

    async def _check(self, subscribers: Collection[Subscriber]) -> list[Subscriber]:
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
            call = functools.partial(ask_permission, user_id, channels)
            try:
                async with self._pool.slots:
                    error = await self._pool.run(call, *connections)
            except Exception:
                logger.exception("Cannot ask for permissions again")
                unknown += group
                continue
            if error:
                for subscriber in group:
                    subscriber.error = error
                    subscriber.wake()
        return unknown


def ask_permission(user_id: str, channels: tuple[str, ...]) -> str:
    """Return the stream-error that a refusal calls for, or ""."""
    try:
        check_reader(user_id, channels)
    except ChannelPermissionError as error:
        return encode_refusal(error)
    return ""


def encode_refusal(error: ChannelPermissionError) -> str:
    """Return the stream-error of a refusal."""
    return sse.encode_error("forbidden", str(error), {"channels": error.channels})
