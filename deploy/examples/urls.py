"""Of all three examples."""

from __future__ import annotations

from django.urls import include, path
from rest_framework.routers import DefaultRouter

from deploy.examples import views

router = DefaultRouter()
router.register(
    r"rooms/(?P<room>[^/.]+)/messages", views.MessageViewSet, basename="messages"
)
router.register(
    r"rooms/(?P<room>[^/.]+)/events", views.RoomEventsViewSet, basename="room-events"
)

urlpatterns = [
    path("", views.home),
    path("clock/", views.clock),
    path("clock/events/", include("eventstream.urls"), {"channels": ["clock"]}),
    path("chat/<room>/", views.chat),
    path("chat/<room>/messages/", views.chat_message),
    path(
        "chat/<room>/events/",
        include("eventstream.urls", namespace="room"),
        {"format-channels": ["room-{room}"]},
    ),
    path("rest-chat/<room>/", views.rest_chat),
    path("api/", include(router.urls)),
]
