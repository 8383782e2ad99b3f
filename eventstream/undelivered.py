"""Which events have not reached which target: a page of them, whatever the backlog.

A partition's watermarks cut its index in two, so a page is read from the cut on: a few rows
of each partition, merged. No query reads or counts what it does not show, with a million
events waiting or confirmed.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from django.db import connections
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Left

from eventstream.log import database_now
from eventstream.models import Channel, Cursor, DeadLetter, Event, PausedTarget
from eventstream.rows import partition_of
from eventstream.storage import get_storage
from eventstream.targets import get_targets

WAITING = "waiting"
DEAD = "dead"
STATES = (WAITING, DEAD)

EXCERPT_LENGTH = 120
MAX_OFFSET = 1_000
"""Rows that can be paged through: each page reads all before it, of every partition."""
_CHANNELS = 500
_OVERLAP = 1_000
"""An event is found by its age if fewer others of its partition were written while its
transaction was open."""
_ARMS_PER_QUERY = 100  # SQLite joins at most 500 SELECTs
_PLACES_PER_QUERY = 200


@dataclass(frozen=True)
class Search:
    """What to look for.

    Attributes:
        target: One target's; "" for every configured one's.
        channel: The beginning of the channel's name.
        older_than: Seconds since the event was written.
        state: WAITING, DEAD, or "" for both.
        is_newest_first: The other end of the backlog.
    """

    target: str = ""
    channel: str = ""
    older_than: float = 0
    state: str = ""
    is_newest_first: bool = False


@dataclass(frozen=True)
class Lack:
    """One target that has not accepted the event.

    Attributes:
        target: Its name; "" where none is configured.
        is_dead: It refused the event for good, or an operator gave it up.
        pause: Why nothing is published there for now; "" if it is not paused.
        is_configured: It is in the settings.
        attempts, failing_since, next_attempt: Of its partition, or of the one that tries
            the failing target for all; none of a dead letter.
        error: What it answered.
        letter_id: Primary key of the dead letter.
    """

    target: str
    is_dead: bool = False
    pause: str = ""
    is_configured: bool = True
    attempts: int = 0
    failing_since: datetime.datetime | None = None
    next_attempt: datetime.datetime | None = None
    error: str = ""
    letter_id: int | None = None


@dataclass(frozen=True)
class UndeliveredEvent:
    """An event, and every target that has not accepted it.

    Attributes:
        event: Without its data; `event.beginning` is the start of that.
        age_seconds: Since it was written, by the database's clock.
        lacks: Never empty.
    """

    event: Any
    age_seconds: float
    lacks: Sequence[Lack]


@dataclass(frozen=True)
class UndeliveredPage:
    """Some of the events that a search finds, the oldest first unless asked otherwise."""

    events: Sequence[UndeliveredEvent] = field(default=())
    has_more: bool = False


def find_undelivered(
    using: str, search: Search, *, offset: int = 0, limit: int = 50
) -> UndeliveredPage:
    """Return a page of the events that some target has not accepted.

    Raises:
        ValueError: The offset is not 0 to MAX_OFFSET.
    """
    if not 0 <= offset <= MAX_OFFSET:
        raise ValueError(f"offset must be 0 to {MAX_OFFSET:,}, not {offset:,}")
    return _Finder(using, search).page(offset, limit)


class _Finder:
    def __init__(self, using: str, search: Search) -> None:
        self._using = using
        self._search = search
        self._now = database_now(using)
        configured = list(get_targets())
        self._configured = set(configured)
        self._targets = [n for n in configured if search.target in ("", n)]
        rows = Cursor.objects.using(using).filter(target__in=configured)
        self._cursors = {(row.partition, row.target): row for row in rows}
        failing = [
            row
            for row in self._cursors.values()
            if row.attempts and not row.fails_alone
        ]
        self._failing = {
            row.target: row for row in sorted(failing, key=lambda row: row.attempts)
        }

    def page(self, offset: int, limit: int) -> UndeliveredPage:
        count = offset + limit + 1
        ids: set[int] = set()
        if self._search.state != DEAD:
            ids |= self._waiting_ids(count)
        if self._search.state != WAITING:
            ids |= self._dead_ids(count)
        chosen = sorted(ids, reverse=self._search.is_newest_first)[offset:count]
        return UndeliveredPage(
            self._describe(chosen[:limit]), has_more=len(chosen) > limit
        )

    # --- finding

    def _filter(self, rows: QuerySet[Any], names: Collection[str] | None) -> Any:
        if names is not None:
            rows = rows.filter(channel__in=names)
        elif self._search.channel:
            rows = rows.filter(channel__startswith=self._search.channel)
        if self._search.older_than:
            limit = self._now - datetime.timedelta(seconds=self._search.older_than)
            rows = rows.filter(created__lte=limit)
        return rows

    def _waiting_ids(self, count: int) -> set[int]:
        if not self._targets and self._configured:
            return set()  # no such target
        names, partitions = self._channels()
        behind = list(self._behind())
        cuts = self._cuts(behind)
        arms: list[tuple[QuerySet[Any], tuple[str, ...]]] = []
        for partition, mark, target in behind:
            if partitions is not None and partition not in partitions:
                continue
            rows = Event.objects.filter(partition=partition, position__gt=mark)
            if partition in cuts:
                rows = rows.filter(position__lte=cuts[partition])
            if target:
                # By the index of events and targets, row by row.
                letter = DeadLetter.objects.filter(
                    event_id=OuterRef("pk"), target=target
                )
                rows = rows.filter(~Exists(letter))
            arms.append((self._filter(rows, names), ("position",)))
        for partition in get_storage().unnumbered_partitions(self._using):
            # A range, in the partial index's order; see statements.FIRST_UNNUMBERED.
            rows = Event.objects.filter(
                partition__range=(partition, partition), position__isnull=True
            )
            arms.append((self._filter(rows, None), ("partition", "pk")))
        ids: set[int] = set()
        for first in range(0, len(arms), _ARMS_PER_QUERY):
            some = arms[first : first + _ARMS_PER_QUERY]
            limited = [self._first_ids(rows, order, count) for rows, order in some]
            ids |= set(limited[0].union(*limited[1:], all=True))
        return ids

    def _first_ids(
        self, rows: QuerySet[Any], order: tuple[str, ...], count: int
    ) -> QuerySet[Any]:
        """Return the first ids of an arm, which ends there by its index."""
        sign = "-" if self._search.is_newest_first else ""
        ordered = rows.using(self._using).order_by(*[sign + name for name in order])
        found = ordered.values_list("pk")[:count]
        if connections[self._using].features.supports_slicing_ordering_in_compound:
            return found.values_list("pk", flat=True)
        # SQLite takes no LIMIT in the SELECTs that a UNION joins.
        rows = Event.objects.using(self._using).filter(pk__in=found)
        return rows.values_list("pk", flat=True)

    def _behind(self) -> Iterator[tuple[int, int, str]]:
        """Yield (partition, watermark, target or "") where some target lags.

        Target by target only where what each has given up is to be left out.
        """
        # The heads are read after the cursors: what is numbered in between is waiting.
        heads = get_storage().heads(self._using)
        lowest: dict[int, int] = {}
        for (partition, name), cursor in self._cursors.items():
            mark = cursor.watermark
            if name not in self._targets or mark >= heads.get(partition, 0):
                continue
            if self._search.state == WAITING:
                yield partition, mark, name
            else:
                lowest[partition] = min(lowest.get(partition, mark), mark)
        for partition, mark in lowest.items():
            yield partition, mark, ""

    def _cuts(self, behind: Sequence[tuple[int, int, str]]) -> dict[int, int]:
        """Return the last position of each partition that may be old enough.

        Positions are in the order of writing but for what concurrent transactions took
        along, so halving finds the place: some twenty queries of a row a partition, where
        filtering by age alone reads all that is too young.
        """
        if not self._search.older_than:
            return {}
        limit = self._now - datetime.timedelta(seconds=self._search.older_than)
        heads = get_storage().heads(self._using)
        low: dict[int, int] = {}
        for partition, mark, _ in behind:
            low[partition] = min(low.get(partition, mark), mark)
        high = {partition: heads.get(partition, 0) for partition in low}
        while middle := {
            p: (low[p] + high[p] + 1) // 2 for p in low if low[p] < high[p]
        }:
            young: set[int] = set()
            for wanted in _at(middle):
                rows = Event.objects.using(self._using).filter(wanted)
                rows = rows.filter(created__gt=limit)
                young.update(rows.values_list("partition", flat=True))
            for partition, position in middle.items():
                if partition in young:
                    high[partition] = position - 1
                else:  # old, or pruned
                    low[partition] = position
        return {partition: position + _OVERLAP for partition, position in low.items()}

    def _channels(self) -> tuple[list[str] | None, set[int] | None]:
        """Return the channels with the prefix, and where they are.

        None if any channel will do, or too many have the prefix to be named.
        """
        prefix = self._search.channel
        if not prefix:
            return None, None
        rows = Channel.objects.using(self._using).filter(name__startswith=prefix)
        found = list(rows.values_list("name", "partition")[: _CHANNELS + 1])
        if len(found) > _CHANNELS:
            return None, None
        # Both: the number of partitions may have been changed since the channel was new.
        partitions = {p for _, p in found} | {partition_of(name) for name, _ in found}
        return [name for name, _ in found], partitions

    def _dead_ids(self, count: int) -> set[int]:
        rows = self._filter(DeadLetter.objects.using(self._using), None)
        if self._search.target:
            rows = rows.filter(target=self._search.target)
        sign = "-" if self._search.is_newest_first else ""
        ids = rows.order_by(f"{sign}event_id").values_list("event_id", flat=True)
        return set(ids.distinct()[:count])

    def _letters(self, ids: Collection[int]) -> dict[int, dict[str, DeadLetter]]:
        rows = DeadLetter.objects.using(self._using).filter(event_id__in=list(ids))
        found: dict[int, dict[str, DeadLetter]] = {}
        for letter in rows.order_by("target"):
            found.setdefault(letter.event_id, {})[letter.target] = letter
        return found

    # --- describing

    def _describe(self, ids: Sequence[int]) -> list[UndeliveredEvent]:
        rows = Event.objects.using(self._using).filter(pk__in=ids)
        rows = rows.annotate(beginning=Left("data", EXCERPT_LENGTH + 1))
        events = {event.pk: event for event in rows.defer("data", "skip_users")}
        letters = self._letters(ids)
        paused = PausedTarget.objects.using(self._using)
        pauses = {pause.name: pause.describe() for pause in paused}
        found = []
        for pk in ids:
            event = events.get(pk)
            if event is None:
                continue  # pruned meanwhile
            lacks = list(self._lacks(event, letters.get(pk, {}), pauses))
            if lacks:
                age = max(0.0, (self._now - event.created).total_seconds())
                found.append(UndeliveredEvent(event, age, lacks))
        return found

    def _lacks(
        self, event: Event, letters: dict[str, DeadLetter], pauses: dict[str, str]
    ) -> Iterator[Lack]:
        search = self._search
        if not self._configured and event.position is None:
            yield Lack("", is_configured=False)  # it waits for its id only
        for name in dict.fromkeys([*self._targets, *letters]):
            if search.target not in ("", name):
                continue
            is_configured = name in self._configured
            letter = letters.get(name)
            if letter is not None:
                if search.state != WAITING:
                    yield Lack(
                        name,
                        is_dead=True,
                        pause=pauses.get(name, ""),
                        is_configured=is_configured,
                        error=letter.error,
                        letter_id=letter.pk,
                    )
            elif search.state != DEAD and self._is_waiting(event, name):
                cursor = self._cursors.get((event.partition, name))
                if cursor is None or not cursor.attempts:
                    # One partition tries a failing target for all.
                    cursor = self._failing.get(name, cursor)
                yield Lack(
                    name,
                    pause=pauses.get(name, ""),
                    attempts=cursor.attempts if cursor else 0,
                    failing_since=cursor.failing_since if cursor else None,
                    next_attempt=cursor.next_attempt if cursor else None,
                    error=cursor.last_error if cursor else "",
                )

    def _is_waiting(self, event: Event, target: str) -> bool:
        if event.position is None:
            return True
        cursor = self._cursors.get((event.partition, target))
        # Without a cursor the target is new: it starts at the head.
        return cursor is not None and cursor.watermark < event.position


def _at(positions: dict[int, int]) -> Iterator[Q]:
    """Yield conditions that together say: at its partition's position.

    Several, as SQLite takes no expression with a thousand ORs.
    """
    pairs = sorted(positions.items())
    for first in range(0, len(pairs), _PLACES_PER_QUERY):
        where = Q()
        for partition, position in pairs[first : first + _PLACES_PER_QUERY]:
            where |= Q(partition=partition, position=position)
        yield where
