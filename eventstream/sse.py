"""Event ↔ text/event-stream. Pure: no I/O, no Django.

Source: WHATWG HTML, section 9.2, "Server-sent events".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any

_LINE_END = re.compile("\r\n|\r|\n")
_FIELD_BREAKERS = re.compile("[\r\n\0]")

KEEP_ALIVE = "event: keep-alive\ndata:\n\n"
# Comments without a blank line after them: some clients dispatch an empty event for each.
FAREWELL = ": this server stops, come back\n"
ERROR_ID = "error"
"""The id of a stream-error: a client that sends it back may not resume."""


def encode_data(event_type: str, data: str) -> str:
    """Return the event and data lines, without id and without the closing blank line.

    A line end of any of the three kinds in the data starts a new data line, so that the
    client receives LF, and no data can add a field of its own.
    """
    if "\n" not in data and "\r" not in data:  # nearly always
        return f"{_event_line(event_type)}data: {data}\n"
    body = "\n".join(f"data: {line}" for line in _LINE_END.split(data))
    return f"{_event_line(event_type)}{body}\n"


def encode_log(
    rows: Iterable[tuple[int, str, str, *tuple[Any, ...]]], before: str, after: str
) -> str:
    """Return many events of one log, in as little time as may be.

    Args:
        rows: Number, type and data of each, and whatever follows them.
        before: What of an `id:` field stands before the event's number.
        after: What stands behind it.
    """
    parts = []
    known, line = "", _event_line("")
    for row in rows:
        number, event_type, data = row[0], row[1], row[2]
        if event_type != known:
            known, line = event_type, _event_line(event_type)
        if "\n" in data or "\r" in data:
            body = encode_data(event_type, data)
            parts.append(f"id: {before}{number}{after}\n{body}\n")
        else:
            parts.append(f"id: {before}{number}{after}\n{line}data: {data}\n\n")
    return "".join(parts)


@lru_cache(maxsize=1_000)
def _event_line(event_type: str) -> str:
    return f"event: {_FIELD_BREAKERS.sub('', event_type)}\n"


def encode_event(event_type: str, data: str, event_id: str | None = None) -> str:
    """Return one whole event, blank line included.

    Args:
        event_type: Its `event:` field.
        data: Text, of any number of lines.
        event_id: Its `id:` field; None leaves the client's last id as it is.
    """
    id_line = "" if event_id is None else f"id: {_FIELD_BREAKERS.sub('', event_id)}\n"
    return f"{id_line}{encode_data(event_type, data)}\n"


def encode_reset(channels: list[str], event_id: str) -> str:
    """Return a stream-reset: the client's position in these channels is gone."""
    data = json.dumps({"channels": sorted(channels)})
    return encode_event("stream-reset", data, event_id)


def encode_error(
    condition: str,
    text: str,
    extra: Mapping[str, object] | None = None,
    *,
    is_final: bool = True,
) -> str:
    """Return a stream-error.

    Args:
        condition: "bad-request", "forbidden", "token-invalid", "token-expired" or
            "internal-error".
        text: For people.
        extra: More keys of the data, for instance the channels concerned.
        is_final: The client must not resume: it loses its position.
    """
    data = {"condition": condition, "text": text, **(extra or {})}
    event_id = ERROR_ID if is_final else None
    # Of a stream that is held, a proxy may pass it through the filter of the answer before,
    # which expands a percent sign, and ends a stream where it cannot.
    text = json.dumps(data).replace("%", "\\u0025")
    return encode_event("stream-error", text, event_id)


def encode_preamble(
    padding: int,
    retry: int | None,
    event_id: str = "",
    *,
    head: str = "",
    keep_alive: float = 0,
    state_count: int | None = None,
) -> str:
    """Return what opens a stream: padding, retry and stream-open.

    stream-open carries the position, so that a client which is cut off before its first
    event comes back from there and not from wherever the channel is by then. Its data
    tell a client when it has caught up, how long a silence is suspicious, and whether
    streams of this site may begin with what a client that joins a stream later would miss.

    Args:
        padding: Bytes of comment, which make some browsers and proxies show the stream
            at once. 0 for none.
        retry: Milliseconds that the client waits before it reconnects; None for its own.
        event_id: The position at which the stream begins; "" where nothing is stored.
        head: The position of the newest events; "" where nothing is stored.
        keep_alive: Seconds of silence after which the stream gets a keep-alive.
        state_count: How many initial states follow; None where no channel ever has one.
    """
    comment = f":{' ' * padding}\n" if padding else ""
    retry_line = "" if retry is None else f"retry: {retry}\n"
    opening = {"head": head, "keep_alive": keep_alive}
    if state_count is not None:
        opening["states"] = state_count
    data = json.dumps(opening)
    return f"{comment}{retry_line}{encode_event('stream-open', data, event_id or None)}"
