"""The few threads that read the database for all streams of a process."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from django.db import InterfaceError, OperationalError, connections

from eventstream import conf

T = TypeVar("T")

_CLOSING = 5.0


class ReaderPool:
    """Threads whose database connections stay open: as many, however many streams.

    Attributes:
        slots: To be held while a thread runs what the application has written, however slow
            that is. One fewer than there are threads, which is left for the log.
    """

    def __init__(self, thread_count: int) -> None:
        self.thread_count = thread_count
        most = max(1, thread_count - 1)
        self.slots = asyncio.Semaphore(most)
        # Of several outboxes, one that does not answer leaves a thread to the others.
        self._first, *others = conf.get_options().databases
        aliases = [self._first, *others] if others else []
        self._rooms = {alias: asyncio.Semaphore(most) for alias in aliases}
        self._loop = asyncio.get_running_loop()
        self._executor = ThreadPoolExecutor(thread_count, "eventstream-reader")

    async def run(self, call: Callable[[], T], *aliases: str) -> T:
        """Run a call in one of the threads; once more if its connection was cut.

        Args:
            call: What to run.
            aliases: The databases that it uses; none for whichever there are.
        """
        retry = functools.partial(_with_retry, call, aliases)
        name = aliases[0] if len(aliases) == 1 else self._first
        async with self._rooms.get(name) or contextlib.nullcontext():
            return await self._loop.run_in_executor(self._executor, retry)

    async def close(self) -> None:
        """End the threads, each with its connections."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        barrier = threading.Barrier(self.thread_count)

        def close_mine() -> None:  # only the thread itself can
            connections.close_all()
            # A thread that waits here takes no second turn before the others had one.
            with contextlib.suppress(threading.BrokenBarrierError):
                barrier.wait(_CLOSING)

        for _ in range(self.thread_count):
            self._executor.submit(close_mine)
        self._executor.shutdown()


def _with_retry(call: Callable[[], T], aliases: tuple[str, ...]) -> T:
    try:
        return call()
    except (OperationalError, InterfaceError):
        for alias in aliases or connections:
            connections[alias].close()
        return call()
