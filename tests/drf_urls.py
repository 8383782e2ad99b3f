"""Streams of Django REST framework, below api/ of the tests' project."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponseBase
from rest_framework.authentication import BasicAuthentication
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.routers import DefaultRouter, SimpleRouter
from rest_framework.throttling import AnonRateThrottle
from rest_framework.versioning import URLPathVersioning

from eventstream.drf import EventsViewSet, SSEEventRenderer, configure_events_view_set


class GuardedViewSet(EventsViewSet):
    authentication_classes = [BasicAuthentication]
    permission_classes = [IsAuthenticated]

    def list(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        self.channels = [f"private-{request.user.pk}"]
        return super().list(request, *args, **kwargs)


class ThrottledViewSet(EventsViewSet):
    channels = ("one",)
    throttle_classes = [AnonRateThrottle]


class PlainViewSet(EventsViewSet):
    channels = ("one",)
    renderer_classes = (SSEEventRenderer,)


class RoomViewSet(EventsViewSet):
    def list(
        self, request: Request, *args: Any, room_id: str = "", **kwargs: Any
    ) -> HttpResponseBase:
        self.channels = [f"room-{room_id}"]
        return super().list(request, *args, **kwargs)


class VersionedViewSet(EventsViewSet):
    versioning_class = URLPathVersioning

    def list(self, request: Request, *args: Any, **kwargs: Any) -> HttpResponseBase:
        self.channels = [f"orders-{request.version}"]
        return super().list(request, *args, **kwargs)


FIXED = ["one", "two"]
router = DefaultRouter()
router.register(
    "function",
    configure_events_view_set(channels=FIXED, messages_types=["message", "info"]),
    basename="function",
)
router.register("instance", EventsViewSet(channels=FIXED), basename="instance")  # type: ignore[arg-type]
router.register("any", EventsViewSet, basename="any")
router.register("guarded", GuardedViewSet, basename="guarded")
router.register("throttled", ThrottledViewSet, basename="throttled")
router.register("plain", PlainViewSet, basename="plain")
router.register(r"rooms/(?P<room_id>[^/.]+)", RoomViewSet, basename="rooms")
router.register(r"(?P<version>v[12])/orders", VersionedViewSet, basename="versioned")

bare = SimpleRouter(trailing_slash=False)
bare.register("bare", EventsViewSet, basename="bare")

urlpatterns = [*router.urls, *bare.urls]
