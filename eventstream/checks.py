"""System checks: every wrong or missing setting, with what to do about it.

| id                | level   | what                                              |
|-------------------|---------|---------------------------------------------------|
| eventstream.E001  | error   | a setting has a value that it cannot have         |
| eventstream.E002  | error   | an unknown EVENTSTREAM_… setting                  |
| eventstream.E003  | error   | GRIP is configured, and GripMiddleware is missing |
| eventstream.E005  | error   | a database that cannot number events              |
| eventstream.E020  | error   | a GRIP proxy with a verify_key and no key         |
| eventstream.E021  | error   | both GRIP_URL and GRIP_PROXIES                    |
| eventstream.E022  | error   | a GRIP_… setting has a value that it cannot have  |
| eventstream.E023  | error   | a proxy's public key, and no package to use it    |
| eventstream.W001  | warning | neither a bus nor a GRIP proxy                    |
| eventstream.W002  | warning | WSGI only, and no GRIP proxy                      |
| eventstream.W003  | warning | SQLite in a transaction mode other than IMMEDIATE |
| eventstream.W004  | warning | BATCH_BYTES too small for MAX_EVENT_BYTES         |
| eventstream.W005  | warning | a GRIP proxy without a key                        |
| eventstream.W006  | warning | the sweep has not run lately (--database)         |
| eventstream.W007  | warning | a pool that leaves requests no connection         |
| eventstream.W008  | warning | a GRIP proxy's questions are redirected to HTTPS  |
| eventstream.W009  | warning | a lease that ends while a target may still answer |
| eventstream.W020  | warning | CORS credentials, and only '*' as an origin       |
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from typing import Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register  # noqa: A004
from django.core.exceptions import ImproperlyConfigured
from django.db import DatabaseError, connections
from django.db.models.functions import Now
from django.urls import NoReverseMatch, reverse

from eventstream import conf
from eventstream.models import Event, Job
from eventstream.storage import SUPPORTED_VENDORS

GRIP_MIDDLEWARE = "django_grip.GripMiddleware"
SECURITY_MIDDLEWARE = "django.middleware.security.SecurityMiddleware"
SWEEP_OVERDUE_SECONDS = 300
_DEFAULT_POOL = 4  # psycopg_pool's min_size, which is the most where none is said


@register("eventstream")
def check_settings(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """Check every EVENTSTREAM_… setting against its table."""
    found = [
        *check_values(conf.SETTINGS, "eventstream.E001"),
        *check_names(conf.SETTINGS, "eventstream.E002", but="EVENTSTREAM_TASKS_"),
    ]
    if found:
        return found
    try:
        conf.grip_proxies()
        conf.grip_prefix()
    except ImproperlyConfigured as error:
        hint = (
            "GRIP_URL = 'http://…?key=…' is for one proxy; for several GRIP_PROXIES = "
            "[gripcontrol.parse_grip_uri(url), …]."
        )
        return [Error(str(error), hint=hint, id="eventstream.E022")]
    found += _check_databases()
    found += _check_grip()
    found += _check_redirect()
    found += _check_holding()
    found += _check_cors()
    options = conf.get_options()
    if options.batch_bytes < options.max_event_bytes * 2 + 2000:
        hint = "JSON in JSON can double its size. A larger event would be refused."
        text = "EVENTSTREAM_BATCH_BYTES is less than twice EVENTSTREAM_MAX_EVENT_BYTES."
        found.append(Warning(text, hint=hint, id="eventstream.W004"))
    call_seconds = options.publish_timeout + max(
        options.connect_timeout, options.publish_timeout
    )
    if options.lease_seconds <= call_seconds:
        text = (
            f"EVENTSTREAM_LEASE_SECONDS is not more than the {call_seconds:g} s that a "
            "call to a target may take."
        )
        hint = (
            "While a target hangs each relay would lose its lease to the next, and no "
            "failure be recorded: all workers would be busy with it. Raise it, or lower "
            "EVENTSTREAM_CONNECT_TIMEOUT and EVENTSTREAM_PUBLISH_TIMEOUT."
        )
        found.append(Warning(text, hint=hint, id="eventstream.W009"))
    return found


def check_values(table: Iterable[conf.Setting], code: str) -> Iterable[CheckMessage]:
    """Check each setting of a table, and say what it is where it cannot be that."""
    for setting in table:
        problem = setting.check(setting.value())
        if problem is not None:
            text = f"EVENTSTREAM_{setting.name} {problem}."
            yield Error(text, hint=setting.help, id=code)


def check_names(
    table: Iterable[conf.Setting],
    code: str,
    *,
    prefix: str = "EVENTSTREAM_",
    but: str = "",
) -> Iterable[CheckMessage]:
    """Check that a table has every setting with a prefix, but for those of another's."""
    # Without what they all begin with, by which any two are alike.
    own = [setting.name for setting in table]
    known = {f"EVENTSTREAM_{name}" for name in own}
    for name in dir(settings):
        if not name.startswith(prefix) or name in known:
            continue
        if but and name.startswith(but):
            continue
        hint = "The settings are: " + ", ".join(sorted(known)) + "."
        if meant := get_close_matches(name.removeprefix("EVENTSTREAM_"), own, n=1):
            hint = f"Did you mean EVENTSTREAM_{meant[0]}? {hint}"
        text = f"{name} is not a setting of eventstream."
        yield Error(text, hint=hint, id=code)


