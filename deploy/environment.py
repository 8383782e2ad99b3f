"""Environment variables → settings. Pure; imports no settings."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from django.core.exceptions import ImproperlyConfigured

# Without IMMEDIATE, two writers end in "database is locked" within seconds.
SQLITE_OPTIONS = {
    "transaction_mode": "IMMEDIATE",
    "timeout": 20,
    "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL",
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
        ImproperlyConfigured: Another scheme, or no database name.
    """
    parts = urlsplit(url)
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
            "PORT": str(parts.port or ""),
            "OPTIONS": dict(parse_qsl(parts.query)),
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
