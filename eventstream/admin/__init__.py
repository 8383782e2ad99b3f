"""The operators' admin: what does not arrive, why, since when, and what to press.

It edits nothing; whatever it does ends in relay.py, as everything else. With several
databases in EVENTSTREAM_DATABASES it shows the first one.
"""

from __future__ import annotations

from eventstream.admin.channels import ChannelAdmin
from eventstream.admin.deliveries import CursorAdmin, DeadLetterAdmin
from eventstream.admin.events import EventAdmin
from eventstream.admin.jobs import JobAdmin
from eventstream.admin.overview import OverviewAdmin
from eventstream.admin.targets import TargetAdmin
from eventstream.admin.undelivered import UndeliveredAdmin

__all__ = [
    "ChannelAdmin",
    "CursorAdmin",
    "DeadLetterAdmin",
    "EventAdmin",
    "JobAdmin",
    "OverviewAdmin",
    "TargetAdmin",
    "UndeliveredAdmin",
]
