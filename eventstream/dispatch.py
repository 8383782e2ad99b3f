"""Wake whoever relays, on commit. The extension point between sending and publishing."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass

from eventstream import conf
from eventstream.exceptions import PublishError
from eventstream.relay import NO_TARGET, publish_unstored, relay_partition
from eventstream.rows import OutboxRow
from eventstream.targets import get_targets

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DispatchStatus:
    """What a dispatcher knows of those whom it wakes.

    Attributes:
        name: What wakes: "Celery", "inline".
        sweep_seconds, prune_seconds: How often sweep and prune are meant to run.
        start_worker, start_beat: The commands that start them; "" where there are none.
        queue: The queue of the tasks, "" without one.
        broker: The broker's address without credentials, "" without one.
        error: Why the broker cannot be reached; "" if it can, or was not asked.
        waiting_count: Tasks that no worker has taken yet; None if not known.
        worker_count: Workers that take from the queue; None if not known.
        failure_count: Wake-ups that failed in this process.
        is_pausing: This process tries no wake-up just now, as one has failed.
    """

    name: str = "inline"
    sweep_seconds: float = 10
    prune_seconds: float = 600
    start_worker: str = ""
    start_beat: str = ""
    queue: str = ""
    broker: str = ""
    error: str = ""
    waiting_count: int | None = None
    worker_count: int | None = None
    failure_count: int = 0
    is_pausing: bool = False


class Dispatcher(ABC):
    """Called after the commit of a transaction that sent events.

    A dispatcher must return soon and raise nothing: the caller's request has already
    saved. What it fails to wake, the sweep publishes.
    """

    @abstractmethod
    def wake(self, using: str, partitions: Collection[int]) -> None:
        """Have these partitions relayed, to every target."""

    @abstractmethod
    def publish_unstored(self, rows: list[OutboxRow]) -> None:
        """Publish best-effort events, which are in no table, to every target."""

    def status(self, *, ask: bool = False) -> DispatchStatus:
        """Return what is known of broker and workers.

        Args:
            ask: Ask them, within a few seconds; otherwise nothing goes over the network.
        """
        return DispatchStatus(name=type(self).__name__)


class InlineDispatcher(Dispatcher):
    """Relays in the caller's own process: for tests and for projects without a worker."""

    def status(self, *, ask: bool = False) -> DispatchStatus:
        return DispatchStatus()

    def wake(self, using: str, partitions: Collection[int]) -> None:
        for partition in sorted(partitions):
            for name in get_targets() or [NO_TARGET]:
                try:
                    relay_partition(using, partition, name)
                except Exception:
                    logger.exception("Relaying partition %s inline failed", partition)

    def publish_unstored(self, rows: list[OutboxRow]) -> None:
        for name in get_targets():
            try:
                publish_unstored(name, list(rows))
            except PublishError as error:
                logger.warning("Best-effort events were lost to %s: %s", name, error)


def get_dispatcher() -> Dispatcher:
    """Return the dispatcher that the settings name."""
    dispatcher: Dispatcher = conf.load(conf.get_options().dispatcher)
    return dispatcher
