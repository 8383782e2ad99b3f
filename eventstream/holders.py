"""Who holds how many streams: each web process says so in a row of its own.

A GRIP proxy does not; where EVENTSTREAM_PROXY_METRICS names its Prometheus page, the sweep
asks it once a minute.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
from collections.abc import Mapping

from django.db import DatabaseError
from django.db.models.functions import Now

from eventstream import conf
from eventstream.models import Holder
from eventstream.targets.grip import grip_name

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


_CONNECTED = re.compile(r"^\w*connection_connected(?:{.*})? (\d+)", re.MULTILINE)


def count_connected(address: str) -> int:
    """Return how many clients a Pushpin has, by its Prometheus page.

    Raises:
        OSError: It does not answer, or does not say.
    """
    import requests  # noqa: PLC0415  slow, and seldom needed

    response = requests.get(address, timeout=(0.5, 1.0))
    found = _CONNECTED.search(response.text)
    if response.status_code != 200 or found is None:
        address = conf.without_credentials(address)
        raise OSError(f"{address} has no connection_connected")
    return int(found[1])


def report_proxies() -> None:
    """Ask the proxies how many readers they have, and write it down."""
    wanted: Mapping[str, str] = conf.get_options().proxy_metrics
    if not wanted:
        return
    addresses = {uri.rstrip("/"): address for uri, address in wanted.items()}
    for proxy in conf.grip_proxies():
        address = addresses.get(str(proxy["control_uri"]).rstrip("/"))
        if address is None:
            continue
        try:
            count = count_connected(address)
        except OSError as error:  # requests' own errors are, too
            logger.warning("A proxy's readers are not known: %s", error)
            continue
        report(grip_name(str(proxy["control_uri"])), stream_count=count, readers={})


def sign_off(name: str) -> None:
    """Delete the row of a hub that ends. One that was killed goes silent instead."""
    try:
        rows = Holder.objects.using(conf.get_options().databases[0])
        rows.filter(name=name).delete()
    except DatabaseError as error:
        logger.debug("A hub could not sign off: %s", error)
