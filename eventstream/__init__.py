"""Server-Sent Events for Django that are never lost.

The public names are resolved on first use: Django imports this package before its app
registry is ready, and the modules behind the names import models. An `apps.py` of the
project may import functions even so: it gets one that looks for them when it is called.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

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
    from collections.abc import Callable

    # Not by its own name: the submodule takes that here.
    from django.apps import apps as registry

    _HOMES = {"EventSpec": "specs", "make_subscribe_token": "tokens"}

    def __getattr__(name: str) -> object:
        if name in __all__:
            if not registry.apps_ready and name[0].islower():
                return _call_later(name)
            return _find(name)
        if name == "urls":  # the peer's include(django_eventstream.urls)
            return importlib.import_module("eventstream.urls")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def _find(name: str) -> Any:
        home = _HOMES.get(name, "api")
        return getattr(importlib.import_module(f"eventstream.{home}"), name)

    def _call_later(name: str) -> Callable[..., object]:
        """Return what calls a function that cannot be imported yet."""

        def call(*args: object, **kwargs: object) -> object:
            return _find(name)(*args, **kwargs)

        call.__name__ = call.__qualname__ = name
        return call
