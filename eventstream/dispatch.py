"""Wake whoever relays, on commit. The extension point between sending and publishing."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection

from eventstream import conf
from eventstream.exceptions import PublishError
from eventstream.relay import NO_TARGET, publish_unstored, relay_partition
from eventstream.storage import OutboxRow
from eventstream.targets import get_targets

logger = logging.getLogger(__name__)


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


class InlineDispatcher(Dispatcher):
    """Relays in the caller's own process: for tests and for projects without a worker."""

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
                publish_unstored(name, rows)
            except PublishError as error:
                logger.warning("Best-effort events were lost to %s: %s", name, error)


def get_dispatcher() -> Dispatcher:
    """Return the dispatcher that the settings name."""
    dispatcher: Dispatcher = conf.load(conf.get_options().dispatcher)
    return dispatcher
