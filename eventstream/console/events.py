"""send, tail and undelivered: events, one by one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.management.base import CommandError
from django.db.models import Q

from eventstream import conf
from eventstream.api import EventState, send_event
from eventstream.console.overview import format_instant
from eventstream.console.screen import Screen
from eventstream.exceptions import InvalidEventError
from eventstream.log import database_now
from eventstream.models import Cursor, DeadLetter, Event, EventKind, PausedTarget
from eventstream.reading import number_stale
from eventstream.specs import check_channel
from eventstream.status import Level
from eventstream.storage import alias_of, get_storage
from eventstream.targets import get_targets
from eventstream.words import describe_seconds

POLL_SECONDS = 0.25


def send(
    screen: Screen,
    *,
    channel: str,
    data: str,
    event_type: str,
    is_text: bool,
    wait: float,
    using: str | None,
) -> int:
    """Send one event, and say how far it has come."""
    if data == "-":
        data = sys.stdin.read()
    content: Any = data
    if not is_text:
        try:
            content = json.loads(data)
        except ValueError as error:
            raise CommandError(
                f"The data is not JSON ({error}). Quote strings twice, as in "
                f"'\"hello\"', or say --text."
            ) from error
    try:
        sent = send_event(
            channel, event_type, content, json_encode=not is_text, using=using
        )
    except InvalidEventError as error:
        raise CommandError(str(error)) from error
    deadline = time.monotonic() + wait
    state = sent.state()
    while state in (EventState.UNNUMBERED, EventState.UNDELIVERED):
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
        state = sent.state()
    if state is EventState.UNSTORED:
        screen.line(f"Sent to {channel}, best effort: nobody knows who received it.")
        return 0
    screen.line(f"{channel}:{sent.event_id or 'no id yet'} is {state.value}.")
    if state is EventState.CONFIRMED:
        return 0
    screen.finding(
        Level.WARNING,
        "event",
        f"not confirmed within {wait:g} s.",
        "`python manage.py eventstream status` says why.",
    )
    return 1


def tail(
    screen: Screen,
    *,
    channel: str,
    position: int | None,
    count: int | None,
    as_json: bool,
) -> int:
    """Write what a reader of the channel would receive, until it is interrupted."""
    check_channel(channel)
    storage = get_storage()
    using = alias_of(channel)
    place = position
    if place is None:
        place = storage.current_ids(using, [channel])[channel]
    left = count
    while left is None or left > 0:
        number_stale(storage, using)
        log = storage.read_after(using, channel, place, limit=min(left or 1000, 1000))
        if log.is_reset:
            screen.finding(
                Level.WARNING,
                channel,
                f"{place} is not in the log: a client would get a stream-reset.",
                f"The log begins at {storage.floor(using, channel)}.",
            )
            place = log.last_eid
        for event in log.events:
            if as_json:
                fields = {"id": event.eid, "type": event.type, "data": event.data}
                screen.line(json.dumps(fields, ensure_ascii=False))
            else:
                screen.line(f"{channel}:{event.eid}  {event.type}  {event.data}")
            place = event.eid
        if left is not None:
            left -= len(log.events)
        if not log.events and left != 0:
            time.sleep(POLL_SECONDS)
    return 0


@dataclass(frozen=True)
class Undelivered:
    """An event that has not reached a target, and why."""

    event: Event
    target: str
    reason: str


def find_undelivered(
    using: str, *, targets: Collection[str], limit: int
) -> Iterator[Undelivered]:
    """Yield the first undelivered events of each target, the oldest place first."""
    unnumbered = Event.objects.using(using).filter(position=None).defer("data")
    waiting = list(unnumbered.order_by("partition", "pk")[:limit])
    pauses = {pause.name: pause for pause in PausedTarget.objects.using(using)}
    heads = get_storage().heads(using)
    for name in targets:
        found = 0
        cursors = Cursor.objects.using(using).filter(target=name)
        for cursor in cursors.order_by("partition"):
            if cursor.watermark >= heads.get(cursor.partition, 0):
                continue
            rows = Event.objects.using(using).filter(
                partition=cursor.partition, position__gt=cursor.watermark
            )
            if name in pauses:
                reason = pauses[name].describe()
            else:
                reason = cursor.last_error or "no relay has tried yet"
            for event in rows.defer("data").order_by("position")[: limit - found]:
                yield Undelivered(event, name, reason)
                found += 1
        for event in waiting[: limit - found]:
            yield Undelivered(event, name, "it has no id yet: no relay has come by")


def show_undelivered(
    screen: Screen,
    *,
    using: str,
    targets: Sequence[str],
    limit: int,
    is_dead: bool,
    as_json: bool,
) -> int:
    """Write which events have not reached which target, why, and since when."""
    now = database_now(using)
    names = targets or list(get_targets())
    rows: list[dict[str, Any]] = []
    if is_dead:
        where = Q(target__in=names)
        letters = DeadLetter.objects.using(using).filter(where).order_by("-pk")
        for letter in letters[:limit]:
            rows.append(
                _row(letter.event_id, letter.channel, letter.eid, letter.created, now)
                | {"target": letter.target, "why": letter.error}
            )
    else:
        for item in find_undelivered(using, targets=names, limit=limit):
            event = item.event
            channel = event.channel
            if event.kind == EventKind.KICK:
                channel += " (kick)"
            rows.append(
                _row(event.pk, channel, event.eid, event.created, now)
                | {"target": item.target, "why": item.reason}
            )
    if as_json:
        screen.line(json.dumps(rows))
    elif not rows:
        screen.line("No dead letters." if is_dead else "Nothing is undelivered.")
    else:
        columns = ["event", "channel", "id", "target", "since", "age", "why"]
        screen.table(columns, [[row[name] for name in columns] for row in rows])
        if len(rows) >= limit:
            screen.line(f"The first {limit} of each target; more with --limit.")
    return 1 if rows else 0


def _row(
    pk: int, channel: str, eid: int | None, created: Any, now: Any
) -> dict[str, Any]:
    return {
        "event": str(pk),
        "channel": channel,
        "id": None if eid is None else str(eid),
        "since": format_instant(created),
        "age": describe_seconds(max(0.0, (now - created).total_seconds())),
    }


def choose_alias(using: str | None) -> str:
    """Return the alias of an outbox; by default the first."""
    databases = conf.get_options().databases
    if using is not None and using not in databases:
        raise CommandError(
            f"{using!r} has no outbox; EVENTSTREAM_DATABASES is {list(databases)!r}."
        )
    return using or databases[0]


def choose_targets(wanted: Collection[str]) -> list[str]:
    """Return full names of targets; a part of the name will do where it is unique."""
    names = list(get_targets())
    found = []
    for text in wanted:
        matches = [n for n in names if n == text] or [n for n in names if text in n]
        if len(matches) != 1:
            why = "is not a target" if not matches else "means several targets"
            raise CommandError(
                f"{text!r} {why}; the settings have: " + (", ".join(names) or "none")
            )
        found += matches
    return found
