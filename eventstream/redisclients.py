"""Clients of a Redis or Valkey, as EVENTSTREAM_REDIS and brokers describe one."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from urllib.parse import parse_qsl, urlencode

import redis
import redis.asyncio
import redis.asyncio.retry
import redis.sentinel
from redis.backoff import NoBackoff
from redis.retry import Retry


def connect(arguments: dict[str, Any], *, timeout: float) -> redis.Redis:
    """Return a bounded client: no retries, this many seconds for connect and answer."""
    limits = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(NoBackoff(), 0),
        "decode_responses": False,  # whatever the setting has for others
    }
    arguments = {**arguments, **limits}
    if "sentinels" in arguments:
        sentinels, service = arguments.pop("sentinels"), arguments.pop("service_name")
        asked = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
            sentinels, sentinel_kwargs=limits, **arguments
        )
        client: redis.Redis = asked.master_for(service)  # type: ignore[no-untyped-call]
        return client
    url = arguments.pop("url", None)
    if url is not None:
        return redis.Redis.from_url(_without(url, limits), **arguments)
    return redis.Redis(**arguments)


def connect_async(arguments: dict[str, Any]) -> redis.asyncio.Redis:
    """Return the hub's client: a mute server is noticed by its health check.

    No retries: redis-py would connect and subscribe again without a word, and nobody would
    look for what was published meanwhile. From a URL it makes none, from arguments ten.
    """
    limits = {
        "socket_connect_timeout": 2.0,
        "retry": redis.asyncio.retry.Retry(NoBackoff(), 0),
        "decode_responses": False,
    }
    ours = {**limits, "health_check_interval": 5}
    arguments = {**arguments, **ours}
    if "sentinels" in arguments:
        sentinels, service = arguments.pop("sentinels"), arguments.pop("service_name")
        asked = redis.asyncio.Sentinel(  # type: ignore[no-untyped-call]
            sentinels,
            sentinel_kwargs={**limits, "socket_timeout": 2.0},
            **arguments,
        )
        client: redis.asyncio.Redis = asked.master_for(service)
        return client
    url = arguments.pop("url", None)
    if url is not None:
        return redis.asyncio.Redis.from_url(_without(url, ours), **arguments)
    return redis.asyncio.Redis(**arguments)


def _without(url: str, names: Collection[str]) -> str:
    """Leave out of a URL's query what is not its to say: redis-py would have it win."""
    base, _, query = url.partition("?")
    kept = [(name, value) for name, value in parse_qsl(query) if name not in names]
    return f"{base}?{urlencode(kept)}" if kept else base
