"""The operators' admin: look at the outbox, and try again. It edits nothing.

With several databases in EVENTSTREAM_DATABASES it shows the first one.
"""

from __future__ import annotations

from eventstream.admin.deliveries import CursorAdmin, DeadLetterAdmin
from eventstream.admin.events import ChannelAdmin, EventAdmin
from eventstream.admin.jobs import JobAdmin

__all__ = ["ChannelAdmin", "CursorAdmin", "DeadLetterAdmin", "EventAdmin", "JobAdmin"]
