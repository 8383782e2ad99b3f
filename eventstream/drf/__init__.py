"""Streams among the routes of Django REST framework: `pip install 'eventstream[drf]'`.

The names are resolved on first use: REST framework imports the renderers among its
DEFAULT_RENDERER_CLASSES before it has the view set from which ours derives.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__all__ = [
    "BrowsableAPIEventStreamRenderer",
    "EventsViewSet",
    "SSEEventRenderer",
    "configure_events_view_set",
]

if TYPE_CHECKING:
    from eventstream.drf.renderers import (
        BrowsableAPIEventStreamRenderer,
        SSEEventRenderer,
    )
    from eventstream.drf.viewsets import EventsViewSet, configure_events_view_set
else:

    def __getattr__(name: str) -> object:
        if name in __all__:
            home = "renderers" if name.endswith("Renderer") else "viewsets"
            return getattr(importlib.import_module(f"eventstream.drf.{home}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
