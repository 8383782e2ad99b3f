"""Every setting of this app: name, type, default, unit, reason.

`get_options` reads them anew after Django's `setting_changed`, hence works with
`override_settings`. A wrong value is reported by `manage.py check` (see checks.py) and
raises ImproperlyConfigured at first use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from django.apps import apps
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from eventstream import values
from eventstream.redisclients import connect

MAX_CHANNEL_LENGTH = 255
MAX_EVENT_TYPE_LENGTH = 255
DEFAULT_STORAGE = "eventstream.storage.DjangoModelStorage"
DEFAULT_CHANNELMANAGER = "eventstream.channelmanager.DefaultChannelManager"


@dataclasses.dataclass(frozen=True)
class Setting:
    """One EVENTSTREAM_… setting.

    Attributes:
        name: Without the prefix.
        default: A value, or a function that makes one.
        help: Unit and reason, in a sentence.
        check: Returns what is wrong with a value, or None.
    """

    name: str
    default: object
    help: str
    check: Callable[[object], str | None]

    def value(self) -> Any:
        """Return what the project has set, or the default."""
        default = self.default() if callable(self.default) else self.default
        return getattr(settings, f"EVENTSTREAM_{self.name}", default)


def _dispatcher() -> str:
    if apps.is_installed("eventstream_tasks"):
        return "eventstream_tasks.dispatch.CeleryDispatcher"
    return "eventstream.dispatch.InlineDispatcher"


SETTINGS = [
    Setting("STORAGE_CLASS", DEFAULT_STORAGE, "Dotted path of the class that keeps the log; None keeps none, and every channel is best-effort.", values.optional(values.subclass_of(DEFAULT_STORAGE))),
    Setting("CHANNELMANAGER_CLASS", DEFAULT_CHANNELMANAGER, "Dotted path of the class that says which channels a request asks for, may read, and are reliable.", values.subclass_of("eventstream.channelmanager.ChannelManagerBase")),
    Setting("AUTHORIZER_CLASS", None, "Dotted path of an authorizer of release 1.1: a class with can_read_channel(user, channel). Used where no channel manager is set.", values.optional(values.class_path)),
    Setting("DISPATCHER", _dispatcher, "Dotted path of the class that wakes the relay on commit. Celery's where eventstream_tasks is installed, else inline.", values.subclass_of("eventstream.dispatch.Dispatcher")),
    Setting("DATABASES", ["default"], "Database aliases that have an outbox.", values.databases),
    Setting("REDIS", None, "URL, or dict of redis-py's arguments, of the Redis or Valkey that is the bus between the relay and the web processes that hold streams themselves. With Sentinel the dict has sentinels, a list of (host, port), and service_name.", values.redis_server),
    Setting("REDIS_PREFIX", "eventstream:", "Prefix of the names used there, so that several projects can share one server. Those with the same prefix need a number of its databases each.", values.text),
    Setting("PARTITIONS", 16, "Number of partitions. More spread work over more workers; each costs a row and a wake-up.", values.integer(1, 4096)),
    Setting("RETENTION", 24 * 3600, "Seconds for which events are kept. A client away for longer gets a stream-reset.", values.seconds(60, 10 * 365 * 86400)),
    Setting("MAX_EVENT_BYTES", 262_144, "Largest data of an event, in bytes of UTF-8. A proxy refuses whole POSTs over 1,000,000.", values.integer(1, 900_000)),
    Setting("CHANNEL_LIMIT", 10, "Most channels of one stream. Pushpin takes connection_subscription_max, 20, less two.", values.integer(1, 1000)),
    Setting("PAGE_SIZE", 10_000, "Most events in one answer to a proxy. Streams that the web process holds are written a thousand, or 1 MB, of a channel at a time at most.", values.integer(1, 10_000)),
    Setting("PAGE_BYTES", 1_000_000, "Most bytes of data in one answer to a proxy.", values.integer(10_000, 50_000_000)),
    Setting("QUEUE_LENGTH", 1000, "Events of a channel kept in memory for live readers; one further behind reads the log.", values.integer(1, 100_000)),
    Setting("QUEUE_BYTES", 4_000_000, "Bytes of a channel kept in memory for live readers.", values.integer(10_000, 1_000_000_000)),
    Setting("KEEP_ALIVE", 20, "Seconds of silence after which a stream gets a keep-alive.", values.integer(1, 600)),
    Setting("PADDING", 2048, "Bytes of comment that open a stream.", values.integer(0, 65_536)),
    Setting("RETRY", 2000, "Milliseconds that a client waits before it reconnects; None leaves it to the client.", values.optional(values.integer(0, 600_000))),
    Setting("NEXT_LINK_TIMEOUT", 60, "Most seconds until a proxy asks again whether there is anything new for a stream.", values.integer(1, 3600)),
    Setting("LINK_LIFETIME", 24 * 3600, "Seconds for which a next link is good at least, an hour more at most; then the client reconnects.", values.integer(120, 30 * 86400)),
    Setting("POLL_INTERVAL", 10.0, "Seconds between two looks of a web process at the log, in case the bus is silent.", values.seconds(0.1, 300)),
    Setting("POLL_INTERVAL_WITHOUT_BUS", 0.5, "The same where there is no bus.", values.seconds(0.05, 300)),
    Setting("PERMISSION_INTERVAL", 60.0, "Seconds after which a direct stream's permissions are asked again.", values.seconds(0.1, 86400)),
    Setting("READER_THREADS", 3, "Threads, hence database connections, with which a web process reads the log for all its streams.", values.integer(1, 64)),
    Setting("DRAIN_SECONDS", 2.0, "Seconds over which a web process that gets SIGTERM, or Ctrl-C, ends its streams. Less than the server's limit, uvicorn's --timeout-graceful-shutdown: what is open then is cut at once.", values.seconds(0, 3600)),
    Setting("BATCH_SIZE", 10_000, "Most events numbered in one transaction, and in one POST.", values.integer(1, 10_000)),
    Setting("BATCH_BYTES", 900_000, "Most bytes of one POST. Pushpin refuses bodies over 1,000,000.", values.integer(10_000, 50_000_000)),
    Setting("LEASE_SECONDS", 15.0, "Seconds for which a relay has a (partition, target) to itself without renewing.", values.seconds(1, 600)),
    Setting("CONNECT_TIMEOUT", 2.0, "Seconds to connect to a target.", values.seconds(0.05, 60)),
    Setting("PUBLISH_TIMEOUT", 5.0, "Seconds for a target to answer a POST.", values.seconds(0.1, 120)),
    Setting("BACKLOG_AFTER", 30.0, "Seconds of failing after which a target that is back gets only the newest event of each channel. Less than the proxy's id_cache_ttl.", values.seconds(0, 86400)),
    Setting("PROXY_METRICS", {}, "Prometheus page of each GRIP proxy by its control URI, {'http://127.0.0.1:5561': 'http://127.0.0.1:7998/metrics'}: tells how many readers it has.", values.addresses),
    Setting("UNNUMBERED_AFTER", 1.0, "Seconds after which a reader that finds committed events without a number numbers them itself.", values.seconds(0, 60)),
    Setting("STREAMS_PER_USER", 500, "Most streams that a user may have open at the same time, where web processes hold them; None for no limit.", values.optional(values.integer(1, 1_000_000))),
    Setting("STREAMS_PER_ADDRESS", None, "The same for an address. A whole company or mobile network may share one.", values.optional(values.integer(1, 1_000_000))),
    Setting("OPENS_PER_USER", 1000, "Most streams that a user may open within a minute, reconnections included; None for no limit.", values.optional(values.integer(1, 1_000_000))),
    Setting("OPENS_PER_ADDRESS", None, "The same for an address.", values.optional(values.integer(1, 1_000_000))),
    Setting("TRUSTED_PROXIES", 0, "Number of proxies in front that each append to X-Forwarded-For the address that called them. 0: the header is not believed.", values.integer(0, 16)),
    Setting("LIMITS_CACHE", "default", "Alias in CACHES of the cache that counts for these limits. One that is not shared counts in each process.", values.cache_alias),
    Setting("ALLOW_ORIGINS", [], "Origins that may read the stream (CORS), or '*'.", values.origins),
    Setting("ALLOW_ORIGIN", "", "The same under the name of older releases.", values.origins),
    Setting("ALLOW_CREDENTIALS", False, "Whether the origins named there may send cookies. Never those that only '*' lets in.", values.boolean),
    Setting("ALLOW_HEADERS", "", "Value of Access-Control-Allow-Headers; by default Authorization, Cache-Control and Last-Event-ID.", values.text),
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings in force, checked; see SETTINGS for units."""

    storage_class: str | None
    channelmanager_class: str
    authorizer_class: str | None
    dispatcher: str
    databases: Sequence[str]
    redis: str | Mapping[str, Any] | None
    redis_prefix: str
    partitions: int
    retention: float
    max_event_bytes: int
    channel_limit: int
    page_size: int
    page_bytes: int
    queue_length: int
    queue_bytes: int
    keep_alive: int
    padding: int
    retry: int | None
    next_link_timeout: int
    link_lifetime: int
    poll_interval: float
    poll_interval_without_bus: float
    permission_interval: float
    reader_threads: int
    drain_seconds: float
    batch_size: int
    batch_bytes: int
    lease_seconds: float
    connect_timeout: float
    publish_timeout: float
    backlog_after: float
    proxy_metrics: Mapping[str, str]
    unnumbered_after: float
    streams_per_user: int | None
    streams_per_address: int | None
    opens_per_user: int | None
    opens_per_address: int | None
    trusted_proxies: int
    limits_cache: str
    allow_origins: str | Sequence[str]
    allow_origin: str | Sequence[str]
    allow_credentials: bool
    allow_headers: str


