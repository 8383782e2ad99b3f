"""Events and channels."""

from __future__ import annotations

import datetime
import json
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import Exists, Min, OuterRef, Q, QuerySet
from django.db.models.functions import Left
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from eventstream.admin.base import (
    OutboxChangeList,
    ReadOnlyAdmin,
    alias,
)
from eventstream.admin.confirming import is_confirmed
from eventstream.api import EventState
from eventstream.excerpts import EXCERPT_LENGTH, excerpt
from eventstream.models import Channel, Cursor, DeadLetter, Event
from eventstream.relay import NO_TARGET
from eventstream.storage import get_storage
from eventstream.targets import get_targets

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin

ALL = "all"
RECENT_COUNT = 1000
PAYLOAD_LENGTH = 20_000
CHANNEL_LIMIT = 1000
RANGE_LIMIT = 500  # SQLite refuses a condition of a thousand terms


def lowest_watermarks(using: str) -> dict[int, int]:
    """Return by partition what every configured target has accepted."""
    rows = Cursor.objects.using(using).filter(target__in=list(get_targets()))
    marks = rows.order_by().values("partition").annotate(mark=Min("watermark"))
    return dict(marks.values_list("partition", "mark"))


def waiting(using: str) -> Q:
    """Return the condition of an undelivered event: by ranges that indexes serve."""
    # The heads are read last: whatever is numbered in between counts as undelivered.
    marks = lowest_watermarks(using)
    heads = get_storage().heads(using)
    behind = {
        partition: mark
        for partition, mark in marks.items()
        if mark < heads.get(partition, 0)
    }
    condition = Q(position__isnull=True)
    if len(behind) > RANGE_LIMIT:
        cursors = Cursor.objects.using(using).filter(
            target__in=list(get_targets()),
            partition=OuterRef("partition"),
            watermark__lt=OuterRef("position"),
        )
        return condition | Q(Exists(cursors))
    for partition, mark in behind.items():
        condition |= Q(partition=partition, position__gt=mark)
    return condition


def states_of(using: str, events: Collection[Event]) -> dict[int, EventState]:
    """Return how far events have come, by primary key, in two queries."""
    marks = lowest_watermarks(using)
    letters = DeadLetter.objects.using(using).filter(
        event_id__in=[event.pk for event in events]
    )
    refused = set(letters.values_list("event_id", flat=True))

    def state(event: Event) -> EventState:
        if event.position is None:
            return EventState.UNNUMBERED
        if marks.get(event.partition, event.position) < event.position:
            return EventState.UNDELIVERED
        return EventState.DEAD if event.pk in refused else EventState.CONFIRMED

    return {event.pk: state(event) for event in events}


