"""Streams among the routes of Django REST framework: `pip install 'eventstream[drf]'`."""

from __future__ import annotations

from eventstream.drf.renderers import (
    BrowsableAPIEventStreamRenderer,
    SSEEventRenderer,
)
from eventstream.drf.viewsets import EventsViewSet, configure_events_view_set

__all__ = [
    "BrowsableAPIEventStreamRenderer",
    "EventsViewSet",
    "SSEEventRenderer",
    "configure_events_view_set",
]
