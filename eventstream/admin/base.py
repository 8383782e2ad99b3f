"""What every page has in common: it is read only, and cheap on a large table."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, TypeVar

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.utils import unquote
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db import models
from django.db.models import QuerySet
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseRedirect,
)
from django.urls import reverse
from django.utils.functional import cached_property

from eventstream import conf
from eventstream.admin.confirming import Question, ask
from eventstream.admin.publishing import publish_now
from eventstream.transactions import outside_transactions

COUNT_LIMIT = 10_000
ITEMS_NAMED = 50
ERROR_LENGTH = 250  # what matters comes last in most

_Model = TypeVar("_Model", bound=models.Model)

if TYPE_CHECKING:
    from django.contrib.admin import ModelAdmin as _ModelAdmin
else:

    class _ModelAdmin(admin.ModelAdmin):
        def __class_getitem__(cls, model: object) -> type:
            return cls  # generic for the type checker only


def alias() -> str:
    """Return the database that the admin shows."""
    return conf.get_options().databases[0]


class CappedPaginator(Paginator):  # type: ignore[type-arg]  # generic in the stubs only
    """Counts to 10,000 and no further: a count reads every row that it counts."""

    is_capped = False

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        found: int = rows.order_by().values("pk")[: COUNT_LIMIT + 1].count()
        self.is_capped = found > COUNT_LIMIT
        return min(found, COUNT_LIMIT)


class OutboxChangeList(ChangeList):
    """Says so in its title if there is more than was counted."""

    def __init__(self, request: HttpRequest, *args: Any, **kwargs: Any) -> None:
        super().__init__(request, *args, **kwargs)
        if self.paginator.is_capped:
            self.title = f"{self.title} (of the first {COUNT_LIMIT:,})"

    def get_filters(self, request: HttpRequest) -> Any:
        for values in self.get_filters_params().values():
            if any("\0" in value for value in values):
                # PostgreSQL has no such text, and Django asks it all the same.
                raise IncorrectLookupParameters
        return super().get_filters(request)


class ReadOnlyAdmin(_ModelAdmin[_Model]):
    """A page to look at. Only the relay, and whoever sends, write these tables.

    Attributes:
        list_title: What the list is headed; "" for the usual "Select … to view".
    """

    list_title = ""
    paginator = CappedPaginator
    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER  # each is a count of the whole table
    actions_on_bottom = False

    def get_queryset(self, request: HttpRequest) -> QuerySet[_Model]:
        return super().get_queryset(request).using(alias())

    def get_changelist(
        self, request: HttpRequest, **kwargs: Any
    ) -> type[OutboxChangeList]:
        return OutboxChangeList

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(
        self, request: HttpRequest, obj: _Model | None = None
    ) -> bool:
        return False

    def has_delete_permission(
        self, request: HttpRequest, obj: _Model | None = None
    ) -> bool:
        return False

    def has_publish_permission(self, request: HttpRequest) -> bool:
        """Say whether the user may run the actions that publish."""
        return request.user.has_perm("eventstream.publish_event")

    def why_not_delete(self, obj: _Model) -> str:
        """Return why nobody may delete this row; "" leaves it to the permission."""
        return ""

    @outside_transactions
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        # Overriding this takes the decorator along, or ATOMIC_REQUESTS is back.
        title = {"title": self.list_title} if self.list_title else {}
        return super().changelist_view(request, {**title, **(extra_context or {})})

    def delete_view(
        self,
        request: HttpRequest,
        object_id: str,
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Explain what a bare "403 Forbidden" would not."""
        obj = self.get_object(request, unquote(object_id))
        if obj is not None and self.has_view_permission(request, obj):
            reason = self.why_not_delete(obj)
            if reason:
                self.message_user(request, reason, messages.ERROR)
                return HttpResponseRedirect(self._change_url(object_id))
        return super().delete_view(request, object_id, extra_context)

    def _change_url(self, object_id: str) -> str:
        name = f"admin:eventstream_{self.opts.model_name}_change"
        return reverse(name, args=[object_id], current_app=self.admin_site.name)

    def confirm_action(
        self,
        request: HttpRequest,
        queryset: QuerySet[_Model],
        *,
        title: str,
        text: str,
        button: str,
    ) -> HttpResponse:
        """Ask before a list's action; the answer runs it again, confirmed."""
        names = ("action", "index", "select_across")
        fields = [(name, request.POST[name]) for name in names if name in request.POST]
        chosen = request.POST.getlist(ACTION_CHECKBOX_NAME)
        fields += [(ACTION_CHECKBOX_NAME, key) for key in chosen]
        rows = list(queryset[: ITEMS_NAMED + 1])
        items = [str(row) for row in rows[:ITEMS_NAMED]]
        if len(rows) > ITEMS_NAMED:
            items.append("… and more")
        url = request.get_full_path()
        parent = {"title": str(self.opts.verbose_name_plural).capitalize(), "url": url}
        question = Question(title, text, items, button, fields)
        return ask(self, request, question, parent=parent, action_url=url)

    def log_action(
        self, request: HttpRequest, queryset: QuerySet[_Model], done: str
    ) -> None:
        """Write what was done into the history of up to a page of rows."""
        for row in queryset[: self.list_per_page]:
            self.log_change(request, row, done)

    def report_publishing(
        self, request: HttpRequest, pairs: Collection[tuple[int, str]]
    ) -> None:
        """Relay (partition, target) pairs now, and say what became of each target."""
        for level, text in publish_now(alias(), pairs):
            self.message_user(request, text, level)
