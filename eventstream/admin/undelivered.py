"""Undelivered events: the page for whoever is called because nothing arrives."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, QueryDict
from django.template.loader import render_to_string
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.safestring import SafeString

from eventstream.admin.base import ReadOnlyAdmin, alias
from eventstream.admin.confirming import Question, ask, is_confirmed, reason_of
from eventstream.admin.health import look, render_health
from eventstream.admin.listing import AGES, STATES, Listing, filters_of
from eventstream.admin.publishing import retry_letters
from eventstream.deadletters import give_up
from eventstream.exceptions import CannotGiveUpError
from eventstream.models import DeadLetter, Event, UndeliveredEvent
from eventstream.relay import NO_TARGET
from eventstream.targets import get_targets
from eventstream.transactions import outside_transactions
from eventstream.words import describe_count

Pair = tuple[int, str]
"""An event's primary key, and a target."""


@admin.register(UndeliveredEvent)
class UndeliveredAdmin(ReadOnlyAdmin[UndeliveredEvent]):
    """Which events have not reached which target, why, since when, and what to press."""

    def has_view_permission(
        self, request: HttpRequest, obj: UndeliveredEvent | None = None
    ) -> bool:
        return request.user.has_perm("eventstream.view_event")

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.act_view)
        return [
            path("act/", view, name="eventstream_undeliveredevent_act"),
            *super().get_urls(),
        ]

    # --- the list

    @outside_transactions
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "title": "Undelivered events",
            "body": self.render_body(request),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/eventstream/undelivered.html", context)

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Lead to the event's own page: this is the same row."""
        name = "admin:eventstream_event_change"
        url = reverse(name, args=[object_id], current_app=self.admin_site.name)
        return HttpResponseRedirect(url)

    def render_body(self, request: HttpRequest) -> SafeString:
        """Return the panel, filters and table; the app's index shows them, too."""
        if not self.has_view_permission(request):
            return SafeString()
        health = look(request, ask=request.GET.get("ask") == "1")
        listing = Listing(request.GET, health.status)
        source = urlencode({"list": "undelivered"})
        if listing.query:
            source += f"&{listing.query}"
        context = {
            "panel": render_health(request, health),
            "stream_url": f"{self._url('sample_stream')}?{source}",
            "status_url": f"{self._url('sample_status')}?{source}",
            "listing": listing,
            "targets": [t.name for t in health.status.targets],
            "ages": AGES,
            "states": STATES,
            "table": self.render_table(request, listing),
            "list_url": self._url("undeliveredevent_changelist"),
            "act_url": self._url("undeliveredevent_act"),
        }
        return render_to_string(
            "admin/eventstream/undelivered_body.html", context, request
        )

    def render_table(self, request: HttpRequest, listing: Listing) -> SafeString:
        """Return the table, its buttons and its pages: what refreshes itself."""
        context = {
            "listing": listing,
            "actions": list(self._actions(request)),
            "list_url": self._url("undeliveredevent_changelist"),
        }
        return render_to_string(
            "admin/eventstream/undelivered_table.html", context, request
        )

    def _url(self, name: str) -> str:
        return reverse(f"admin:eventstream_{name}", current_app=self.admin_site.name)

    # --- actions

    def _actions(self, request: HttpRequest) -> Iterator[tuple[str, str]]:
        if self.has_publish_permission(request):
            yield "publish", "Publish now…"
            yield "retry", "Retry dead letters…"
        if request.user.has_perm("eventstream.give_up_event"):
            yield "give_up", "Give up…"

    @outside_transactions
    def act_view(self, request: HttpRequest) -> HttpResponse:
        """Ask whether to, then publish, retry or give up the chosen events."""
        action = request.POST.get("action", "")
        back = self._url("undeliveredevent_changelist")
        filters = filters_of(QueryDict(request.POST.get("query", "")))
        if filters:
            back = f"{back}?{filters}"
        if not self.has_view_permission(request):
            raise PermissionDenied
        known: dict[str, Callable[..., None]] = {
            "publish": self._publish,
            "retry": self._retry,
            "give_up": self._give_up,
        }
        if request.method != "POST" or action not in known:
            text = f"There is no action {action!r} here. Choose one below the list."
            self.message_user(request, text, messages.ERROR)
            return HttpResponseRedirect(back)
        if action not in dict(self._actions(request)):
            raise PermissionDenied
        pairs, problems = _read_pairs(request.POST.getlist("item"))
        for problem in problems:
            self.message_user(request, problem, messages.ERROR)
        if not pairs:
            if not problems:
                text = "Nothing was chosen: tick events in the list first."
                self.message_user(request, text, messages.WARNING)
            return HttpResponseRedirect(back)
        if is_confirmed(request):
            known[action](request, pairs)
            return HttpResponseRedirect(back)
        fields = [("action", action), ("query", filters)]
        fields += [("item", f"{pk}:{target}") for pk, target in pairs]
        parent = {"title": "Undelivered events", "url": back}
        question = _question(action, pairs, fields)
        url = self._url("undeliveredevent_act")
        return ask(self, request, question, parent=parent, action_url=url)

    def _log(self, request: HttpRequest, pairs: Collection[Pair], done: str) -> None:
        """Write what was done into the history of each event."""
        names: dict[int, list[str]] = {}
        for pk, target in pairs:
            names.setdefault(pk, []).append(target)
        for event in Event.objects.using(alias()).filter(pk__in=list(names)):
            targets = ", ".join(name or "no target" for name in names[event.pk])
            self.log_change(request, event, f"{done}: {targets}")  # type: ignore[arg-type]

    def _publish(self, request: HttpRequest, pairs: Collection[Pair]) -> None:
        """Relay the partitions of the chosen events: within one, order is kept."""
        partitions = dict(
            Event.objects.using(alias())
            .filter(pk__in={pk for pk, _ in pairs})
            .values_list("pk", "partition")
        )
        chosen = sorted({(partitions[pk], name) for pk, name in pairs})
        self._log(request, pairs, "Published at an operator's request")
        self.report_publishing(request, chosen)

    def _retry(self, request: HttpRequest, pairs: Collection[Pair]) -> None:
        """Publish dead letters again, where that is still of use."""
        letters = DeadLetter.objects.using(alias()).filter(
            event_id__in={pk for pk, _ in pairs}
        )
        chosen = [x for x in letters if (x.event_id, x.target) in set(pairs)]
        if not chosen:
            text = "None of these is a dead letter (any more): nothing was retried."
            self.message_user(request, text, messages.WARNING)
            return
        done = [(letter.event_id, letter.target) for letter in chosen]
        self._log(request, done, "Retried")
        for level, text in retry_letters(alias(), chosen):
            self.message_user(request, text, level)

    def _give_up(self, request: HttpRequest, pairs: Collection[Pair]) -> None:
        """Make dead letters of events that wait."""
        reason = reason_of(request) or "no reason given"
        done = []
        for pk, target in pairs:
            text = f"Given up by {request.user.get_username()}: {reason}"
            try:
                give_up(alias(), target, pk, text)
            except CannotGiveUpError as error:
                self.message_user(request, str(error), messages.ERROR)
            else:
                done.append((pk, target))
        self._log(request, done, f"Given up ({reason})")
        if done:
            was, they = ("was", "Its readers get it")
            if len(done) > 1:
                was, they = ("were", "Their readers get them")
            text = f"{describe_count(len(done), 'event')} {was} given up. {they} from the log."
            self.message_user(request, text, messages.SUCCESS)


