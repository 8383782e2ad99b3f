"""How many streams a user or an address may have, and how often it may open one.

Opens are counted minute by minute in a Django cache, so over all processes that share it.
Streams are counted where they are held: each process adds its own to a number in the cache, once a
minute anew, so that what a killed process has counted is gone within two. With a cache
that is not shared (local memory, the default) each process counts for itself, exactly.
Streams that a GRIP proxy holds are unknown here: for those, opens alone are limited.

A cache that fails limits nobody: streams are worth more than their limits.
"""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from django.core.cache import BaseCache, caches
from django.core.cache.backends.dummy import DummyCache
from django.core.cache.backends.locmem import LocMemCache
from django.db import connections

from eventstream import conf
from eventstream.exceptions import TooManyStreamsError

if TYPE_CHECKING:
    from django.http import HttpRequest

logger = logging.getLogger(__name__)

WINDOW = 60
"""Seconds for which opens are counted together, and streams under one key."""

_SETTLE = 5.0  # seconds of a window until every process has counted its streams anew
_SPREAD = 10  # seconds over which those who were refused come back
_WARN_INTERVAL = 60.0


def client_address(request: HttpRequest) -> str:
    """Return the client's address, an IPv6 one without its host part; "" if unknown.

    X-Forwarded-For is believed as far as EVENTSTREAM_TRUSTED_PROXIES says: each of these
    proxies appends the address it was called from, and what stands before that is only
    what the client claims.
    """
    text = str(request.META.get("REMOTE_ADDR") or "")
    count = conf.get_options().trusted_proxies
    hops = request.headers.get("X-Forwarded-For", "").split(",")
    if 0 < count <= len(hops):
        text = hops[-count].strip() or text
    try:
        address = ipaddress.ip_address(_without_port(text))
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # One subscriber usually has a whole /64 to choose from.
    return str(ipaddress.ip_network((address, 64), strict=False).network_address)


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def count_open(request: HttpRequest) -> None:
    """Count an attempt of the request's address to open a stream.

    Raises:
        TooManyStreamsError: There were too many within a minute.
    """
    limit = conf.get_options().opens_per_address
    address = client_address(request) if limit else ""
    if limit and address:
        _count_open(f"address {address}", limit)


def count_open_of_user(user_id: str) -> None:
    """Do the same for a user; the anonymous one has no limit but its address's.

    Raises:
        TooManyStreamsError: There were too many within a minute.
    """
    limit = conf.get_options().opens_per_user
    if limit and user_id:
        _count_open(f"user {user_id}", limit)


