"""Who holds how many streams: each web process says so in a row of its own."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Mapping

from django.db import DatabaseError
from django.db.models.functions import Now

from eventstream import conf
from eventstream.models import Holder

logger = logging.getLogger(__name__)

REPORT_SECONDS = 15.0
CHANNELS_NAMED = 200
"""Channels of which a hub says how many readers each has: those with the most."""


def holder_name() -> str:
    """Return a name that no other hub has, and that tells where it is."""
    return f"{socket.gethostname()[:150]}:{os.getpid()}:{secrets.token_hex(3)}"


def report(name: str, *, stream_count: int, readers: Mapping[str, int]) -> None:
    """Say how many streams a hub holds, of which channels. Never an error to the hub."""
    most_read = sorted(readers, key=lambda channel: -readers[channel])[:CHANNELS_NAMED]
    row = Holder(
        name=name,
        stream_count=stream_count,
        channel_count=len(readers),
        channels={channel: readers[channel] for channel in most_read},
        seen_at=Now(),
    )
    try:
        Holder.objects.using(conf.get_options().databases[0]).bulk_create(
            [row],
            update_conflicts=True,
            unique_fields=["name"],
            update_fields=["stream_count", "channel_count", "channels", "seen_at"],
        )
    except DatabaseError as error:
        logger.debug("The readers could not be reported: %s", error)


def sign_off(name: str) -> None:
    """Delete the row of a hub that ends. One that was killed goes silent instead."""
    try:
        rows = Holder.objects.using(conf.get_options().databases[0])
        rows.filter(name=name).delete()
    except DatabaseError as error:
        logger.debug("A hub could not sign off: %s", error)
