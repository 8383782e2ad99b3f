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
        (r"django_eventstream\.(viewsets|renderers)", "the same name from eventstream.drf"),
        (r"import .*\b(EventRequest|EventResponse|get_events)\b|django_eventstream\.(event|eventrequest|eventresponse|utils)\b", "no counterpart: reading is the view's business"),
        (r"django_eventstream\.models", "eventstream.models.Event: rows are inserted without Django's signals, and their data is what clients receive"),
        (r"EventPermissionError", "eventstream.exceptions.ChannelPermissionError"),
        (r"django_eventstream\.storage\.RedisStorage", "leave the setting out; events are kept in the database. Those in Redis cannot be taken over: `manage.py eventstream reset-readers` before the first is sent here"),
        (r"EVENTSTREAM_STORAGE_CLASS\b.*django_eventstream", "leave the setting out: the database is the default"),
        (r"django_eventstream\.storage", "no counterpart: a storage of your own cannot be one here"),
        (r"EVENTSTREAM_STORAGE_CONNECTION", "leave the setting out"),
        (r"django_eventstream/(json2|eventsource\.min)\.js", "leave it out: every browser has it"),
        (r"django_eventstream/(reconnecting-eventsource|ReconnectingEventSource)", "eventstream/reconnecting-eventsource.min.js, the same; or EventStream, see docs/browser.md"),
        (r"\bget_listener_manager\b|django_eventstream\.views import .*\b(Listener|ListenerManager|stream)\b", "no counterpart: who listens need not be known, and a view returns eventstream.views.events(request, channels=[…])"),
        (r"django_eventstream\.views", "the same from eventstream; behind a proxy a view of your own needs a second route, see docs/howto/channels.md"),
        (r"django_eventstream\.routing", "a path in urls.py, and no Channels: Django's own ASGI application answers"),
        (r"^\W*django_eventstream(\.apps\.\w+)?[\"'],?\W*$|INSTALLED_APPS\b.*[\"']django_eventstream", "leave it out, last of all: eventstream has its place"),
        (r"^\s*(from|import)\s+django_eventstream", "the same from eventstream"),
        (r"async_publish\s*=", "leave the argument out: it has no effect"),
        (r"django_eventstream", "eventstream, in its place"),
        (r"django-eventstream", "eventstream, in its place"),
    ]
]  # fmt: skip

_DIFFERENCES = (
    "An event of a transaction that rolls back is not sent, and ids are given after the commit.",
    "A worker publishes, or, without `eventstream_tasks`, the sender itself after its commit.",
    "`send_event` writes to the database, also where nothing was stored before: async code calls `await asend_event(…)`.",
    "Types `stream-…` and `keep-alive`, control characters in a name, `NaN` and data over 256 kB are refused at the call.",
    "`async_publish` has no effect and warns.",
    "`skip_user_ids` is heeded by direct streams and on catch-up, too.",
    "The channel manager is one object for all threads of a process, not one for each: keep nothing of a request in it.",
    "`channel_permission_changed(None, …)` ends nothing: streams of anonymous readers are asked about within a minute.",
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
