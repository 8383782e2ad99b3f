"""{% load eventstream %}"""

from __future__ import annotations

from django import template

from eventstream.api import get_current_event_id

register = template.Library()


@register.simple_tag
def eventstream_position(*channels: str) -> str:
    """Return the current position in the channels, for a stream's `lastEventId`.

    Put it above everything in the template that queries: a position read after the state
    passes over an event in between.

        {% eventstream_position "orders" as position %}
        new ReconnectingEventSource("/events/?channel=orders&lastEventId={{ position|urlencode }}")
    """
    return get_current_event_id(channels)
