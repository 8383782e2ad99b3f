"""The Redis bus: pub/sub to web processes that hold streams themselves."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from json.encoder import encode_basestring as _quote
from typing import Any

import redis

from eventstream import conf
from eventstream.exceptions import PublishUnavailableError
from eventstream.models import EventKind
from eventstream.redisclients import connect
from eventstream.rows import OutboxRow
from eventstream.targets.base import Item, Target

BUS = "bus"


def event_topic(channel: str) -> str:
    """Return the pub/sub channel that carries an event channel."""
    return f"{conf.bus_prefix()}events:{channel}"


def kick_topic() -> str:
    """Return the pub/sub channel that carries withdrawn permissions."""
    return f"{conf.bus_prefix()}kicks"


def decode(payload: bytes) -> list[list[Any]]:
    """Return the rows of a message: [eid or None, type, data, skip_users] each, and kicked.

    Raises:
        ValueError, TypeError: They are not of that kind.
    """
    rows: list[list[Any]] = json.loads(payload)
    for eid, *texts in rows:
        if not isinstance(eid, int | None) or not all(
            isinstance(text, str) for text in texts
        ):
            raise ValueError("a message of another kind")
    return rows


class BusTarget(Target):
    """Redis pub/sub, pipelined: one message carries consecutive events of a channel."""

    name = BUS
    kind = "bus"

    def __init__(self, arguments: dict[str, Any]) -> None:
        self._arguments = arguments
        self._client: redis.Redis | None = None

    @property
    def most_events(self) -> int:
        """So many a web process keeps: a reader that gets more at once reads the log."""
        options = conf.get_options()
        return min(options.batch_size, options.queue_length)

    def encode(self, row: OutboxRow) -> list[Item]:
        if row.kind == EventKind.KICK:
            return [Item(row.channel, _dump([row.channel, row.data]), True)]
        # By hand, as json takes longer to set an encoder up than to encode.
        number = "null" if row.eid is None else row.eid
        texts = f"{_quote(row.type)},{_quote(row.data)},{_quote(row.skip_users)}"
        kicked = f",{_quote(row.kicked)}" if row.kicked else ""
        return [Item(row.channel, f"[{number},{texts}{kicked}]".encode())]

    def publish(self, items: Sequence[Item]) -> None:
        if self._client is None:
            timeout = conf.get_options().publish_timeout
            try:
                self._client = connect(self._arguments, timeout=timeout)
            except (TypeError, ValueError) as error:
                text = f"EVENTSTREAM_REDIS cannot be used: {error}"
                raise PublishUnavailableError(text) from error
        try:
            pipeline = self._client.pipeline(transaction=False)
            for topic, payload in _messages(items):
                pipeline.publish(topic, payload)
            pipeline.execute()
        except redis.RedisError as error:
            self.close()
            raise PublishUnavailableError(f"{type(error).__name__}: {error}") from error

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def _messages(items: Sequence[Item]) -> Iterable[tuple[str, bytes]]:
    """Join a channel's events into one message. The order within a channel is kept.

    Kicks go first: a stream may be closed a little early, never a little late.
    """
    events: dict[str, list[bytes]] = {}
    for item in items:
        if item.is_kick:
            yield kick_topic(), item.body
        else:
            events.setdefault(item.channel, []).append(item.body)
    for channel, bodies in events.items():
        yield event_topic(channel), b"[" + b",".join(bodies) + b"]"


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