def _count_open(who: str, limit: int) -> None:
    now = time.time()
    key = _key("opens", int(now) // WINDOW, who)
    try:
        cache = _cache()
        cache.add(key, 0, 2 * WINDOW)
        count = cache.incr(key)
    except Exception as error:
        _warn(error)
        return
    if count > limit:
        left = WINDOW - now % WINDOW
        raise TooManyStreamsError(
            f"More than {limit} streams opened within a minute",
            retry_after=_spread(left),
        )


def take_slot(request: HttpRequest, user_id: str) -> Slot:
    """Count a stream that this process is about to hold, until the slot is released.

    Raises:
        TooManyStreamsError: The user or the address has as many as it may.
    """
    options = conf.get_options()
    limits = {}
    if options.streams_per_user and user_id:
        limits[f"user {user_id}"] = options.streams_per_user
    if options.streams_per_address:
        address = client_address(request)
        if address:
            limits[f"address {address}"] = options.streams_per_address
    return counts.take(limits)


class Slot:
    """A counted stream. Released once: by its stream's end, or by its own.

    The latter is for a client that is gone before its stream has begun.
    """

    def __init__(self, counts: StreamCounts, names: tuple[str, ...]) -> None:
        self._finalizer: weakref.finalize[..., Slot] | None = None
        if names:  # else there is nothing to give back, as where nothing is limited
            self._finalizer = weakref.finalize(self, counts.give_back, names)
            self._finalizer.atexit = False

    def release(self) -> None:
        if self._finalizer is not None:
            self._finalizer()


class StreamCounts:
    """The open streams of this process, and of all, by who has them."""

    def __init__(self) -> None:
        # Reentrant: a slot may be collected, hence given back, at any allocation.
        self._lock = threading.RLock()
        self._open: Counter[str] = Counter()
        self._published: Counter[str] = Counter()
        self._published_before: Counter[str] = Counter()
        self._window = 0

    def take(self, limits: Mapping[str, int]) -> Slot:
        """Count one stream more for each name.

        Raises:
            TooManyStreamsError: One of them has as many as its limit allows.
        """
        elsewhere = {name: self._elsewhere(name) for name in limits}
        with self._lock:
            for name, limit in limits.items():
                if elsewhere[name] + self._open[name] >= limit:
                    raise TooManyStreamsError(
                        f"More than {limit} streams at the same time",
                        retry_after=_spread(_SPREAD),
                    )
            self._open.update(limits.keys())
            slot = Slot(self, tuple(limits))
        self.publish(limits)
        return slot

    def give_back(self, names: tuple[str, ...]) -> None:
        """Count one stream less. Blocks on nothing; the cache hears of it by `publish`."""
        with self._lock:
            self._open.subtract(names)

    def is_behind(self) -> bool:
        """Say whether the cache is to hear of anything."""
        self._turn_window()
        with self._lock:
            return self._open != self._published

    def publish(self, only: Mapping[str, int] | None = None) -> None:
        """Add to the cache what is new here. Blocks on it."""
        self._turn_window()
        with self._lock:
            names = self._open.keys() | self._published.keys()
            changes = {
                name: change
                for name in names
                if (only is None or name in only)
                and (change := self._open[name] - self._published[name])
            }
            self._published.update(changes)
            self._open += Counter()  # forgets who has none any more
            self._published += Counter()
            window = self._window
        if not is_shared():
            return
        try:
            for name, change in changes.items():
                _add(_cache(), _key("streams", window, name), change)
        except Exception as error:
            _warn(error)  # the next window counts anew

    def publish_in_thread(self) -> None:
        """Do the same in a thread that is to keep no database connection.

        A cache may be in the database.
        """
        try:
            self.publish()
        finally:
            connections.close_all()

    def _turn_window(self) -> None:
        window = int(time.time()) // WINDOW
        with self._lock:
            if window != self._window:
                is_next = window == self._window + 1
                self._published_before = self._published if is_next else Counter()
                self._published = Counter()
                self._window = window

    def _elsewhere(self, name: str) -> int:
        """Return how many streams other processes have."""
        if not is_shared():
            return 0
        self._turn_window()
        with self._lock:
            window = self._window
            mine, mine_before = self._published[name], self._published_before[name]
        keys = [_key("streams", number, name) for number in (window, window - 1)]
        try:
            found = _cache().get_many(keys)
        except Exception as error:
            _warn(error)
            return 0
        count = int(found.get(keys[0], 0)) - mine
        if time.time() % WINDOW < _SETTLE:
            count = max(count, int(found.get(keys[1], 0)) - mine_before)
        return max(count, 0)


counts = StreamCounts()


def is_shared() -> bool:
    """Say whether other processes see what this one puts into the cache."""
    return not isinstance(_cache(), LocMemCache | DummyCache)


def _cache() -> BaseCache:
    return caches[conf.get_options().limits_cache]


def _add(cache: BaseCache, key: str, change: int) -> None:
    cache.add(key, 0, 3 * WINDOW)
    cache.incr(key, change)


def _key(what: str, window: int, who: str) -> str:
    # Hashed: any primary key can be part of it, and no cache shows who reads.
    digest = hashlib.sha256(who.encode()).hexdigest()[:32]
    return f"eventstream:{what}:{window}:{digest}"


def _spread(seconds: float) -> int:
    """Return seconds to wait, a little different for each: else all would come at once."""
    return int(seconds) + 1 + random.randrange(_SPREAD)  # noqa: S311


_warned_at = -_WARN_INTERVAL


def _warn(error: Exception) -> None:
    global _warned_at
    now = time.monotonic()
    if now - _warned_at >= _WARN_INTERVAL:
        _warned_at = now
        logger.warning("No limits, the cache fails: %s", type(error).__name__)
