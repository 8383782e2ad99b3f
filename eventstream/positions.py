"""Last-Event-ID ↔ {channel: event id}. Pure: no I/O, no Django.

The text is `chanA:12,chanB:7`, with the names percent-encoded. Behind a proxy a live event's
id names its own channel twice, `chanA:11,chanB:7,chanA:12`: the last entry counts
(docs/decisions/0004-grip-holds.md).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, unquote

from eventstream.exceptions import InvalidPositionError, ResumeNotAllowedError
from eventstream.sse import ERROR_ID

MAX_EVENT_ID = 2**63 - 1
MAX_LENGTH = 65_536
"""Characters of a position. Servers take less in a header, so none of ours is longer."""


@lru_cache(maxsize=10_000)
def quote_channel(channel: str) -> str:
    """Return the channel name in a form without comma, colon, percent format or space."""
    return quote(channel, safe="")


def format_position(positions: Mapping[str, int]) -> str:
    """Return the text of a position; equal positions give equal texts."""
    return ",".join(
        f"{quote_channel(name)}:{eid}" for name, eid in sorted(positions.items())
    )


def split_position(positions: Mapping[str, int], channel: str) -> tuple[str, str]:
    """Return what stands before and after one channel's event id in the position's text.

    For many events of one channel: only its number differs between their ids.
    """
    before, after = "", ""
    for name, eid in sorted(positions.items()):
        if name < channel:
            before += f"{quote_channel(name)}:{eid},"
        elif name > channel:
            after += f",{quote_channel(name)}:{eid}"
    return f"{before}{quote_channel(channel)}:", after


def count_fitting(size: int, positions: Mapping[str, int]) -> int:
    """Return of how many events the ids alone have so many bytes, one at least.

    Each names all channels of its stream, which whoever asks for it may choose: of many long
    names an id has more than a thousand times as much as an event's data.
    """
    return max(1, size // max(1, len(format_position(positions))))


def parse_position(text: str) -> dict[str, int]:
    """Return the event id of each channel in a Last-Event-ID, by its last entry.

    Raises:
        ResumeNotAllowedError: The text is the id of a stream-error.
        InvalidPositionError: The text is not a position.
    """
    if text == ERROR_ID:
        raise ResumeNotAllowedError("Can't resume session after stream-error")
    if len(text) > MAX_LENGTH:
        raise InvalidPositionError(
            f"Last-Event-ID or lastEventId has {len(text):,} characters, the most is "
            f"{MAX_LENGTH:,}"
        )
    positions: dict[str, int] = {}
    for part in text.split(","):
        name, separator, number = part.strip().rpartition(":")
        eid = parse_event_id(number)
        if not separator or not name or eid is None:
            raise InvalidPositionError(
                f"Failed to parse Last-Event-ID or lastEventId: {part[:80]!r} is not "
                "<channel>:<number>"
            )
        positions[unquote(name)] = eid
    return positions


def parse_event_id(text: str) -> int | None:
    """Return an event id, None for what can be none."""
    # isdecimal() alone would take Arabic-Indic digits, which no id of ours has.
    valid = text.isascii() and text.isdecimal() and len(text) <= 19
    return int(text) if valid and int(text) <= MAX_EVENT_ID else None
