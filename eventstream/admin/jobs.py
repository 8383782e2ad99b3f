"""When the periodic jobs last ran."""

from __future__ import annotations

import datetime
from typing import Any

from django.contrib import admin, messages
from django.db.models import Case, Q, QuerySet, When
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse

from eventstream.admin.base import ReadOnlyAdmin, alias
from eventstream.checks import SWEEP_OVERDUE_SECONDS
from eventstream.models import Job

# Pruning runs every ten minutes unless configured otherwise; nothing is lost without it.
OVERDUE_SECONDS = {Job.REPUBLISH: SWEEP_OVERDUE_SECONDS, Job.PRUNE: 3600}


@admin.register(Job)
class JobAdmin(ReadOnlyAdmin[Job]):
    """Sweep and prune: a beat or worker that is missing shows here."""

    list_display = (
        "name",
        "started_at",
        "finished_at",
        "result",
        "is_running",
        "is_overdue",
    )
    sortable_by = ()
    ordering = ("name",)
    fields = list_display
    readonly_fields = fields

    def get_queryset(self, request: HttpRequest) -> QuerySet[Job]:
        running = Q(lease_until__gte=Now())
        # Of one that is killed each time the lease is as a rule still there.
        on_time = running & Q(finished_at=None)
        for name, seconds in OVERDUE_SECONDS.items():
            limit = Now() - datetime.timedelta(seconds=seconds)
            on_time |= Q(name=name, finished_at__gte=limit)
        known = Q(name__in=list(OVERDUE_SECONDS))
        # By the database's clock, like the leases.
        is_running = Case(When(running, then=True), default=False)
        is_overdue = Case(
            When(on_time, then=False), When(known, then=True), default=False
        )
        rows = super().get_queryset(request)
        return rows.annotate(running=is_running, overdue=is_overdue)

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if request.method == "GET" and self.has_view_permission(request):
            known = set(Job.objects.using(alias()).values_list("name", flat=True))
            for name in OVERDUE_SECONDS:
                if name not in known:
                    text = f"{name} has never run: start a worker and a beat."
                    self.message_user(request, text, messages.WARNING)
        return super().changelist_view(request, extra_context)

    @admin.display(description="running", boolean=True)
    def is_running(self, job: Any) -> bool:
        return bool(job.running)

    @admin.display(description="overdue")
    def is_overdue(self, job: Any) -> str:
        return "overdue" if job.overdue else "no"
