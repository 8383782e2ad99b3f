"""Database connections that stay open from one task to the next.

Celery closes those that it knows before and after each task, whatever CONN_MAX_AGE says. A
new one costs PostgreSQL more than the relaying of a few events: a process is started, and
reads the catalogue anew. Under gevent and eventlet each task opens its own all the same.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from django.db import DEFAULT_DB_ALIAS, InterfaceError, OperationalError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from kombu.utils.compat import detect_environment

from eventstream import conf

T = TypeVar("T")

MAX_IDLE = 60.0
"""Seconds of disuse after which a connection is closed rather than used again."""


class _Kept(threading.local):
    """This thread's connections, by alias; not those of a parent process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.connections: dict[str, BaseDatabaseWrapper] = {}
        self.used_at = 0.0


_kept = _Kept()


def with_kept_connections(call: Callable[[], T]) -> T:
    """Call with the outboxes' connections of this thread; once more if one was cut.

    The call must be safe to repeat. An alias with a connection pool is left alone: there
    it is the pool that keeps connections, and it is small.
    """
    own = {
        alias: connections[alias]
        for alias in {*conf.get_options().databases, DEFAULT_DB_ALIAS}
        if not connections[alias].settings_dict.get("OPTIONS", {}).get("pool")
    }
    if _kept.pid != os.getpid():
        _kept.__init__()  # type: ignore[misc]
    if time.monotonic() - _kept.used_at > MAX_IDLE:
        close_kept()
    for alias in own:
        if alias not in _kept.connections:
            _kept.connections[alias] = connections.create_connection(alias)
        connections[alias] = _kept.connections[alias]
    try:
        try:
            return call()
        except (OperationalError, InterfaceError):
            close_kept()
            return call()
    finally:
        _kept.used_at = time.monotonic()
        for alias, connection in own.items():
            if connections[alias].errors_occurred:
                connections[alias].close()
            connections[alias] = connection
        if detect_environment() != "default":
            # Each task has a greenlet of its own: no other would ever find them, and they
            # would be open until Python collects them.
            close_kept()


def close_kept() -> None:
    """Close this thread's."""
    for connection in _kept.connections.values():
        connection.close()