@cache
def get_options() -> Options:
    """Return the settings in force.

    Raises:
        ImproperlyConfigured: A setting has a value that it cannot have.
    """
    return Options(**read(SETTINGS))


def read(table: Iterable[Setting]) -> dict[str, Any]:
    """Return what the project has set, by name in lower case.

    Raises:
        ImproperlyConfigured: A setting has a value that it cannot have.
    """
    found = {}
    for setting in table:
        value = setting.value()
        problem = setting.check(value)
        if problem is not None:
            raise ImproperlyConfigured(f"EVENTSTREAM_{setting.name} {problem}.")
        found[setting.name.lower()] = value
    return found


@cache
def load(path: str) -> Any:
    """Return the one instance of the class at this dotted path."""
    return import_string(path)()


def redis_arguments() -> dict[str, Any] | None:
    """Return redis-py's arguments for the bus, {"url": …} for a URL, None without a bus."""
    value = get_options().redis
    if not value:
        return None
    return {"url": value} if isinstance(value, str) else dict(value)


@cache
def bus_prefix() -> str:
    """Return what the names of the bus' messages begin with.

    The number of the Redis' database is in it, unless that is 0: keys are a database's, and
    messages the whole server's. Another installation, on a number of its own, would give
    its events to our readers.
    """
    options, arguments = get_options(), redis_arguments() or {}
    pool = connect(arguments, timeout=1).connection_pool  # opens none
    number = int(pool.connection_kwargs.get("db") or 0)
    return f"{options.redis_prefix}{number}:" if number else options.redis_prefix


