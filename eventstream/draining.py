"""The end of a process that holds streams: not all of them at once.

A server that gets SIGTERM takes no more connections and waits for the open ones, which for
streams is until its limit; then it cuts them all in one moment, and every client comes back
in the same second. So the hub hears of the signal too, and ends its streams one after the
other, each after an event, well before that limit. Ctrl-C is the same for a server that
handles both signals alike.

The server's own handler is called first and nothing of it is replaced: uvicorn and its
kin, with or without gunicorn, set theirs before the first request. Where nobody handles
SIGTERM, it ends the process at once, and so it stays.
"""

from __future__ import annotations

import contextlib
import random
import signal
import threading
import weakref
from collections.abc import Callable
from types import FrameType
from typing import Any

STREAMS_PER_SECOND = 100
"""Streams are not ended more slowly than this: a handful need no spreading."""

_listeners: weakref.WeakSet[Any] = weakref.WeakSet()


def draw_delay(count: int, *, at_most: float) -> float:
    """Return after how many seconds one of so many streams ends."""
    # To spread load, not to keep a secret.
    return random.uniform(0, min(at_most, count / STREAMS_PER_SECOND))  # noqa: S311


def listen(listener: Any) -> None:
    """Call `listener.hear_end()` when the process is asked to end.

    It is called in the main thread, between any two instructions: it may only schedule.
    """
    _listeners.add(listener)
    if threading.current_thread() is threading.main_thread():
        _install()


def _install() -> None:
    current = signal.getsignal(signal.SIGTERM)
    if not callable(current) or isinstance(current, _Chained):
        return
    numbers = [signal.SIGTERM]
    # Any other is Python's, asyncio's, a test runner's or a debugger's own Ctrl-C, of
    # which some look whether they are still in place.
    if signal.getsignal(signal.SIGINT) == current:
        numbers.append(signal.SIGINT)
    with contextlib.suppress(ValueError):  # not the main interpreter
        for number in numbers:
            signal.signal(number, _Chained(current))


class _Chained:
    """A handler that goes on to the one it replaced."""

    def __init__(self, inner: Callable[[int, FrameType | None], Any]) -> None:
        self._inner = inner

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._inner(number, frame)
        for listener in list(_listeners):
            listener.hear_end()
