"""path("events/", include("eventstream.urls"))"""

from __future__ import annotations

from django.urls import include, path

from eventstream.views import events, next_link

app_name = "eventstream"

urlpatterns = [
    path("", events, name="events"),
    path("health/", include("eventstream.health_urls")),
    path("next/<str:token>/", next_link, name="next-link"),
]