class StateFilter(admin.SimpleListFilter):
    """How far an event has come. Undelivered unless asked otherwise."""

    title = "state"
    parameter_name = "state"

    def lookups(
        self, request: HttpRequest, model_admin: ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        states = (
            EventState.UNDELIVERED,
            EventState.UNNUMBERED,
            EventState.CONFIRMED,
            EventState.DEAD,
        )
        return [*((state.value, state.value) for state in states), (ALL, ALL)]

    def value(self) -> str:
        chosen = super().value() or ""
        known = {value for value, _ in self.lookup_choices}
        return chosen if chosen in known else EventState.UNDELIVERED.value

    def choices(self, changelist: ChangeList) -> Iterator[Any]:
        choices = super().choices(changelist)
        next(choices)  # "All" without a parameter: here that is undelivered
        return choices

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        value = self.value()
        if value == ALL:
            return queryset
        if value == EventState.UNNUMBERED.value:
            return queryset.filter(position__isnull=True)
        condition = waiting(alias())
        if value == EventState.UNDELIVERED.value:
            return queryset.filter(condition)
        refused = DeadLetter.objects.using(alias()).values("event_id")
        delivered = queryset.exclude(condition)
        if value == EventState.DEAD.value:
            return delivered.filter(pk__in=refused)
        return delivered.exclude(pk__in=refused)


class TypeFilter(admin.SimpleListFilter):
    """The types of the newest events: those of all would take reading all."""

    title = f"type (of the newest {RECENT_COUNT:,})"
    parameter_name = "type"

    def lookups(
        self, request: HttpRequest, model_admin: ModelAdmin[Any]
    ) -> list[tuple[str, str]]:
        rows = Event.objects.using(alias()).order_by("-pk")
        types = set(rows.values_list("type", flat=True)[:RECENT_COUNT])
        chosen = self.value()
        if chosen is not None:
            types.add(chosen)
        return [(name, name) for name in sorted(types)]

    def queryset(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> QuerySet[Any] | None:
        chosen = self.value()
        return queryset if chosen is None else queryset.filter(type=chosen)


class EventChangeList(OutboxChangeList):
    """Reads a page's events without their data, and all their states together."""

    def get_queryset(self, request: HttpRequest, *args: Any) -> QuerySet[Any]:
        beginning = Left("data", EXCERPT_LENGTH + 1)
        rows = super().get_queryset(request, *args).annotate(beginning=beginning)
        small: QuerySet[Any] = rows.defer("data", "skip_users")
        return small

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        states = states_of(alias(), self.result_list)
        for event in self.result_list:
            event.delivery_state = states[event.pk]


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin[Event]):
    """What was sent, how far it has come, and the button to try again."""

    list_display = (
        "channel",
        "eid",
        "type",
        "state",
        "created",
        "age",
        "beginning",
    )
    list_filter = (StateFilter, TypeFilter, "kind")
    search_fields = ("channel",)
    search_help_text = "The beginning of a channel's name, exactly as it is written."
    sortable_by = ()  # there is no index to sort by anything else
    ordering = ("-pk",)
    actions = ("publish",)
    fields = (
        "channel",
        "eid",
        "kind",
        "type",
        "state",
        "targets",
        "payload",
        "skip_users",
        "idempotency_key",
        "created",
        "age",
        "partition",
        "position",
        "id",
    )
    readonly_fields = fields

    def get_changelist(
        self, request: HttpRequest, **kwargs: Any
    ) -> type[OutboxChangeList]:
        return EventChangeList

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Search by the channels' names first: theirs is the index for a prefix.

        Events without a number may be the first of a channel that has no row yet; of
        those there are few, and a partial index.
        """
        if not search_term:
            return queryset, False
        channels = Channel.objects.using(alias()).filter(name__startswith=search_term)
        names = list(channels.values_list("name", flat=True)[: CHANNEL_LIMIT + 1])
        if len(names) > CHANNEL_LIMIT:
            return queryset.filter(channel__startswith=search_term), False
        unnumbered = Q(position__isnull=True, channel__startswith=search_term)
        return queryset.filter(Q(channel__in=names) | unnumbered), False

    def why_not_delete(self, obj: Event) -> str:
        return (
            "Events cannot be deleted here: a hole in a channel's ids could not be told "
            "from a lost event. `prune` deletes them after EVENTSTREAM_RETENTION."
        )

    @admin.display(description="state")
    def state(self, event: Any) -> str:
        found: EventState | None = getattr(event, "delivery_state", None)
        return (found or states_of(alias(), [event])[event.pk]).value

    @admin.display(description="age")
    def age(self, event: Event) -> str:
        now = datetime.datetime.now(datetime.UTC)
        seconds = max(0, int((now - event.created).total_seconds()))
        for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
            if seconds >= 2 * size:
                return f"{seconds // size} {unit}"
        return f"{seconds} s"

    @admin.display(description="data")
    def beginning(self, event: Any) -> str:
        return excerpt(event.beginning)

    @admin.display(description="data")
    def payload(self, event: Event) -> SafeString:
        """Show JSON indented, and no more of a long text than can be read."""
        text = event.data
        try:
            text = _indent(text)
        except (ValueError, RecursionError):
            pass  # sent as it is
        note = ""
        if len(text) > PAYLOAD_LENGTH:
            stored = len(event.data)
            note = f"The first {PAYLOAD_LENGTH:,} characters; {stored:,} are stored."
            text = text[:PAYLOAD_LENGTH]
        return format_html("<pre>{}</pre>{}", text, note)

    @admin.display(description="targets")
    def targets(self, event: Event) -> SafeString | str:
        rows = list(_target_states(event))
        if not rows:
            return "None is configured: readers get the event from the log."
        return format_html_join(SafeString("<br>"), "{}: {}", rows)

    @admin.action(permissions=["publish"], description="Publish now")
    def publish(
        self, request: HttpRequest, queryset: QuerySet[Event]
    ) -> HttpResponse | None:
        """Relay the partitions of the chosen events: within one, order is kept."""
        if not is_confirmed(request):
            return self.confirm_action(
                request,
                queryset.defer("data"),
                title="Publish these events now?",
                text="Their partitions are published at once, due or not, and in order: "
                "with what waits before and after them.",
                button="Yes, publish now",
            )
        numbers = queryset.order_by().values_list("partition", flat=True).distinct()
        pairs = [
            (partition, name)
            for partition in sorted(numbers)
            for name in get_targets() or [NO_TARGET]
        ]
        if not pairs:
            text = "These events do not wait any more."
            self.message_user(request, text, messages.INFO)
            return None
        self.log_action(request, queryset, "Published at an operator's request")
        self.report_publishing(request, pairs)
        return None


def _indent(text: str) -> str:
    """Return JSON indented, no further than can be shown: nested data grow a thousandfold.

    Half of a surrogate pair stays as JSON has it, as no page can hold one.

    Raises:
        ValueError, RecursionError: It is no JSON, or nested too deeply.
    """
    pieces = json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(text))
    found, size = [], 0
    for piece in pieces:
        found.append(piece)
        size += len(piece)
        if size > PAYLOAD_LENGTH:
            break
    return "".join(found).encode(errors="backslashreplace").decode()


def _target_states(event: Event) -> Iterator[tuple[str, str]]:
    """Yield (target, state) of the configured targets, and of others that refused."""
    using = alias()
    rows = Cursor.objects.using(using).filter(partition=event.partition)
    cursors = {cursor.target: cursor for cursor in rows}
    letters = DeadLetter.objects.using(using).filter(event_id=event.pk)
    refused = dict(letters.values_list("target", "error"))
    for name in dict.fromkeys([*get_targets(), *sorted(refused)]):
        cursor = cursors.get(name)
        if name in refused:
            yield name, f"refused: {refused[name]}"
        elif event.position is None or (cursor and cursor.watermark < event.position):
            error = cursor.last_error if cursor else ""
            yield name, f"waiting; last error: {error}" if error else "waiting"
        elif cursor is None:
            yield name, "not published there: it is older than the target"
        else:
            yield name, "confirmed"
