"""path("health/", include("eventstream.health_urls")); eventstream.urls has them, too."""

from __future__ import annotations

from django.urls import path

from eventstream.health import live, ready

urlpatterns = [
    path("live", live, name="health-live"),
    path("ready", ready, name="health-ready"),
]
