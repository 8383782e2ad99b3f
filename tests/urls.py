"""The tests' project."""

from __future__ import annotations

import json

from django.contrib import admin
from django.contrib.auth import get_user_model, login
from django.contrib.staticfiles.views import serve
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import include, path

from eventstream import get_current_event_id, metrics, send_event


def send(request: HttpRequest) -> JsonResponse:
    """POST {"channel": …, "data": …, "count": n, "rollback": bool}."""
    body = json.loads(request.body)
    channel = body["channel"]
    with transaction.atomic():
        for number in range(body.get("count", 1)):
            send_event(channel, "message", body.get("data", number))
        if body.get("rollback"):
            transaction.set_rollback(True)
    return JsonResponse({"position": get_current_event_id([channel])})


def log_in(request: HttpRequest, pk: int) -> HttpResponse:
    """Make this session the user's."""
    user = get_user_model().objects.get(pk=pk)
    login(request, user, "django.contrib.auth.backends.ModelBackend")
    return HttpResponse("ok")


urlpatterns = [
    path("blank/", lambda request: HttpResponse("<!doctype html><title>blank</title>")),
    path("static/<path:path>", serve, {"insecure": True}),
    path("admin/", admin.site.urls),
    path("send/", send),
    path("login/<int:pk>/", log_in),
    path("metrics", metrics.view),
    path("events/", include("eventstream.urls")),
    path("api/", include("tests.drf_urls")),
    path(
        "fixed/",
        include("eventstream.urls", namespace="fixed"),
        {"channels": ["fixed"]},
    ),
    path(
        "rooms/<room>/",
        include("eventstream.urls", namespace="rooms"),
        {"format-channels": ["room-{room}"]},
    ),
    path("channels/<channel>/", include("eventstream.urls", namespace="channels")),
]
