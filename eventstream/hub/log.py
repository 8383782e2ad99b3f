"""The log, as a hub reads it: pages for streams, and looks at how far it has got.

With whatever is read come the kicks that this process has not heard of: a kick is told
before any event that follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import math
import time
from collections import defaultdict
from collections.abc import Callable

from django.db import InterfaceError, OperationalError

from eventstream import conf
from eventstream.hub.pool import ReaderPool
from eventstream.hub.tails import CHUNK_BYTES, ChannelState, retrieve
from eventstream.pieces import ROWS_PER_READ, cut
from eventstream.reading import number_stale
from eventstream.rows import ChannelLog, partition_of
from eventstream.storage import find_alias, get_storage

Kick = tuple[int, int, str, str]
"""As DjangoModelStorage.kicks_after has it: …, channel, user id."""


Heads = dict[int, int]
"""The last position of each partition."""


class Log:
    """Reads the log in the pool's threads.

    Args:
        pool: The threads.
        on_kick: Called with channel and user id of each kick.
        on_begun: Called once the heads of a database are known.

    Attributes:
        heard_since: By time.monotonic(). Kicks from then on this process hears of; one before
            may be below the heads with which it began, or have been pruned unheard.
    """

    def __init__(
        self,
        pool: ReaderPool,
        on_kick: Callable[[str, str], None],
        on_begun: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._on_kick = on_kick
        self._on_begun = on_begun
        self._loop = asyncio.get_running_loop()
        self.heard_since = -math.inf
        self._heads: dict[str, Heads] = {}
        self._looked_at: dict[str, float] = {}
        self._done: dict[str, Heads] = {}
        # One at a time: of two that both are the first, each would take the kicks before
        # its own heads for known. Of each database, as another may be away.
        self._looking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def begin(self, using: str) -> None:
        """Wait until it is known how far the log is: later kicks are those above it."""
        if self.is_known(using):
            return
        async with self._looking[using]:
            if not self.is_known(using):
                await self._look(using)

    def is_known(self, using: str) -> bool:
        """Say whether all kicks above the heads that are known are still in the log.

        Not after an outage of half the retention: a row counts as old from when it was
        written, and may have been committed much later.
        """
        looked_at = self._looked_at.get(using, -math.inf)
        return time.monotonic() - looked_at < conf.get_options().retention / 2

    async def look(self, using: str) -> tuple[Heads, set[int] | None]:
        """Number what is stale; return the heads, and the partitions to be looked at.

        These are the ones that have moved since the heads that `done` was told of, or None
        for all.
        """
        async with self._looking[using]:
            heads = await self._look(using)
        done = self._done.get(using)
        if done is None:
            return heads, None
        return heads, {n for n, head in heads.items() if head != done.get(n)}

    async def _look(self, using: str) -> Heads:
        known = self._heads.get(using) if self.is_known(using) else None
        looked_at = time.monotonic()
        heads, kicks = await self._pool.run(
            functools.partial(_look, using, known), using
        )
        self._heads[using] = heads
        self._looked_at[using] = looked_at
        # A log that has lost its end may have kicks again where it had others.
        if known is None or any(head < known.get(p, 0) for p, head in heads.items()):
            self.heard_since = time.monotonic()
            self._on_begun()
        self._tell(kicks)
        return heads

    def done(self, using: str, heads: Heads) -> None:
        """Note that what moved up to these heads has been looked at.

        Not when it is only known: if looking at it fails, the next look does so again.
        """
        self._done[using] = heads

    async def current_ids(self, using: str, names: list[str]) -> dict[str, int]:
        """Return the newest event id of each channel."""
        read = functools.partial(get_storage().current_ids, using, names)
        return await self._pool.run(read, using)

    async def find_alias(self, state: ChannelState) -> None:
        """Find the database of a channel; again, as long as none is known to have it."""
        if not state.is_alias_known:
            find = functools.partial(_find_alias, state.name)
            state.alias, state.is_alias_known = await self._pool.run(find)

    async def read(self, state: ChannelState, place: int) -> ChannelLog:
        """Read the log after a place; all who ask for the same share one read."""
        task = state.reads.get(place)
        if task is None:
            task = self._loop.create_task(self._read_page(state, place))
            state.reads[place] = task
            task.add_done_callback(retrieve)
            task.add_done_callback(lambda _: state.reads.pop(place, None))
        loss_count = state.loss_count
        log = await asyncio.shield(task)
        if state.loss_count == loss_count:
            state.prepend(log)
        return log

    async def _read_page(self, state: ChannelState, place: int) -> ChannelLog:
        await self.find_alias(state)
        await self.begin(state.alias)
        partition = partition_of(state.name)
        known = self._heads[state.alias].get(partition, 0)
        limit = min(conf.get_options().page_size, state.rows_per_read)
        read = functools.partial(
            _read, state.alias, state.name, place, partition, known, limit
        )
        log, kicks = await self._pool.run(read, state.alias)
        self._tell(kicks)
        rows, size = cut(log.rows, CHUNK_BYTES)
        if rows:
            # As many as there is room for, if they are as large as these.
            fitting = CHUNK_BYTES * len(rows) // max(1, size)
            state.rows_per_read = max(1, min(ROWS_PER_READ, fitting))
        return log._replace(rows=rows)

    def _tell(self, kicks: list[Kick]) -> None:
        for _, _, channel, user_id in kicks:
            self._on_kick(channel, user_id)


def _find_alias(channel: str) -> tuple[str, bool]:
    """Return what the storage finds; while a database is away, what the others have."""
    try:
        return find_alias(channel)
    except (OperationalError, InterfaceError):
        storage = get_storage()
        for using in conf.get_options().databases:
            with contextlib.suppress(OperationalError, InterfaceError):
                if storage.has_channel(using, channel):
                    return using, True
        raise


def _look(using: str, known: Heads | None) -> tuple[Heads, list[Kick]]:
    storage = get_storage()
    number_stale(storage, using)
    heads = storage.heads(using)
    if known is None:
        return heads, []
    moved = {p: known.get(p, 0) for p, head in heads.items() if head != known.get(p)}
    return heads, storage.kicks_after(using, moved)


def _read(
    using: str, channel: str, place: int, partition: int, known: int, limit: int
) -> tuple[ChannelLog, list[Kick]]:
    """Return a page of the log, and the kicks above a position of the channel's partition.

    In this order: whatever kick comes before an event of the page is among those returned.
    """
    storage = get_storage()
    log = storage.read_after(using, channel, place, limit=limit, kicks_above=known)
    return log, storage.kicks_after(using, {partition: known}) if log.has_kicks else []
