"""The project's URLs."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.urls import URLPattern, URLResolver, include, path

urlpatterns: list[URLPattern | URLResolver] = [
    path("admin/", admin.site.urls),
    path("events/", include("eventstream.urls")),
    path("", include("deploy.demo.urls")),
]
if getattr(settings, "METRICS", False):
    from eventstream import metrics

    urlpatterns.append(path("metrics", metrics.view))
