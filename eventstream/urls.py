"""path("events/", include("eventstream.urls"))"""

from __future__ import annotations

from django.urls import include, path, re_path

from eventstream.views import events, next_link

app_name = "eventstream"

urlpatterns = [
    path("", events, name="events"),
    path("health/", include("eventstream.health_urls")),
    # Below a stream's path, also where that has no slash at its end: path("events", include(…))
    re_path(r"^(?:/)?next/(?P<token>[^/]+)/$", next_link, name="next-link"),
]
