"""One thread of each process asks the broker: senders hand over, and wait for nothing.

What they ask for while it is at work is taken together in its next round. So a broker that
hangs holds up one thread, and what waits for it is bounded: a set of partitions, and of
best-effort events those of the last moments.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from multiprocessing.util import Finalize
from typing import NamedTuple

from eventstream_tasks import conf

LEAST_REST, MOST_REST = 0.002, 0.02
"""Seconds between two rounds: as long as the last one took, within these. So a sender at
full speed pays for one round in several events, and senders to many channels leave half of
the processor to themselves. An event that comes when nothing is going on is not delayed."""

END_WAIT = 5.0
"""Most seconds that a process which ends waits. More than `wake_timeout`: a command that
sends once has everything to import yet. A broker that is dead fails sooner by itself."""

Send = Callable[[str, tuple[object, ...]], None]
"""Enqueues the task of a name with arguments, in the context of whoever asked for it."""

Wanted = dict[tuple[str, int], Send]
"""The (database alias, partition) pairs to be relayed, by the way of whoever came first."""


class Message(NamedTuple):
    """A task of its own, which nothing else will do if it is not enqueued.

    Attributes:
        name, arguments: The task.
        deadline: By time.monotonic(); after it, nobody is interested any more.
    """

    send: Send
    name: str
    arguments: tuple[object, ...]
    deadline: float

    def is_late(self) -> bool:
        return time.monotonic() > self.deadline


class Waker:
    """This process' thread, and what it is to do. Use `get_waker()`.

    Args:
        wake: Enqueues what makes workers look; raises nothing.
        post: Enqueues a message; raises nothing.
        expire: Is told of a message whose time is over.
    """

    def __init__(
        self,
        wake: Callable[[Wanted], None],
        post: Callable[[Message], None],
        expire: Callable[[], None],
    ) -> None:
        self._wake, self._post, self._expire = wake, post, expire
        self._changed = threading.Condition()
        self._wanted: Wanted = {}
        self._wanted_since = 0.0
        self._messages: deque[Message] = deque()
        self._is_idle = True
        self._is_ending = False
        self._thread: threading.Thread | None = None

    def is_wanted(self, using: str, partition: int) -> bool:
        """Say whether the next round wakes for this partition anyway.

        Not, if there is no thread for it: one that could not be started is tried again.
        """
        is_running = self._thread is not None and self._thread.is_alive()
        return is_running and (using, partition) in self._wanted

    def delay(self) -> float:
        """Return for how many seconds what is wanted has been waiting for its round."""
        return time.monotonic() - self._wanted_since if self._wanted else 0.0

    def want(self, using: str, partitions: Iterable[int], send: Send) -> None:
        """Have workers look at these partitions, soon."""
        with self._changed:
            if not self._wanted:
                self._wanted_since = time.monotonic()
            for partition in partitions:
                self._wanted.setdefault((using, partition), send)
            self._rouse()

    def post(self, send: Send, name: str, arguments: tuple[object, ...]) -> None:
        """Have a task enqueued, within `wake_timeout` or never; in the order of calls."""
        deadline = time.monotonic() + conf.get_options().wake_timeout
        with self._changed:
            self._drop_late()  # the thread may be stuck
            self._messages.append(Message(send, name, arguments, deadline))
            self._rouse()

    def flush(self, timeout: float) -> bool:
        """Wait until all that was asked for has been tried, and say whether it has."""
        with self._changed:
            return self._changed.wait_for(self._is_done, timeout)

    def _is_done(self) -> bool:
        return not self._wanted and not self._messages and self._is_idle

    def _rouse(self) -> None:
        if self._thread is None or not self._thread.is_alive():
            # Before the process ends. Not by atexit: multiprocessing's children end by
            # os._exit, after its finalizers, which the others call by atexit, too.
            Finalize(None, self._end, exitpriority=100)
            thread = threading.Thread(
                target=self._run, name="eventstream-waker", daemon=True
            )
            thread.start()
            self._thread, self._is_idle = thread, False
        elif self._is_idle:
            self._changed.notify_all()
        if self._is_ending:
            self._changed.wait_for(self._is_done, END_WAIT)

    def _end(self) -> None:
        self._is_ending = True
        self.flush(END_WAIT)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._wanted and not self._messages:
                    self._is_idle = True
                    self._changed.notify_all()
                    self._changed.wait()
                self._is_idle = False
                wanted, self._wanted = self._wanted, {}
                messages, self._messages = self._messages, deque()
            began = time.monotonic()
            if wanted:
                self._wake(wanted)
            for message in messages:
                if message.is_late():
                    self._expire()
                else:
                    self._post(message)
            worked = time.monotonic() - began
            time.sleep(min(max(worked, LEAST_REST), MOST_REST))

    def _drop_late(self) -> None:
        while self._messages and self._messages[0].is_late():
            self._messages.popleft()
            self._expire()


_wakers: dict[int, Waker] = {}


def get_waker(make: Callable[[], Waker]) -> Waker:
    """Return this process' own: a child has none of its parent's threads."""
    pid = os.getpid()
    found = _wakers.get(pid)
    # A single step, as two threads may be the first.
    return found if found is not None else _wakers.setdefault(pid, make())