def _check_cors() -> Iterable[CheckMessage]:
    if conf.get_options().allow_credentials and conf.allowed_origins() <= {"*"}:
        text = "EVENTSTREAM_ALLOW_CREDENTIALS is set, and no origin is named."
        hint = (
            "Name the origins that may send cookies in EVENTSTREAM_ALLOW_ORIGINS: '*' "
            "lets pages of any site read what everybody may read, without cookies."
        )
        yield Warning(text, hint=hint, id="eventstream.W020")


def _check_databases() -> Iterable[CheckMessage]:
    for alias in conf.get_options().databases:
        connection = connections[alias]
        if connection.vendor not in SUPPORTED_VENDORS:
            text = f"Database {alias!r} is {connection.vendor}."
            hint = "Keep the outbox on PostgreSQL or SQLite: see EVENTSTREAM_DATABASES."
            yield Error(text, hint=hint, id="eventstream.E005")
        options = connection.settings_dict.get("OPTIONS", {})
        mode = str(options.get("transaction_mode", "")).upper()
        if connection.vendor == "sqlite" and mode != "IMMEDIATE":
            text = f"SQLite database {alias!r} does not begin transactions IMMEDIATE."
            hint = (
                'Set OPTIONS = {"transaction_mode": "IMMEDIATE", "timeout": 20, '
                '"init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"}: '
                'otherwise concurrent writers get "database is locked".'
            )
            yield Warning(text, hint=hint, id="eventstream.W003")
        yield from _check_pool(alias, options)


def _check_pool(alias: str, options: Mapping[str, Any]) -> Iterable[CheckMessage]:
    pool = options.get("pool")
    sizes = {} if pool is True else pool or {}
    size = sizes.get("max_size") or sizes.get("min_size", _DEFAULT_POOL)
    kept = conf.get_options().reader_threads
    if pool and size <= kept:
        text = (
            f"The pool of database {alias!r} has {size} connections, and where the ASGI "
            f"server holds streams their readers keep {kept}."
        )
        hint = (
            'Set OPTIONS["pool"]["max_size"] to 10, for instance, or lower '
            "EVENTSTREAM_READER_THREADS: requests would wait for half a minute."
        )
        yield Warning(text, hint=hint, id="eventstream.W007")


def _check_grip() -> Iterable[CheckMessage]:
    proxies = conf.grip_proxies()
    if proxies and GRIP_MIDDLEWARE not in settings.MIDDLEWARE:
        text = f"GRIP_URL or GRIP_PROXIES is set, and {GRIP_MIDDLEWARE} is missing."
        hint = f"Put {GRIP_MIDDLEWARE!r} first in MIDDLEWARE."
        yield Error(text, hint=hint, id="eventstream.E003")
    if getattr(settings, "GRIP_URL", None) and hasattr(settings, "GRIP_PROXIES"):
        text = "Both GRIP_URL and GRIP_PROXIES are set."
        hint = (
            "django-grip appends GRIP_URL to GRIP_PROXIES at every request that comes "
            "through a proxy, and the list grows for ever. Keep GRIP_URL for one proxy; "
            "for several GRIP_PROXIES = [gripcontrol.parse_grip_uri(url), …]."
        )
        yield Error(text, hint=hint, id="eventstream.E021")
    for proxy in proxies:
        address = conf.without_credentials(proxy["control_uri"])
        if proxy.get("verify_key") and not proxy.get("key"):
            text = f"The GRIP proxy {address} has a verify_key and no key."
            hint = (
                "django-grip fails with a KeyError then. Give it both, the same twice if "
                "publishing needs none."
            )
            yield Error(text, hint=hint, id="eventstream.E020")
        if conf.has_public_key(proxy) and find_spec("cryptography") is None:
            text = (
                f"The GRIP proxy {address} signs with a key pair, and the "
                "package cryptography is missing."
            )
            hint = "No signature of it would be accepted: pip install 'PyJWT[crypto]'."
            yield Error(text, hint=hint, id="eventstream.E023")
        if not any(proxy.get(key) for key in ("key", "verify_key")) and not getattr(
            settings, "GRIP_VERIFY_KEY", None
        ):
            text = f"The GRIP proxy {address} has no key."
            hint = (
                "Anyone could pretend to be the proxy and read whole streams. Give the "
                "proxy a sig_key and add it: GRIP_URL = 'http://…?key=…'."
            )
            yield Warning(text, hint=hint, id="eventstream.W005")


