"""The overview: health in words, the last hour and day in plots, refreshing itself.

The page is refreshed by a stream of its own, which looks at the database, and not by a
channel: events, relay, bus and proxies are what it tells of, and it must tell when they are
dead. It lasts as long as a page is open and costs nothing otherwise. Where the server
cannot stream (WSGI) the page asks every few seconds instead. See docs/decisions.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import admin
from django.contrib.auth import HASH_SESSION_KEY, SESSION_KEY
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    JsonResponse,
    StreamingHttpResponse,
)
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.crypto import constant_time_compare

from eventstream import sse
from eventstream.admin.base import ReadOnlyAdmin, alias
from eventstream.admin.health import look, render_health, render_parts
from eventstream.admin.listing import Listing
from eventstream.channelmanager import find_user
from eventstream.exceptions import ChannelPermissionError
from eventstream.models import Sample, UndeliveredEvent
from eventstream.series import Point, read_series
from eventstream.transactions import outside_transactions
from eventstream.views import forbid_compression, release_request

logger = logging.getLogger(__name__)

REFRESH_SECONDS = 5.0
HOURS = (1, 24)
SOURCES = ("view_event", "view_sample")
"""Either permission shows the health: both pages have it at their top."""


@admin.register(Sample)
class OverviewAdmin(ReadOnlyAdmin[Sample]):
    """How the whole is, and how it has been."""

    def get_urls(self) -> list[URLPattern]:
        wrap = self.admin_site.admin_view
        return [
            path("status/", wrap(self.status_view), name="eventstream_sample_status"),
            path("stream/", wrap(self.stream_view), name="eventstream_sample_stream"),
            path("series/", wrap(self.series_view), name="eventstream_sample_series"),
            *super().get_urls(),
        ]

    @outside_transactions
    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        if not self.has_view_permission(request):
            raise PermissionDenied
        health = look(request, ask=request.GET.get("ask") == "1")
        context = {
            **self.admin_site.each_context(request),
            "title": "Overview",
            "health": health,
            "panel": render_health(request, health),
            "parts": render_parts(request, health),
            "stream_url": self._url("stream"),
            "status_url": self._url("status"),
            "series_url": self._url("series"),
            "hours": HOURS,
            **(extra_context or {}),
        }
        return TemplateResponse(request, "admin/eventstream/overview.html", context)

    def _url(self, name: str) -> str:
        name = f"admin:eventstream_sample_{name}"
        return reverse(name, current_app=self.admin_site.name)

    # --- what the page asks for

    @outside_transactions
    def status_view(self, request: HttpRequest) -> JsonResponse:
        """Answer with the health, once: for servers that cannot stream."""
        _check(request)
        return JsonResponse(self._state(request))

    @outside_transactions
    def series_view(self, request: HttpRequest) -> JsonResponse:
        """Answer with the plots' points, as columns."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        text = request.GET.get("hours", "")
        if text not in {str(hours) for hours in HOURS}:
            error = f"hours must be one of {', '.join(map(str, HOURS))}, not {text!r}"
            return JsonResponse({"error": error}, status=400)
        points = read_series(alias(), hours=int(text))
        return JsonResponse(_columns(points))

    @outside_transactions
    def stream_view(self, request: HttpRequest) -> HttpResponseBase:
        """Stream the health, anew every few seconds, for as long as the page is open."""
        _check(request)
        if not isinstance(request, ASGIRequest):
            text = "This server cannot stream: the page asks every few seconds instead."
            return HttpResponse(f"{text}\n", status=501, content_type="text/plain")
        response = StreamingHttpResponse(
            _stream(request, self._state), content_type="text/event-stream"
        )
        forbid_compression(request)
        response["Cache-Control"] = "no-cache, no-transform"
        response["X-Accel-Buffering"] = "no"
        return response

    def _state(self, request: HttpRequest) -> dict[str, Any]:
        """Return what a page refreshes itself with: health, and its list if it has one."""
        health = look(request, ask=True)
        state = {
            "html": render_health(request, health),
            "headline": health.headline,
            "level": health.status.level,
            "parts": render_parts(request, health),
        }
        may_view = request.user.has_perm("eventstream.view_event")
        if request.GET.get("list") == "undelivered" and may_view:
            page: Any = self.admin_site.get_model_admin(UndeliveredEvent)
            listing = Listing(request.GET, health.status)
            state["table"] = page.render_table(request, listing)
        return state


def _check(request: HttpRequest) -> None:
    if not any(request.user.has_perm(f"eventstream.{name}") for name in SOURCES):
        raise PermissionDenied


async def _stream(
    request: HttpRequest, state: Callable[[HttpRequest], dict[str, Any]]
) -> AsyncIterator[bytes]:
    await release_request()
    while True:
        try:
            # In a thread of the pool; asked anew whether the user still may.
            look_again = sync_to_async(_look_again, thread_sensitive=False)
            text = await look_again(request, state)
        except (PermissionDenied, ChannelPermissionError) as error:
            yield sse.encode_error("forbidden", str(error) or "Not permitted").encode()
            return
        yield text.encode()
        await asyncio.sleep(REFRESH_SECONDS)


def _look_again(
    request: HttpRequest, state: Callable[[HttpRequest], dict[str, Any]]
) -> str:
    try:
        user: Any = find_user(str(request.user.pk))
        if user is None or not user.is_staff or not _has_session(request, user):
            raise PermissionDenied
        request.user = user
        _check(request)
        data = json.dumps(state(request))
    except (PermissionDenied, ChannelPermissionError):
        raise
    except Exception:
        logger.exception("The overview could not look")
        return sse.encode_event("failed", "", "")
    finally:
        connections.close_all()
    return sse.encode_event("status", data, "")


def _has_session(request: HttpRequest, user: Any) -> bool:
    """Say whether the session that opened the stream still is the user's; one query.

    As Django's middleware asks of each request, but that nothing is written: no cookie could
    tell the browser. Who is known by something other than a session has none to lose.
    """
    opened = getattr(request, "session", None)
    if opened is None or opened.get(SESSION_KEY) != str(user.pk):
        return True
    session = type(opened)(opened.session_key)
    known = session.get(HASH_SESSION_KEY, "")
    hashes = [user.get_session_auth_hash(), *user.get_session_auth_fallback_hash()]
    return any(constant_time_compare(known, found) for found in hashes)


def _columns(points: Sequence[Point]) -> dict[str, Any]:
    names = sorted({name for point in points for name in point.targets})
    return {
        "at": [point.at.timestamp() for point in points],
        "events": [_rate(point.event_count, point) for point in points],
        "oldest": [point.oldest_seconds or 0 for point in points],
        "readers": [point.reader_count for point in points],
        "targets": {
            name: {
                "confirmed": _of(points, name, "confirmed_count", as_rate=True),
                "failures": _of(points, name, "failure_count"),
                "waiting": _of(points, name, "waiting_count"),
                "latency": _of(points, name, "latency_seconds"),
            }
            for name in names
        },
    }


def _rate(count: int, point: Point) -> float:
    return round(count / point.seconds * 60, 2) if point.seconds else 0


def _of(
    points: Sequence[Point], name: str, what: str, *, as_rate: bool = False
) -> list[float | None]:
    values: list[float | None] = []
    for point in points:
        target = point.targets.get(name)
        value = None if target is None else getattr(target, what)
        values.append(_rate(value, point) if as_rate and value is not None else value)
    return values
