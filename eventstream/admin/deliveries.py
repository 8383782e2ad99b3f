"""How far each target has come, and what it refused."""

from __future__ import annotations

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.actions import delete_selected
from django.db.models import Case, F, IntegerField, OuterRef, QuerySet, Subquery, When
from django.db.models.functions import Coalesce, Now
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html
from django.utils.safestring import SafeString

from eventstream.admin.base import COUNT_LIMIT, ERROR_LENGTH, ReadOnlyAdmin, alias
from eventstream.admin.confirming import is_confirmed
from eventstream.admin.publishing import retry_letters
from eventstream.excerpts import excerpt
from eventstream.models import Cursor, DeadLetter, Partition
from eventstream.targets import get_targets

_FREE, _HELD, _EXPIRED = range(3)


@admin.register(Cursor)
class CursorAdmin(ReadOnlyAdmin[Cursor]):
    """The deliveries: one row for each target and partition, the troubled ones first."""

    list_title = "Deliveries"
    # What is wrong comes before what an ordinary window cuts off.
    list_display = (
        "target",
        "partition",
        "behind",
        "failing_since",
        "error",
        "attempts",
        "next_attempt",
        "lease",
        "watermark",
        "head",
        "is_configured",
    )
    list_filter = ("target",)
    sortable_by = ("target", "partition", "behind", "failing_since")
    actions = ("try_now", "delete_selected")
    fields = (
        "target",
        "is_configured",
        "partition",
        "watermark",
        "head",
        "behind",
        "confirmed_at",
        "lease",
        "lease_until",
        "attempts",
        "next_attempt",
        "failing_since",
        "last_error",
    )
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[Cursor]:
        partitions = Partition.objects.filter(number=OuterRef("partition"))
        head = Coalesce(Subquery(partitions.values("last_position")[:1]), 0)
        lease = Case(
            When(lease_until__isnull=True, then=_FREE),
            When(lease_until__lt=Now(), then=_EXPIRED),
            default=_HELD,
            output_field=IntegerField(),
        )
        trouble = Case(
            When(failing_since__isnull=False, then=2),
            When(behind__gt=0, then=1),
            default=0,
            output_field=IntegerField(),
        )
        rows = super().get_queryset(request).annotate(head=head, lease_state=lease)
        rows = rows.annotate(behind=F("head") - F("watermark")).annotate(
            trouble=trouble
        )
        return rows.order_by("-trouble", "-behind", "target", "partition")

    def has_delete_permission(
        self, request: HttpRequest, obj: Cursor | None = None
    ) -> bool:
        """Ask the user's permission; a target in the settings keeps its cursors."""
        if obj is not None and self.why_not_delete(obj):
            return False
        return request.user.has_perm("eventstream.delete_cursor")

    def why_not_delete(self, obj: Cursor) -> str:
        if obj.target not in get_targets():
            return ""
        return (
            f"{obj.target} is still in the settings: without this row the target would "
            "begin again at the head, and never get what waits for it. Take it out of "
            "the settings first."
        )

    @admin.display(description="head", ordering="head")
    def head(self, cursor: Any) -> int:
        return int(cursor.head)

    @admin.display(description="behind", ordering="behind")
    def behind(self, cursor: Any) -> int:
        return int(cursor.behind)

    @admin.display(description="lease")
    def lease(self, cursor: Any) -> str:
        if cursor.lease_state == _FREE:
            return "free"
        until = timezone.localtime(cursor.lease_until)
        word = "held until" if cursor.lease_state == _HELD else "expired"
        return f"{word} {date_format(until, 'H:i:s')}"

    @admin.display(description="last error")
    def error(self, cursor: Cursor) -> str:
        return excerpt(cursor.last_error, ERROR_LENGTH)

    @admin.display(description="in the settings", boolean=True)
    def is_configured(self, cursor: Cursor) -> bool:
        return cursor.target in get_targets()

    @admin.action(permissions=["publish"], description="Try now")
    def try_now(
        self, request: HttpRequest, queryset: QuerySet[Cursor]
    ) -> HttpResponse | None:
        """Relay the chosen partitions to the chosen targets, due or not."""
        if not is_confirmed(request):
            return self.confirm_action(
                request,
                queryset,
                title="Try these deliveries now?",
                text="Whatever waits there is published at once, due or not, in order.",
                button="Yes, try now",
            )
        self.log_action(request, queryset, "Tried at an operator's request")
        targets = get_targets()
        pairs = []
        for partition, name in queryset.values_list("partition", "target"):
            if name in targets:
                pairs.append((partition, name))
            else:
                text = f"{name} is not in the settings: nothing is published there."
                self.message_user(request, text, messages.WARNING)
        self.report_publishing(request, pairs)
        return None

    @admin.action(permissions=["delete"], description="Delete selected deliveries")
    def delete_selected(
        self, request: HttpRequest, queryset: QuerySet[Cursor]
    ) -> HttpResponse | None:
        """Delete those of removed targets; say why the others stay."""
        kept = {
            cursor.target: self.why_not_delete(cursor)
            for cursor in queryset
            if self.why_not_delete(cursor)
        }
        for reason in kept.values():
            self.message_user(request, reason, messages.ERROR)
        removed = queryset.exclude(target__in=list(kept))
        if not removed.exists():
            return None
        response: HttpResponse | None = delete_selected(self, request, removed)
        return response


@admin.register(DeadLetter)
class DeadLetterAdmin(ReadOnlyAdmin[DeadLetter]):
    """What a target refused for good. Its readers get it from the log."""

    actions = ("retry",)
    list_display = ("channel", "eid", "target", "short_error", "created", "event")
    list_filter = ("target",)
    sortable_by = ()
    ordering = ("-pk",)
    fields = (
        "channel",
        "eid",
        "target",
        "error",
        "created",
        "event",
        "partition",
        "position",
    )
    readonly_fields = fields

    @admin.action(permissions=["publish"], description="Retry")
    def retry(
        self, request: HttpRequest, queryset: QuerySet[DeadLetter]
    ) -> HttpResponse | None:
        """Publish again what the targets refused, where that is still of use."""
        if not is_confirmed(request):
            return self.confirm_action(
                request,
                queryset,
                title="Retry these dead letters?",
                text="They are published again, unless their target has accepted a newer "
                "event of the channel: then its readers have had them from the log, and "
                "the letter is only removed.",
                button="Yes, retry",
            )
        letters = queryset.order_by("partition", "position")[:COUNT_LIMIT]
        self.log_action(request, queryset, "Retried")
        for level, text in retry_letters(alias(), list(letters)):
            self.message_user(request, text, level)
        return None

    @admin.display(description="error")
    def short_error(self, letter: DeadLetter) -> str:
        return excerpt(letter.error, ERROR_LENGTH)

    @admin.display(description="event")
    def event(self, letter: DeadLetter) -> SafeString:
        url = reverse(
            "admin:eventstream_event_change",
            args=[letter.event_id],
            current_app=self.admin_site.name,
        )
        return format_html('<a href="{}">Event {}</a>', url, letter.event_id)