def _check_redirect() -> Iterable[CheckMessage]:
    redirects = (
        settings.SECURE_SSL_REDIRECT and SECURITY_MIDDLEWARE in settings.MIDDLEWARE
    )
    if not redirects or not conf.grip_proxies():
        return
    try:
        # As hold writes it: the route may have no slash at its end.
        path = f"{reverse('eventstream:events').rstrip('/')}/next/x/".lstrip("/")
    except NoReverseMatch:
        return  # streams are elsewhere, wherever that is
    if not any(re.search(exempt, path) for exempt in settings.SECURE_REDIRECT_EXEMPT):
        text = (
            f"SECURE_SSL_REDIRECT is on, and /{path.removesuffix('x/')} is not exempt."
        )
        hint = (
            "A GRIP proxy asks there for what is new, as a rule by HTTP and without the "
            "X-Forwarded-Proto of the client: redirected, its streams get no event. Set "
            f"SECURE_REDIRECT_EXEMPT = [r'^{path.removesuffix('next/x/')}(next|health)/']."
        )
        yield Warning(text, hint=hint, id="eventstream.W008")


def _check_holding() -> Iterable[CheckMessage]:
    if conf.grip_proxies():
        return
    if conf.redis_arguments() is None:
        text = "Neither a GRIP proxy nor a Redis bus is configured."
        hint = (
            "Streams look at the database twice a second. Set EVENTSTREAM_REDIS, or "
            "GRIP_URL, for events to arrive at once."
        )
        yield Warning(text, hint=hint, id="eventstream.W001")
    has_wsgi = getattr(settings, "WSGI_APPLICATION", None)
    if has_wsgi and not getattr(settings, "ASGI_APPLICATION", None):
        text = "The project names a WSGI application, no ASGI application and no proxy."
        hint = (
            "Streams need one: serve by ASGI and set ASGI_APPLICATION, or set GRIP_URL. "
            "Under WSGI alone /events/ answers 501."
        )
        yield Warning(text, hint=hint, id="eventstream.W002")


@register(Tags.database)
def check_sweep(
    app_configs: Sequence[AppConfig] | None,
    databases: Sequence[str] | None = None,
    **kwargs: Any,
) -> list[CheckMessage]:
    """Check that beat and a worker are at work. Runs with `check --database`.

    Not while there is no event that could wait for them: Django runs this after `migrate`,
    and as it makes the database of tests.
    """
    found: list[CheckMessage] = []
    try:
        with_outbox = conf.get_options().databases
    except ImproperlyConfigured:
        return found  # check_settings says what is wrong
    for alias in databases or []:
        if alias not in with_outbox:
            continue
        limit = Now() - datetime.timedelta(seconds=SWEEP_OVERDUE_SECONDS)
        sweeps = Job.objects.using(alias).filter(name=Job.REPUBLISH)
        rows = sweeps.filter(finished_at__gte=limit)
        try:
            has_run = rows.exists() or not Event.objects.using(alias).exists()
        except DatabaseError:
            continue  # not migrated yet
        if not has_run:
            text = f"No sweep of database {alias!r} in the last five minutes."
            missing = "`python manage.py eventstream relay`. Without it"
            if apps.is_installed("eventstream_tasks"):
                missing = (
                    "a worker and a beat: `celery -A <project> worker -Q celery,"
                    "eventstream` and `celery -A <project> beat -S django`. Without them"
                )
            hint = (
                f"Start {missing} events whose publishing failed wait for the next one."
            )
            found.append(Warning(text, hint=hint, id="eventstream.W006"))
    return found
