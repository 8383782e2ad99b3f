"""Environment variables → settings. Pure; imports no settings."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, quote, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured
from gripcontrol import parse_grip_uri

SHORTEST_GRIP_KEY = 32
"""Characters, of which fewer could be guessed by who publishes to a proxy in our place."""
_ESCAPED = "in a password, write / as %2F, # as %23 and ? as %3F"
# Without IMMEDIATE, two writers end in "database is locked" within seconds.
SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
}

# A server that is gone without a word, as one that was fenced, is noticed in the middle of a
# query by the client's own system alone: after two hours unless it is told otherwise.
POSTGRESQL_OPTIONS = {
    "connect_timeout": "5",
    "keepalives_idle": "5",
    "keepalives_interval": "5",
    "keepalives_count": "2",
    "tcp_user_timeout": "15000",
}


def get_bool(name: str, *, default: bool = False) -> bool:
    """Return a yes or no of the environment.

    Raises:
        ImproperlyConfigured: It is neither.
    """
    value = os.environ.get(name, "").strip().lower()
    if not value:
        return default
    if value in ("1", "true", "yes", "on"):
        return True
    if value in ("0", "false", "no", "off"):
        return False
    raise ImproperlyConfigured(f"{name}={value!r}: set it to 1 or 0.")


def get_int(name: str, *, default: int = 0) -> int:
    """Return a number of the environment, 0 or more.

    Raises:
        ImproperlyConfigured: It is none.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        return default
    if value.isascii() and value.isdecimal():
        return int(value)
    raise ImproperlyConfigured(
        f"{name}={value!r}: set it to a whole number, such as 10."
    )


def get_list(name: str) -> list[str]:
    """Return a comma-separated list of the environment."""
    return [
        item.strip() for item in os.environ.get(name, "").split(",") if item.strip()
    ]


def parse_database_url(url: str, *, base: Path) -> dict[str, Any]:
    """Return the entry of DATABASES for a URL.

    Args:
        url: postgres://user:password@host:port/name?sslmode=require, the query being
            libpq's options; or sqlite:///file, taken from `base` unless it begins with
            a fourth slash.
        base: Folder of relative SQLite files, which is created.

    Raises:
        ImproperlyConfigured: Another scheme, no database name, or it cannot be read.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        # Not in Python's words: they quote what may be a part of the password.
        raise ImproperlyConfigured(
            f"DATABASE_URL has no number as its port; {_ESCAPED}."
        ) from None
    name = unquote(parts.path.removeprefix("/"))
    if not name:
        raise ImproperlyConfigured("DATABASE_URL names no database.")
    if parts.scheme in ("postgres", "postgresql"):
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "USER": unquote(parts.username or ""),
            "PASSWORD": unquote(parts.password or ""),
            "HOST": unquote(parts.hostname or ""),
            "PORT": str(port or ""),
            "OPTIONS": {**POSTGRESQL_OPTIONS, **dict(parse_qsl(parts.query))},
        }
    if parts.scheme == "sqlite":
        path = base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": path,
            "OPTIONS": dict(SQLITE_OPTIONS),
        }
    raise ImproperlyConfigured(
        f"DATABASE_URL has the scheme {parts.scheme!r}; use postgres:// or sqlite:///."
    )


@dataclasses.dataclass(frozen=True)
class Redis:
    """How one Redis or Valkey is reached, by the bus and by Celery.

    Attributes:
        bus: EVENTSTREAM_REDIS; None where there is no bus.
        broker: CELERY_BROKER_URL.
        broker_options: What its transport needs to know besides.
    """

    bus: str | dict[str, Any] | None
    broker: str
    broker_options: dict[str, object]


def parse_redis(url: str, sentinels: list[str], master: str) -> Redis:
    """Return how Redis is reached, directly or by asking Sentinels where it is.

    Raises:
        ImproperlyConfigured: A Sentinel is not given as host:port, or the URL's path, with
            Sentinels, is not a number.
    """
    if not sentinels:
        return Redis(url or None, url or "redis://127.0.0.1:6379/0", {})
    parts = urlsplit(url)
    password = unquote(parts.password or "")
    number = parts.path.strip("/") or "0"
    if not number.isdecimal():
        raise ImproperlyConfigured(
            f"REDIS_URL must end with the number of a database, such as /0; {_ESCAPED}."
        )
    addresses = []
    for sentinel in sentinels:
        host, _, port = sentinel.rpartition(":")
        if not host or not port.isdecimal():
            raise ImproperlyConfigured(
                f"REDIS_SENTINELS has {sentinel!r}; give each as host:port."
            )
        addresses.append((host, int(port)))
    bus: dict[str, Any] = {
        "sentinels": addresses,
        "service_name": master,
        "db": int(number),
    }
    if password:
        bus["password"] = password
    login = f":{quote(password, safe='')}@" if password else ""
    broker = ";".join(
        f"sentinel://{login}{host}:{port}/{number}" for host, port in addresses
    )
    return Redis(bus, broker, {"master_name": master})


def parse_grip(url: str) -> dict[str, Any]:
    """Return the entry of GRIP_PROXIES for a URL.

    Raises:
        ImproperlyConfigured: Its key is not what it says.
    """
    try:
        proxy: dict[str, Any] = parse_grip_uri(url)
    except ValueError:
        raise ImproperlyConfigured(
            "GRIP_URL has a key that is not base64, as it says."
        ) from None
    return proxy


def refuse_insecure(secret: str, hosts: list[str], grip_urls: list[str]) -> None:
    """Stop a process that would serve strangers with a guessable key.

    Raises:
        ImproperlyConfigured: Something is missing, with all that is.
    """
    problems = []
    if len(secret) < 50 or len(set(secret)) < 5 or "insecure" in secret:
        problems.append(
            "SECRET_KEY must be 50 random characters or more: "
            "python -c 'import secrets; print(secrets.token_urlsafe(50))'"
        )
    if not hosts or "*" in hosts:
        problems.append("ALLOWED_HOSTS must name the hosts that are served, not '*'")
    for url in grip_urls:
        key = parse_qs(urlsplit(url).query).get("key", [""])[0]
        if len(key) < SHORTEST_GRIP_KEY:
            host = urlsplit(url).netloc.rpartition("@")[2]
            problems.append(
                f"GRIP_URL of {host} must have ?key=, {SHORTEST_GRIP_KEY} "
                "random characters or more (or GRIP_VERIFY=0, where nobody but the proxy "
                "can reach this process)"
            )
    if problems:
        raise ImproperlyConfigured("; ".join([*problems, "or DEBUG=1, to develop"]))
