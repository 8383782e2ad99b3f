"""The project's URLs."""

from __future__ import annotations

from django.contrib import admin
from django.urls import include, path

urlpatterns = [
    path("admin/", admin.site.urls),
    path("events/", include("eventstream.urls")),
    path("", include("deploy.demo.urls")),
]
