"""The hub's connection to the Redis bus, renewed whenever it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from typing import Any, Protocol

import redis
import redis.asyncio

from eventstream import conf
from eventstream.redisclients import connect_async
from eventstream.rows import LogEvent, split_users
from eventstream.targets.bus import decode, event_topic, kick_topic

logger = logging.getLogger(__name__)

_PING = 5.0
_SILENCE = 15.0
_CONFIRM = 2.0


class Receiver(Protocol):
    """Who takes what comes over the bus: the hub."""

    def receive(self, name: str, events: list[LogEvent]) -> None: ...
    def receive_unstored(self, name: str, events: list[LogEvent]) -> None: ...
    def receive_kick(self, channel: str, user_id: str) -> None: ...
    def bus_is_whole(self) -> None:
        """Every subscription is confirmed; what came before that may be lost."""


class BusLink:
    """One connection, for all topics of a hub."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
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
        try:
            async with asyncio.timeout(_CONFIRM):
                if self._is_up:
                    await self._send("subscribe", topic)
                await confirmed.wait()
        except TimeoutError:
            if not confirmed.is_set():  # in this very moment
                self._unconfirmed.add(topic)  # look again once it is

    async def unsubscribe(self, topic: str) -> None:
        """Unsubscribe: nobody reads it any more."""
        self._topics.discard(topic)
        self._waiting.pop(topic, None)
        self._await_no_more(topic)
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
            except Exception:
                logger.exception("Reading the bus failed")
            finally:
                self._is_up = False
                if client is not None:
                    with contextlib.suppress(Exception):
                        await self._pubsub.aclose()
                        await client.aclose()
            delay = 0.2 if not self._unconfirmed else min(delay * 2, 5.0)
            await asyncio.sleep(delay)

    async def _read(self) -> None:
        heard_at = asked_at = time.monotonic()
        while True:
            message = await self._pubsub.get_message(
                ignore_subscribe_messages=False, timeout=_PING
            )
            now = time.monotonic()
            if message is not None:
                heard_at = now
            if now - asked_at >= _PING:
                if now - heard_at > _SILENCE:
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
            elif kind == "message":
                try:
                    self._take(topic, message["data"])
                except Exception:
                    # Whoever else publishes here ends nobody's stream. What it may have
                    # stood for is found in the log.
                    logger.exception("Cannot take a message of %s", topic)

    def _confirm(self, topic: str) -> None:
        waiting = self._waiting.get(topic)
        if waiting is not None:
            waiting.set()
        self._await_no_more(topic)

    def _await_no_more(self, topic: str) -> None:
        if topic in self._unconfirmed:
            self._unconfirmed.discard(topic)
            if not self._unconfirmed:
                # Not before: what is published between a look and its subscription
                # would be seen by neither.
                self._receiver.bus_is_whole()

    def _take(self, topic: str, payload: bytes) -> None:
        prefix = event_topic("")
        if topic == kick_topic():
            channel, user_id = json.loads(payload)
            self._receiver.receive_kick(channel, user_id)
        elif topic.startswith(prefix):
            self._receive(topic.removeprefix(prefix), payload)

    def _receive(self, channel: str, payload: bytes) -> None:
        stored, unstored = [], []
        for eid, event_type, data, skip_users, *kicked in decode(payload):
            # Before any event of the message: the bus may have lost word of the kick.
            for user_id in split_users(kicked[0] if kicked else ""):
                self._receiver.receive_kick(channel, user_id)
            if eid is None:
                unstored.append(LogEvent(0, event_type, data, skip_users))
            else:
                stored.append(LogEvent(eid, event_type, data, skip_users))
        if stored:
            self._receiver.receive(channel, stored)
        if unstored:
            self._receiver.receive_unstored(channel, unstored)