def _question(
    action: str, pairs: Collection[Pair], fields: list[tuple[str, str]]
) -> Question:
    items = _describe_pairs(pairs)
    count = describe_count(len(items), "event")
    if action == "publish":
        return Question(
            title=f"Publish {count} now?",
            text="The partitions of these events are published at once, due or not, and "
            "in their order: with what waits before and after them. Nothing is sent "
            "twice to a reader.",
            items=items,
            button="Yes, publish now",
            fields=fields,
        )
    if action == "retry":
        return Question(
            title=f"Retry {count}?",
            text="Dead letters are published again, unless their target has accepted a "
            "newer event of the channel: then its readers have had them from the log, "
            "and the letter is only removed.",
            items=items,
            button="Yes, retry",
            fields=fields,
        )
    return Question(
        title=f"Give up {count}?",
        text="The target does not get these events any more, so that what waits behind "
        "them can go on. Its readers see the gap, and get the events from the log. They "
        "become dead letters, which can be retried.",
        items=items,
        button="Yes, give up",
        fields=fields,
        is_dangerous=True,
        asks_reason=True,
    )


def _describe_pairs(pairs: Collection[Pair]) -> list[str]:
    rows = Event.objects.using(alias()).filter(pk__in={pk for pk, _ in pairs})
    events = {event.pk: event for event in rows.defer("data")}
    return [f"{events[pk]} → {target or 'numbering only'}" for pk, target in pairs]


def _read_pairs(values: Collection[str]) -> tuple[list[Pair], list[str]]:
    """Return the (event, target) pairs of a form, and what is wrong with the others."""
    pairs: list[Pair] = []
    problems: list[str] = []
    for value in dict.fromkeys(values):
        key, _, target = value.partition(":")
        if not (key.isascii() and key.isdecimal() and len(key) < 19):
            problems.append(f"{value[:80]!r} is not an event of this list.")
        elif target != NO_TARGET and target not in get_targets():
            problems.append(
                f"{target[:200]} is not in the settings (any more): nothing is published "
                "there. Its deliveries can be deleted."
            )
        else:
            pairs.append((int(key), target))
    rows = Event.objects.using(alias()).filter(pk__in={pk for pk, _ in pairs})
    found = set(rows.values_list("pk", flat=True))
    gone = sorted({pk for pk, _ in pairs} - found)
    problems += [f"Event {pk} is not stored (any more)." for pk in gone]
    return [pair for pair in pairs if pair[0] in found], problems
