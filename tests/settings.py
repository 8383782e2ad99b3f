"""The tests' project. Servers come by environment, from whoever starts a process.

ES_DB     postgres://user@host:port/name; without it a SQLite file, ES_SQLITE or a new one
ES_DB_OPTIONS  JSON of its OPTIONS
ES_REDIS  URL of the bus and broker; without it there is neither
ES_GRIP   GRIP_URL; several, with spaces between them, become GRIP_PROXIES
ES_SET    JSON of more settings
ES_TRACE  if set, OpenTelemetry's spans go to the standard output
"""

from __future__ import annotations

import atexit
import json
import os
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gripcontrol import parse_grip_uri

SECRET_KEY = "tests-only-0123456789-0123456789-0123456789"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "tests.urls"
ASGI_APPLICATION = "tests.asgi.application"
STATIC_URL = "static/"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "rest_framework",
    "eventstream",
    "eventstream_tasks",
]

MIDDLEWARE = [
    "django_grip.GripMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]


def _pool() -> dict[str, Any]:
    size = os.environ.get("ES_POOL")
    return (
        {"pool": {"min_size": 1, "max_size": int(size), "timeout": 2}} if size else {}
    )


def _own_sqlite() -> str:
    """Return the path of a file of this process, which deletes it, and no child of it."""
    pid = os.getpid()
    path = Path(tempfile.gettempdir()) / f"eventstream-{pid}.sqlite3"

    def delete() -> None:
        if os.getpid() == pid:
            # The tests' own, too, and the logs that threads have left open beside it.
            for each in path.parent.glob(f"{path.name}*"):
                each.unlink(missing_ok=True)

    atexit.register(delete)
    return str(path)


def _database(suffix: str = "") -> dict[str, Any]:
    url = os.environ.get("ES_DB")
    if url:
        parts = urlsplit(url)
        return {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": parts.hostname,
            "PORT": parts.port,
            "USER": parts.username or "postgres",
            "NAME": parts.path.lstrip("/"),
            "DISABLE_SERVER_SIDE_CURSORS": True,  # there may be a PgBouncer between
            "OPTIONS": {**_pool(), **json.loads(os.environ.get("ES_DB_OPTIONS", "{}"))},
            "CONN_HEALTH_CHECKS": bool(_pool()),
            "TEST": {"NAME": f"test_{os.getpid()}{suffix}"},
        }
    path = (os.environ.get("ES_SQLITE") or _own_sqlite()) + suffix
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
        },
        # A file: threads and processes of a test must see each other's commits.
        "TEST": {"NAME": f"{path}.test"},
    }


# The second is for tests with two outboxes.
DATABASES = {"default": _database(), "other": _database("_other")}

EVENTSTREAM_REDIS = os.environ.get("ES_REDIS")
_proxies = os.environ.get("ES_GRIP", "").split()
GRIP_URL = _proxies[0] if len(_proxies) == 1 else None
if len(_proxies) > 1:
    # Not an empty list otherwise: django-grip would append GRIP_URL to it, for good.
    GRIP_PROXIES = [parse_grip_uri(uri) for uri in _proxies]
EVENTSTREAM_CHANNELMANAGER_CLASS = "tests.channels.ChannelManager"
EVENTSTREAM_NEXT_LINK_TIMEOUT = int(os.environ.get("ES_LINK_TIMEOUT", "60"))
# Nothing but Django: without any bus or proxy a check warns, rightly.
SILENCED_SYSTEM_CHECKS = ["eventstream.W001"]

CELERY_BROKER_URL = EVENTSTREAM_REDIS or "memory://"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "visibility_timeout": 300,
    "unacked_restore_interval": 10,
    "unacked_restore_throttle": 1,
}
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 1

if not EVENTSTREAM_REDIS:
    EVENTSTREAM_DISPATCHER = "eventstream.dispatch.InlineDispatcher"

globals().update(json.loads(os.environ.get("ES_SET", "{}")))
