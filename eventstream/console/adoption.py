"""adopt: come from django-eventstream."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from eventstream import adopting
from eventstream.console.screen import Screen
from eventstream.exceptions import AdoptionError
from eventstream.words import describe_count

SUFFIXES = {".py", ".html", ".txt", ".toml", ".cfg", ".in", ".js", ".jinja", ".j2"}
SKIPPED = {"node_modules", "site-packages", "__pycache__", "staticfiles", "venv", "env"}
MAX_BYTES = 1_000_000

# The first that matches speaks for the line.
RULES: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), advice)
    for pattern, advice in [
        (r"django_eventstream\.(viewsets|renderers)", "import the name from eventstream.drf"),
        (r"import .*\b(EventRequest|EventResponse|get_events)\b", "no counterpart: reading is the view's business"),
        (r"EventPermissionError", "eventstream.exceptions.ChannelPermissionError"),
        (r"django_eventstream\.storage\.RedisStorage", "leave the setting out; events are kept in the database. Events in Redis cannot be taken over: clients get one stream-reset"),
        (r"EVENTSTREAM_STORAGE_CLASS\b.*django_eventstream", "leave the setting out: the database is the default"),
        (r"EVENTSTREAM_STORAGE_CONNECTION", "leave the setting out"),
        (r"django_eventstream/(json2|eventsource\.min)\.js", "leave it out: every browser has it"),
        (r"django_eventstream/(reconnecting-eventsource|ReconnectingEventSource)", "see README, \"In the browser\""),
        (r"django_eventstream\.routing|AuthMiddlewareStack", "Channels are not needed: serve Django's own ASGI application"),
        (r"^\s*(from|import)\s+django_eventstream", "the same from eventstream"),
        (r"async_publish\s*=", "leave the argument out: publishing never holds up the caller"),
        (r"django_eventstream", "eventstream, in its place"),
        (r"django-eventstream", "eventstream, in its place"),
    ]
]  # fmt: skip

_DIFFERENCES = (
    "An event of a transaction that rolls back is not sent, and ids are given after the commit.",
    "`async_publish` has no effect and warns.",
    "`skip_user_ids` is heeded by direct streams and on catch-up, too.",
    "`EVENTSTREAM_ALLOW_ORIGINS` is compared with the request's `Origin`, as CORS means it.",
    "Under WSGI without a GRIP proxy the answer is 501, at once, rather than silence.",
)
"""What of docs/howto/migrate.md cannot be seen in a line of code."""


def check(screen: Screen, directories: Sequence[str]) -> int:
    """Say line by line what to change; return 1 if there is anything.

    Raises:
        AdoptionError: A directory does not exist.
    """
    rows = []
    for directory in directories:
        if not Path(directory).is_dir():
            raise AdoptionError(f"{directory} is not a directory.")
        for path in _files(Path(directory)):
            text = path.read_text(errors="replace")
            for number, line in enumerate(text.splitlines(), 1):
                advice = _advice(line)
                if advice is not None:
                    rows.append([f"{path}:{number}", line.strip()[:60], advice])
    if not rows:
        screen.line("Nothing of django-eventstream was found.")
        return 0
    screen.table(["where", "line", "change to"], rows)
    screen.line("What is different:")
    for difference in _DIFFERENCES:
        screen.line(f"- {difference}")
    return 1


def take_over(screen: Screen, *, using: str) -> int:
    """Take over events and ids; return 2 if some channel could not be."""
    found = adopting.Adoption()
    for found in adopting.adopt(using):
        if found.channel_count % 1000 == 0:
            screen.line(f"{found.channel_count:,} channels so far")
    screen.line(
        f"{describe_count(found.channel_count, 'channel')}; "
        f"{describe_count(found.event_count, 'event')} taken over."
    )
    if not found.conflicts:
        screen.line("Run it again after django-eventstream has sent its last event.")
        return 0
    names = ", ".join(found.conflicts[:20])
    screen.line(
        f"Not taken over, as both have given the same ids to different events: {names}"
        f"{' …' if len(found.conflicts) > 20 else ''}"
    )
    screen.line(
        "Something still sends by django-eventstream. Stop it, then run `manage.py "
        "eventstream reset-readers`: clients of these channels load anew, once."
    )
    return 2


def _advice(line: str) -> str | None:
    return next((advice for pattern, advice in RULES if pattern.search(line)), None)


def _files(directory: Path) -> Iterator[Path]:
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(
            name for name in folders if name not in SKIPPED and name[0] != "."
        )
        for name in sorted(names):
            path = Path(folder) / name
            if path.suffix in SUFFIXES and path.stat().st_size <= MAX_BYTES:
                yield path