def allowed_origins() -> set[str]:
    """Return the origins that may read the stream, in lower case as browsers send them."""
    options = get_options()
    origins: set[str] = set()
    for value in (options.allow_origins, options.allow_origin):
        origins |= {value} if isinstance(value, str) else set(value)
    return {origin.lower() for origin in origins if origin}


def grip_proxies() -> list[dict[str, Any]]:
    """Return the configured GRIP proxies, in gripcontrol's form, GRIP_URL's last.

    Built from the settings on each call and into a list of its own: django-grip appends
    to `settings.GRIP_PROXIES` itself.

    Raises:
        ImproperlyConfigured: GRIP_URL, GRIP_PROXIES or GRIP_VERIFY_KEY has a value that it
            cannot have.
    """
    from gripcontrol import parse_grip_uri  # noqa: PLC0415  imports requests: slow

    listed = getattr(settings, "GRIP_PROXIES", None) or []
    url = getattr(settings, "GRIP_URL", None)
    verify_key = getattr(settings, "GRIP_VERIFY_KEY", None)
    for name, problem in (
        ("GRIP_PROXIES", values.grip_proxies(listed)),
        ("GRIP_URL", values.http_url(url) if url else None),
        ("GRIP_VERIFY_KEY", values.key(verify_key) if verify_key else None),
    ):
        if problem is not None:
            raise ImproperlyConfigured(f"{name} {problem}.")
    proxies = list(listed)
    if url:
        try:
            proxies.append(parse_grip_uri(url))
        except ValueError as error:
            raise ImproperlyConfigured(
                "GRIP_URL has a key that is not base64, as it says."
            ) from error
    return list({proxy["control_uri"]: proxy for proxy in proxies}.values())


def without_credentials(control_uri: str) -> str:
    """Return the address of a proxy as it may be shown."""
    parts = urlsplit(control_uri)
    location = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, location, parts.path, "", ""))


def has_public_key(proxy: Mapping[str, Any]) -> bool:
    """Say whether a proxy signs with a key of its own, as Fastly Fanout does.

    The application has the public half of it then, in PEM, and cannot sign in its place.
    """
    key = proxy.get("verify_key") or getattr(settings, "GRIP_VERIFY_KEY", None) or b""
    return b"-----BEGIN" in (key.encode() if isinstance(key, str) else key)


@cache
def grip_prefix() -> str:
    """Return GRIP_PREFIX, which several sites on one proxy use to stay apart.

    Raises:
        ImproperlyConfigured: It is no string.
    """
    prefix: str = getattr(settings, "GRIP_PREFIX", "")
    problem = values.text(prefix)
    if problem is not None:
        raise ImproperlyConfigured(f"GRIP_PREFIX {problem}.")
    return prefix


def _forget(*, setting: str, **_: object) -> None:
    if setting.startswith(("EVENTSTREAM_", "GRIP_")) or setting == "INSTALLED_APPS":
        get_options.cache_clear()
        bus_prefix.cache_clear()
        grip_prefix.cache_clear()
        load.cache_clear()


setting_changed.connect(_forget)
