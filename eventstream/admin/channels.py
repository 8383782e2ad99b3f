"""Channels: how far each has come, who reads it, and its stream as it goes by."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.db.models import OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import NoReverseMatch, reverse

from eventstream.admin.base import ReadOnlyAdmin, alias
from eventstream.channelmanager import is_reliable
from eventstream.models import Channel, Cursor, Event
from eventstream.positions import format_position
from eventstream.status import get_status
from eventstream.targets import get_targets
from eventstream.tokens import make_operator_token
from eventstream.transactions import outside_transactions

LAG_LIMIT = 10_000
TAIL_COUNT = 20
"""Events that the tail begins with, if there are so many."""


@admin.register(Channel)
class ChannelAdmin(ReadOnlyAdmin[Channel]):
    """The channels that ever had an event."""

    list_display = ("name", "partition", "last_eid", "floor", "stored")
    search_fields = ("name",)
    search_help_text = "The beginning of a name, exactly as it is written."
    sortable_by = ("name",)
    ordering = ("name",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Channel]:
        stored = Event.objects.filter(channel=OuterRef("name"), eid__isnull=False)
        first = stored.order_by("eid").values("eid")[:1]
        return super().get_queryset(request).annotate(first_eid=Subquery(first))

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        if search_term:
            queryset = queryset.filter(name__startswith=search_term)
        return queryset, False

    def why_not_delete(self, obj: Channel) -> str:
        return (
            "Channels cannot be deleted: the ids would begin again at 1, and clients "
            "that hold a higher one would miss events."
        )

    @admin.display(description="floor (the largest id pruned)")
    def floor(self, channel: Any) -> int:
        first = channel.first_eid
        return int(channel.last_eid if first is None else first - 1)

    @admin.display(description="events stored")
    def stored(self, channel: Any) -> int:
        # Consecutive, and pruned from below: no need to count.
        return int(channel.last_eid) - self.floor(channel)

    @outside_transactions
    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one channel, and its stream as it goes by."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        name = unquote(object_id)
        channel: Any = self.get_object(request, name)
        if channel is None:
            text = f"There is no channel {name[:255]!r}: it never had a numbered event."
            self.message_user(request, text, messages.ERROR)
            return HttpResponseRedirect(self._url("channel_changelist"))
        if request.method != "GET":
            raise PermissionDenied  # there is nothing to change
        floor = self.floor(channel)
        status = get_status(alias())
        context = {
            **self.admin_site.each_context(request),
            "title": channel.name,
            "parent": {"title": "Channels", "url": self._url("channel_changelist")},
            "channel": channel,
            "floor": floor,
            "stored": self.stored(channel),
            "lags": self._lags(channel),
            "holders": [
                (holder, holder.channels.get(name, 0)) for holder in status.holders
            ],
            "tail": self._tail(request, channel, floor),
            "proxies": [t for t in status.targets if t.kind == "GRIP proxy"],
            "events_url": self._list_of("event", {"q": channel.name, "state": "all"}),
            "undelivered_url": self._list_of("undeliveredevent", {"q": channel.name}),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/eventstream/channel.html", context)

    def _lags(self, channel: Channel) -> list[dict[str, Any]]:
        """Return what each target lacks of the channel: ids are consecutive, so the last."""
        marks = dict(
            Cursor.objects.using(alias())
            .filter(partition=channel.partition, target__in=list(get_targets()))
            .values_list("target", "watermark")
        )
        found = []
        for name in get_targets():
            count = 0
            if name in marks:
                rows = Event.objects.using(alias()).filter(
                    channel=channel.name,
                    eid__gt=channel.last_eid - LAG_LIMIT,
                    position__gt=marks[name],
                )
                count = rows.count()
            found.append(
                {"target": name, "count": count, "is_more": count >= LAG_LIMIT}
            )
        return found

    def _tail(
        self, request: HttpRequest, channel: Channel, floor: int
    ) -> dict[str, str] | None:
        """Return what the page needs to read the stream; None if the user may not."""
        if not request.user.has_perm("eventstream.view_event"):
            return None
        try:
            url = reverse("eventstream:events")
        except NoReverseMatch:
            return {"url": ""}
        start = max(floor, channel.last_eid - TAIL_COUNT)
        position = ""
        if is_reliable(channel.name):
            position = format_position({channel.name: start})
        user: Any = request.user
        token = make_operator_token(user, channel.name)
        return {"url": url, "token": token, "position": position}

    def _list_of(self, name: str, query: dict[str, str]) -> str:
        return f"{self._url(f'{name}_changelist')}?{urlencode(query)}"

    def _url(self, name: str) -> str:
        return reverse(f"admin:eventstream_{name}", current_app=self.admin_site.name)
