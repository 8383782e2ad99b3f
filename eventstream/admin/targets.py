"""Targets: up or down, how far behind, and pausing and resuming them."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse

from eventstream import pausing
from eventstream.admin.base import ReadOnlyAdmin, alias
from eventstream.admin.confirming import Question, ask, is_confirmed, reason_of
from eventstream.admin.health import target_buttons, target_url
from eventstream.exceptions import UnknownTargetError
from eventstream.models import PausedTarget
from eventstream.relay import pending
from eventstream.series import Point, read_series
from eventstream.status import Level, TargetStatus, get_status
from eventstream.transactions import outside_transactions
from eventstream.words import describe_count

PERMISSIONS = {"publish": "publish_event", "pause": "pause_target", "resume": "pause_target"}  # fmt: skip


@admin.register(PausedTarget)
class TargetAdmin(ReadOnlyAdmin[PausedTarget]):
    """Every target, not only those that are paused, which alone have rows."""

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view(self.act_view)
        return [
            path("act/", view, name="eventstream_pausedtarget_act"),
            *super().get_urls(),
        ]

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> PausedTarget:
        """Return a row for any target: the history is kept under its name."""
        found = super().get_object(request, object_id, from_field)
        return found or PausedTarget(name=object_id)

    @outside_transactions
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        status = get_status(alias(), ask=request.GET.get("ask") == "1")
        points = read_series(alias(), hours=1)
        context = {
            **self.admin_site.each_context(request),
            "title": "Targets",
            "rows": [self._row(request, t, points) for t in status.targets],
            "checked_at": status.checked_at,
            "is_asked": request.GET.get("ask") == "1",
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/eventstream/targets.html", context)

    @outside_transactions
    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one target, partition by partition."""
        name = unquote(object_id)
        if not self.has_view_permission(request):
            raise PermissionDenied
        status = get_status(alias())
        target = next((t for t in status.targets if t.name == name), None)
        if target is None:
            text = f"There is no target {name!r}, and nothing was ever published there."
            self.message_user(request, text, messages.ERROR)
            return HttpResponseRedirect(self._list_url())
        lists = {"target": name}
        context = {
            **self.admin_site.each_context(request),
            "title": name,
            "parent": {"title": "Targets", "url": self._list_url()},
            "row": self._row(request, target, read_series(alias(), hours=1)),
            "target": target,
            "undelivered_url": f"{self._url('undeliveredevent_changelist')}?{urlencode(lists)}",
            "deliveries_url": f"{self._url('cursor_changelist')}?{urlencode(lists)}",
            "history_url": reverse(
                "admin:eventstream_pausedtarget_history",
                args=[object_id],
                current_app=self.admin_site.name,
            ),
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/eventstream/target.html", context)

    def _row(
        self, request: HttpRequest, target: TargetStatus, points: list[Point]
    ) -> dict[str, Any]:
        failed = confirmed = 0
        for point in points:
            found = point.targets.get(target.name)
            if found is not None:
                failed += found.failure_count
                confirmed += found.confirmed_count
        return {
            "target": target,
            "level": target.level if target.is_configured else Level.WARNING,
            "url": target_url(request, target.name),
            "buttons": list(target_buttons(request, target)),
            "failed": failed,
            "confirmed": confirmed,
            "is_known": bool(points),
        }

    def _url(self, name: str) -> str:
        return reverse(f"admin:eventstream_{name}", current_app=self.admin_site.name)

    def _list_url(self) -> str:
        return self._url("pausedtarget_changelist")

    # --- actions

    @outside_transactions
    def act_view(self, request: HttpRequest) -> HttpResponse:
        """Ask whether to, then publish to, pause or resume a target."""
        data = request.POST if request.method == "POST" else request.GET
        action, name = data.get("action", ""), data.get("target", "")
        if action not in PERMISSIONS:
            text = f"There is no action {action!r} for a target."
            self.message_user(request, text, messages.ERROR)
            return HttpResponseRedirect(self._list_url())
        if not request.user.has_perm(f"eventstream.{PERMISSIONS[action]}"):
            raise PermissionDenied
        targets = {target.name: target for target in get_status(alias()).targets}
        target = targets.get(name)
        if target is None or not (target.is_configured or action == "resume"):
            text = (
                f"{name[:200]!r} is not a target of the settings (any more): nothing was "
                f"done. There are: {', '.join(n for n in targets) or 'none'}."
            )
            self.message_user(request, text, messages.ERROR)
            return HttpResponseRedirect(self._list_url())
        back = target_url(request, name)
        if is_confirmed(request):
            self._do(request, action, name)
            return HttpResponseRedirect(back)
        parent = {"title": name, "url": back}
        question = _question(action, target)
        url = self._url("pausedtarget_act")
        return ask(self, request, question, parent=parent, action_url=url)

    def _do(self, request: HttpRequest, action: str, name: str) -> None:
        if action == "publish":
            pairs = [pair for pair in pending(alias()) if pair[1] == name]
            self._log(request, name, "Published at an operator's request")
            if not pairs:
                text = f"{name}: nothing was waiting."
                self.message_user(request, text, messages.INFO)
            self.report_publishing(request, pairs)
        elif action == "pause":
            reason = reason_of(request)
            text = f"{reason} ({request.user.get_username()})".strip()
            try:
                is_new = pausing.pause(name, reason=text)
            except UnknownTargetError as error:  # it left the settings just now
                self.message_user(request, str(error), messages.ERROR)
                return
            if is_new:
                self._log(request, name, f"Paused: {reason or 'no reason given'}")
                text = f"{name} is paused. What is sent to it from now on waits."
                self.message_user(request, text, messages.SUCCESS)
            else:
                text = f"{name} was paused already; its reason stays."
                self.message_user(request, text, messages.WARNING)
        elif pausing.resume(name):
            self._log(request, name, "Resumed")
            text = f"{name} is resumed, and gets what waits for it."
            self.message_user(request, text, messages.SUCCESS)
        else:
            text = f"{name} was not paused."
            self.message_user(request, text, messages.WARNING)

    def _log(self, request: HttpRequest, name: str, done: str) -> None:
        self.log_change(request, PausedTarget(name=name), done)


def _question(action: str, target: TargetStatus) -> Question:
    name = target.name
    fields = [("action", action), ("target", name)]
    verb = "waits" if target.waiting_count == 1 else "wait"
    waiting = f"{describe_count(target.waiting_count, 'event')} {verb} for it."
    if action == "publish":
        return Question(
            title=f"Publish to {name} now?",
            text="Whatever waits for it is tried at once, due or not, in its order. "
            f"{waiting}",
            items=[],
            button="Yes, publish now",
            fields=fields,
        )
    if action == "pause":
        return Question(
            title=f"Pause {name}?",
            text="Nothing is published to it until it is resumed; other targets go on. Its "
            "readers get what they miss from the log, later. After the retention it no "
            f"longer holds up pruning. {waiting}",
            items=[],
            button="Yes, pause it",
            fields=fields,
            is_dangerous=True,
            asks_reason=True,
        )
    return Question(
        title=f"Resume {name}?",
        text="It gets what waits for it: after a long pause the newest event of each "
        f"channel, and its readers the rest from the log. {waiting}",
        items=[],
        button="Yes, resume it",
        fields=fields,
    )
