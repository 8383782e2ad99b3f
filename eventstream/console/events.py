"""send, tail and undelivered: events, one by one."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

from django.core.management.base import CommandError
from django.core.serializers.json import DjangoJSONEncoder

from eventstream import conf
from eventstream.api import EventState, send_event
from eventstream.console.outboxes import has_several_outboxes, tell_away, try_each
from eventstream.console.overview import format_instant
from eventstream.console.screen import Screen
from eventstream.exceptions import InvalidEventError
from eventstream.models import Event, EventKind
from eventstream.reading import number_stale
from eventstream.specs import check_channel
from eventstream.status import Level
from eventstream.storage import alias_of, get_storage
from eventstream.targets import get_targets
from eventstream.undelivered import (
    DEAD,
    WAITING,
    Lack,
    Search,
    UndeliveredEvent,
    find_undelivered,
)
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
    if sent.event_id is None:
        screen.line(f"The event on {channel} is stored, and has no id yet.")
    else:
        screen.line(f"{channel}:{sent.event_id} is {state.value}.")
    if state is EventState.CONFIRMED:
        return 0
    if state is EventState.DEAD:
        screen.finding(
            Level.ERROR,
            "event",
            "a target refused it for good; readers get it from the log.",
            "`python manage.py eventstream undelivered --dead` says which, and why.",
        )
        return 1
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
                data = event.data.replace("\n", "\\n")  # a line is an event
                screen.line(f"{channel}:{event.eid}  {event.type}  {data}")
            place = event.eid
        if left is not None:
            left -= len(log.rows)
        screen.flush()
        if not log.rows and left != 0:
            time.sleep(POLL_SECONDS)
    return 0


def show_undelivered(
    screen: Screen,
    *,
    databases: Sequence[str],
    targets: Sequence[str],
    limit: int,
    is_dead: bool,
    as_json: bool,
) -> int:
    """Write which events have not reached which target, why, and since when."""
    state = DEAD if is_dead else WAITING
    rows: list[dict[str, Any]] = []
    with_more: list[str] = []

    def find(using: str) -> None:
        # Without any target, events wait for their ids only.
        for name in targets or list(get_targets()) or [""]:
            search = Search(target=name, state=state)
            found = find_undelivered(using, search, limit=limit)
            if found.has_more:
                with_more.append(name)
            rows.extend(
                {"database": using, **_row(item, lack)}
                for item in found.events
                for lack in item.lacks
            )

    away = try_each(databases, find)
    if not rows:
        tell_away(away)
    if as_json:
        screen.line(json.dumps(rows, cls=DjangoJSONEncoder))
    elif not rows:
        screen.line("No dead letters." if is_dead else "Nothing is undelivered.")
    else:
        columns = [
            "event",
            "channel",
            "id",
            "target",
            "since",
            "age",
            "attempts",
            "why",
        ]
        if has_several_outboxes():
            columns.insert(0, "database")
        for row in rows:
            row["since"] = format_instant(row["since"])
        screen.table(columns, [[row[name] for name in columns] for row in rows])
        if with_more:
            screen.line(f"The first {limit} of each target; more with --limit.")
    tell_away(away)
    return 1 if rows else 0


def _row(item: UndeliveredEvent, lack: Lack) -> dict[str, Any]:
    event = item.event
    return {
        "event": str(event.pk),
        "channel": event.channel + " (kick)" * (event.kind == EventKind.KICK),
        "id": None if event.eid is None else str(event.eid),
        "target": lack.target or "none",
        "since": event.created,
        "age": describe_seconds(item.age_seconds),
        "attempts": lack.attempts,
        "next_attempt": lack.next_attempt,
        "why": _why(event, lack),
    }


def _why(event: Event, lack: Lack) -> str:
    if lack.pause:
        return lack.pause
    if lack.error or event.position is not None:
        return lack.error or "no relay has tried yet"
    return "it has no id yet: no relay has come by"


def choose_databases(using: str | None) -> list[str]:
    """Return the alias of an outbox; by default those of all."""
    databases = list(conf.get_options().databases)
    if using is None:
        return databases
    if using not in databases:
        raise CommandError(
            f"{using!r} has no outbox; EVENTSTREAM_DATABASES is {databases!r}."
        )
    return [using]


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
