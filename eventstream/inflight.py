"""What is in flight: read, and on its way to a target. No database.

A relay that is behind numbers its next events while a thread publishes these. To one that
keeps up a thread would be a delay, so it publishes for itself.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import Queue

from eventstream.exceptions import PublishRejectedError
from eventstream.rows import OutboxRow
from eventstream.targets.base import Item

Call = tuple[list[OutboxRow], list[Item]]
"""What goes to a target in one call, as rows and as encoded."""


class InFlight:
    """The calls that publish what a relay has read, in order.

    Attributes:
        position: The last one that was read.
        read_at: When, by time.monotonic().

    Args:
        calls: Encoded as they are asked for.
        attempt: Makes a call. Returning means that the target has accepted it.
        position: As above.
        read_at: As above.
    """

    def __init__(
        self,
        calls: Iterator[Call],
        attempt: Callable[[Sequence[Item]], None],
        *,
        position: int,
        read_at: float,
    ) -> None:
        self.position = position
        self.read_at = read_at
        self._calls = calls
        self._attempt = attempt
        self._thread: threading.Thread | None = None
        self._is_stopped = False
        self._accepted: Queue[Call | None] = Queue()
        self._failed: tuple[Call | None, BaseException] | None = None

    def start(self) -> None:
        """Make the calls from now on, in a thread: the target is its alone until stop()."""
        context = contextvars.copy_context()  # the trace goes on
        thread = threading.Thread(
            target=context.run, args=(self._make_calls,), name="eventstream-publish"
        )
        thread.start()
        self._thread = thread  # not before it runs: stop() waits for it

    def stop(self) -> None:
        """Make no further call, and wait for the one under way: for its time limit at most."""
        if self._thread is not None:
            self._is_stopped = True
            self._thread.join()

    def __iter__(self) -> Iterator[tuple[Call, bool]]:
        """Yield each call as soon as it was made, and those that are left to the caller.

        These are all, if no thread was started, or the one that was rejected and those
        after it.

        Yields:
            The call, and whether the target has accepted it.

        Raises:
            PublishUnavailableError: The target did not accept the next one.
        """
        if self._thread is not None:
            while (accepted := self._accepted.get()) is not None:
                yield accepted, True
            self._thread.join()
            if self._failed is not None:
                call, error = self._failed
                if call is None or not isinstance(error, PublishRejectedError):
                    raise error
                yield call, False
        for call in self._calls:
            yield call, False

    def _make_calls(self) -> None:
        call = None
        try:
            for call in self._calls:
                if self._is_stopped:
                    return
                self._attempt(call[1])
                self._accepted.put(call)
        except BaseException as error:  # raised where they are taken
            self._failed = call, error
        finally:
            self._accepted.put(None)
