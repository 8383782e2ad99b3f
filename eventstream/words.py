"""Counts, durations and errors in words: the same in the admin, commands and findings."""

from __future__ import annotations


def describe_count(count: int, noun: str, plural: str = "") -> str:
    """Return a count with its noun: "1 event", "2,000 events", "2 processes"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def describe_seconds(seconds: float) -> str:
    """Return a duration in words: "40 s", "4 min", "3 h 20 min", "2 d 4 h"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, hours, days = round(whole / 60), whole // 3600, whole // 86400
    if minutes < 100:
        return f"{minutes} min"
    if hours < 48:
        return f"{hours} h {whole // 60 % 60} min"
    return f"{days} d {hours % 24} h"


def describe_cause(error: BaseException) -> str:
    """Return what an error came from, in its own words: "Connection refused".

    HTTP libraries wrap what the system said three or four times over, and put it last.
    """
    cause = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    if isinstance(cause, OSError) and cause.strerror:
        return cause.strerror
    return str(cause) or type(cause).__name__
