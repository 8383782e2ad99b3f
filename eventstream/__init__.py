"""Server-Sent Events for Django that are never lost.

The public names are resolved on first use: Django imports this package before its app
registry is ready, and the modules behind the names import models.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

__all__ = [
    "EventSpec",
    "EventState",
    "SentEvent",
    "achannel_permission_changed",
    "aget_current_event_id",
    "asend_event",
    "asend_events",
    "channel_permission_changed",
    "get_current_event_id",
    "make_subscribe_token",
    "send_event",
    "send_events",
]

if TYPE_CHECKING:
    from eventstream.api import (
        EventState,
        SentEvent,
        achannel_permission_changed,
        aget_current_event_id,
        asend_event,
        asend_events,
        channel_permission_changed,
        get_current_event_id,
        send_event,
        send_events,
    )
    from eventstream.specs import EventSpec
    from eventstream.tokens import make_subscribe_token
else:
    _HOMES = {"EventSpec": "specs", "make_subscribe_token": "tokens"}

    def __getattr__(name: str) -> object:
        if name in __all__:
            home = _HOMES.get(name, "api")
            return getattr(importlib.import_module(f"eventstream.{home}"), name)
        if name == "urls":  # the peer's include(django_eventstream.urls)
            return importlib.import_module("eventstream.urls")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
