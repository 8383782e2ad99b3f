"""What a GRIP proxy makes of an answer: the link that it asks, and what it sends with that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from eventstream.positions import quote_channel
from eventstream.reading import Reader, sign_link

HELD_PATH = "/events/next/0/"
"""A link of streams that are held; which one it is asked for is in Grip-Last."""


def next_path(response: Any) -> str:
    """Return the path of an answer's next link."""
    link, _, parameters = response["Grip-Link"].partition("; ")
    assert parameters.startswith("rel=next")
    return str(link).strip("<>")


def last_ids(response: Any, moved: Mapping[str, int] | None = None) -> dict[str, str]:
    """Return the headers with which a proxy asks for a stream that it was told to hold.

    Args:
        response: What told it.
        moved: By event channel, up to which event it has handed over since.
    """
    last = {}
    for value in response["Grip-Channel"].split(", "):
        name, *parameters = value.split("; ")
        for each in parameters:
            if each.startswith("prev-id="):
                last[name] = each.removeprefix("prev-id=")
    for channel, eid in (moved or {}).items():
        last[f"events-{quote_channel(channel)}"] = str(eid)
    return _headers(last)


def held_stream(
    *channels: str,
    user_id: str = "",
    age: float = 0,
    ids: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Return such headers for a stream of these channels.

    Args:
        channels: The reader's.
        user_id: The reader's.
        age: Seconds since the proxy was told to hold it.
        ids: By event channel, the last that was handed over; by default 0 for all.
    """
    token = sign_link(Reader(channels, user_id), now=time.time() - age)
    if ids is None:
        ids = dict.fromkeys(channels, "0")
    last = {f"events-{quote_channel(channel)}": eid for channel, eid in ids.items()}
    return _headers({**last, "held-0": token})


def _headers(last: Mapping[str, str]) -> dict[str, str]:
    text = ", ".join(f"{name}; last-id={eid}" for name, eid in last.items())
    return {"Grip-Last": text}
