"""What a setting may be: functions that return what is wrong with a value, or None.

Each says "must be …" of a value of another kind and, where there are limits, of one out of
range: the reference of the settings is made of these words.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import cast
from urllib.parse import urlsplit

import redis
from django.conf import settings
from django.db import connections
from django.utils.module_loading import import_string

from eventstream.redisclients import connect

Check = Callable[[object], str | None]


def integer(low: int, high: int) -> Check:
    """Return the check of a whole number."""

    def check(value: object) -> str | None:
        if isinstance(value, int) and not isinstance(value, bool):
            return None if low <= value <= high else f"must be {low:,} to {high:,}"
        return "must be a whole number"

    return check


def optional(inner: Check) -> Check:
    """Return the check of a value that may be None."""
    return lambda value: None if value is None else inner(value)


def seconds(low: float, high: float) -> Check:
    """Return the check of a duration."""

    def check(value: object) -> str | None:
        if isinstance(value, int | float) and not isinstance(value, bool):
            within = low <= value <= high
            return None if within else f"must be {low:,} to {high:,} seconds"
        return "must be a number of seconds"

    return check


def boolean(value: object) -> str | None:
    """Check a switch."""
    return None if isinstance(value, bool) else "must be True or False"


def text(value: object) -> str | None:
    """Check a string."""
    return None if isinstance(value, str) else "must be a string"


def name(value: object) -> str | None:
    """Check a string that says something."""
    is_name = isinstance(value, str) and value.strip()
    return None if is_name else "must be a string that is not empty"


def texts(value: object) -> str | None:
    """Check a list of strings."""
    if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value):
        return None
    return "must be a list of strings"


def origins(value: object) -> str | None:
    """Check what browsers send as Origin."""
    found = [value] if isinstance(value, str) else value
    if texts(found) is not None:
        return "must be a list of origins such as 'https://example.com'"
    for origin in cast("Sequence[str]", found):
        _, separator, host = origin.partition("://")
        if origin and origin != "*" and (not separator or not host or "/" in host):
            return f"{origin!r} is not an origin such as 'https://example.com'"
    return None


def databases(value: object) -> str | None:
    """Check the aliases of outboxes."""
    if texts(value) is not None:
        return texts(value)
    aliases = list(cast("Sequence[str]", value))
    if not aliases:
        return "must name a database: ['default'] is the project's first"
    for alias in aliases:
        if alias not in connections:
            known = ", ".join(sorted(connections))
            return f"names {alias!r}, which is not in DATABASES: {known}"
        if aliases.count(alias) > 1:
            return f"names {alias!r} more than once"
    return None


def cache_alias(value: object) -> str | None:
    """Check the alias of a cache."""
    if isinstance(value, str) and value in settings.CACHES:
        return None
    return f"must be an alias in CACHES: {', '.join(sorted(settings.CACHES))}"


def redis_server(value: object) -> str | None:
    """Check how to reach a Redis: redis-py makes a connection of it, and opens none."""
    if value is None or value == "":  # "" from an unset variable: none
        return None
    problem = "must be a redis:// URL, or a dict of redis-py's arguments"
    if isinstance(value, Mapping):
        arguments = dict(value)
    elif isinstance(value, str):
        if not value.startswith(("redis://", "rediss://", "unix://")):
            return problem
        arguments = {"url": value}
    else:
        return problem
    url = arguments.get("url") or ""
    if not isinstance(url, str):
        return problem
    if not has_port(url):
        # Not in redis-py's words: they quote what may be a part of the password.
        return "has no number as its port; in a password, write / as %2F and # as %23"
    try:
        pool = connect(arguments, timeout=1).connection_pool
        pool.make_connection()
    except (KeyError, TypeError, ValueError, redis.RedisError) as error:
        return f"is refused by redis-py: {type(error).__name__}: {error}"
    number = str(pool.connection_kwargs.get("db") or 0)
    return None if number.isdecimal() else "has no number as its db"


def has_port(url: str) -> bool:
    """Say whether the port of a URL, if it has one, is a number."""
    try:
        _ = urlsplit(url).port
    except ValueError:
        return False
    return True


def addresses(value: object) -> str | None:
    """Check where the metrics of proxies are."""
    problem = "must be a dict of control URIs and http:// addresses"
    if not isinstance(value, Mapping):
        return problem
    for uri, address in value.items():
        if not isinstance(uri, str) or http_url(address) is not None:
            return problem
    return None


def http_url(value: object) -> str | None:
    """Check where HTTP goes. Says nothing of the value: it may have a key in it."""
    problem = "must be a URL such as 'http://127.0.0.1:5561'"
    if not isinstance(value, str):
        return problem
    # A second one would become a part of the first one's key.
    if value.split() != [value]:
        return "must be one URL such as 'http://127.0.0.1:5561', without spaces"
    if not has_port(value):
        return problem
    parts = urlsplit(value)
    return None if parts.scheme in ("http", "https") and parts.hostname else problem


def grip_proxies(value: object) -> str | None:
    """Check the proxies in gripcontrol's form."""
    problem = (
        "must be a list of dicts, each with the control_uri of a proxy and its key"
    )
    if not isinstance(value, list | tuple):
        return problem
    for number, proxy in enumerate(value):
        if not isinstance(proxy, Mapping):
            return problem
        if "control_uri" not in proxy:
            keys = ", ".join(map(str, proxy)) or "nothing"
            return f"has no control_uri in its entry {number}, but {keys}"
        uri_problem = http_url(proxy["control_uri"])
        if uri_problem is not None:
            return f"has a control_uri in its entry {number} that {uri_problem}"
        for name in ("key", "verify_key"):
            key_problem = key(proxy[name]) if name in proxy else None
            if key_problem is not None:
                # For django-grip it is there: no signature would be good.
                text = f"has a {name} in its entry {number} that {key_problem}"
                return f"{text}; leave it out if there is none"
    return None


def key(value: object) -> str | None:
    """Check what signs. Says nothing of the value."""
    is_key = isinstance(value, str | bytes) and value
    return None if is_key else "must be a string, or bytes, that is not empty"


def subclass_of(base: str) -> Check:
    """Return the check of the dotted path of a class that derives from another, or is it."""

    def check(value: object) -> str | None:
        problem = class_path(value)
        if problem is not None:
            return problem
        if issubclass(import_string(str(value)), import_string(base)):
            return None
        return f"must be derived from {base}, and {value} is not"

    return check


def class_path(value: object) -> str | None:
    """Check the dotted path of a class."""
    problem = "must be the dotted path of a class"
    if not isinstance(value, str):
        return problem
    parts = value.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return problem
    try:
        found = import_string(value)
    except ImportError as error:
        return f"cannot be imported: {error}"
    return None if isinstance(found, type) else f"{problem}, and {value} is none"
