"""A process' own way to the broker: bounded in time, and not tried again at once.

Celery's default `apply_async` blocks for more than 45 s when the broker hangs. Each step
here has `wake_timeout`, and no retries. The project's Celery settings stay as they are.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import redis
from celery import current_app
from django.apps import apps
from kombu.exceptions import ChannelError
from kombu.exceptions import OperationalError as BrokerError
from redis.client import PubSub

from eventstream import conf as core_conf
from eventstream import instruments
from eventstream.dispatch import DispatchStatus
from eventstream.redisclients import connect
from eventstream.values import has_port
from eventstream_tasks import conf

logger = logging.getLogger(__name__)

FAILURES = (BrokerError, redis.RedisError, OSError)
"""What a broker that is away or hangs is known to raise."""


class Circuit:
    """Open for some seconds after a failure: nobody tries meanwhile. Per process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open_until = 0.0
        self.failure_count = 0

    def is_open(self) -> bool:
        return time.monotonic() < self._open_until

    def record_failure(self, error: BaseException) -> None:
        with self._lock:
            self.failure_count += 1
            was_open = self.is_open()
            pause = conf.get_options().wake_pause
            self._open_until = time.monotonic() + pause
        instruments.active.wake_up("failed")
        instruments.active.circuit_open_until(time.time() + pause)
        if not was_open:
            logger.warning(
                "The broker takes no wake-up (%s: %s): none is tried for %s s, the sweep "
                "delivers meanwhile",
                type(error).__name__, error, conf.get_options().wake_pause,
            )  # fmt: skip


class Connections(threading.local):
    """This thread's own connections; remade after a fork."""

    def __init__(self) -> None:
        self._pid = 0
        self._producer: Any = None
        self._flags: redis.Redis | None = None
        self._messages: PubSub | None = None
        self._no_flags_until = 0.0

    def drop(self) -> None:
        """Forget them, as they may be at fault. Not closed: they may be a parent's."""
        self._pid = os.getpid()
        self._producer, self._flags, self._messages = None, None, None

    def producer(self, app: Any) -> Any:
        """Return what enqueues tasks of the app."""
        self._check_process()
        if self._producer is None:
            connection = connect_broker(app, conf.get_options().wake_timeout)
            self._producer = app.amqp.Producer(connection, auto_declare=False)
        return self._producer

    def flags(self) -> redis.Redis | None:
        """Return where wake-ups are coalesced: the bus, else a Redis broker, else nowhere."""
        self._check_process()
        if time.monotonic() < self._no_flags_until:
            return None
        if self._flags is None:
            arguments = core_conf.redis_arguments() or _broker_arguments()
            if arguments is None:
                return None
            timeout = conf.get_options().wake_timeout
            self._flags = connect(arguments, timeout=timeout)
        return self._flags

    def do_without_flags(self) -> bool:
        """For a while have no flags, as their Redis is away; not if the broker is as well.

        Returns:
            Whether tasks can be enqueued all the same.
        """
        arguments = core_conf.redis_arguments()
        if arguments is None or _netloc(arguments.get("url")) == _netloc(_broker_url()):
            return False
        self._flags = self._messages = None
        self._no_flags_until = time.monotonic() + conf.get_options().wake_pause
        return True

    def messages(self) -> PubSub | None:
        """Return what hears of wake-ups, where there are flags."""
        flags = self.flags()
        if self._messages is None and flags is not None:
            self._messages = flags.pubsub()  # type: ignore[no-untyped-call]
        return self._messages

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            self.drop()


circuit = Circuit()
connections = Connections()


_WITH_ONE_HOST = ("redis", "sentinel", "amqp", "pyamqp", "librabbitmq")
"""Of whose URLs the beginning is so: others may name several, a port each."""


def _broker_url(app: Any = current_app) -> str:
    """Return where an app's broker is; several with semicolons between them.

    Raises:
        BrokerError: It cannot be read.
    """
    found = app.conf.broker_write_url or app.conf.broker_url
    url = found if isinstance(found, str) else ";".join(found or ())
    if not all(
        has_port(each) for each in url.split(";") if each.startswith(_WITH_ONE_HOST)
    ):
        # Not in the words of others: they quote what may be a part of the password.
        raise BrokerError(
            "CELERY_BROKER_URL has no number as its port; in a password, write / as %2F "
            "and # as %23"
        )
    return url


def _netloc(url: object) -> str:
    return urlsplit(str(url or "")).netloc


def _broker_arguments() -> dict[str, Any] | None:
    """Return how to reach the broker, if it is a Redis, with the TLS that Celery has for it."""
    url = _broker_url()
    if not url.startswith(("redis://", "rediss://")):
        return None
    found = current_app.connection_for_write()
    if not found.ssl:
        return {"url": url}
    return {
        "host": found.hostname,
        "port": found.port or 6379,
        "username": found.userid,
        "password": found.password,
        "db": int(str(found.virtual_host or "").strip("/") or 0),
        "ssl": True,
        **(found.ssl if isinstance(found.ssl, dict) else {}),
    }


def connect_broker(app: Any, timeout: float) -> Any:
    """Return a connection to the broker that gives up after so many seconds, once.

    Raises:
        BrokerError: Its URL cannot be read.
    """
    _broker_url(app)
    connection = app.connection_for_write(connect_timeout=timeout)
    connection.transport_options = {
        **connection.transport_options,
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry_on_timeout": False,
        "max_retries": 0,
        "interval_start": 0,
        "interval_step": 0,
        "interval_max": 0,
        "connect_retries_timeout": timeout,
    }
    return connection


def tasks_wait() -> bool:
    """Say whether a task of any kind waits in a queue from which this worker takes some.

    Not counted are those that the worker has fetched ahead.

    Raises:
        BrokerError, redis.RedisError, OSError: The broker is out of reach.
    """
    app = current_app
    connection = connections.producer(app).connection
    try:
        return any(
            _length(connection.default_channel, queue)
            for queue in app.amqp.queues.consume_from
        )
    except connection.connection_errors as error:
        raise BrokerError(str(error)) from error


def _length(channel: Any, queue: str) -> int:
    try:
        return int(channel.queue_declare(queue, passive=True).message_count)
    except ChannelError:  # Redis has no queue that is empty
        return 0


WORKER_SECONDS = 1.0
"""How long workers have to say that they are there."""


def broker_status(*, ask: bool) -> DispatchStatus:
    """Return what is known of broker and workers; asking takes about two seconds."""
    options = conf.get_options()
    app = current_app
    if app.conf.task_always_eager:  # there need be neither
        return DispatchStatus(
            name="Celery, eager",
            sweep_seconds=options.republish_every,
            prune_seconds=options.prune_every,
        )
    queues = f"{app.conf.task_default_queue},{options.queue}"  # the project's own, too
    # Without it beat would keep a file, in which there are no tasks of ours.
    scheduler = " -S django" if apps.is_installed("django_celery_beat") else ""
    status = DispatchStatus(
        name="Celery",
        sweep_seconds=options.republish_every,
        prune_seconds=options.prune_every,
        start_worker=f"celery -A {app.main} worker -Q {queues}",
        start_beat=f"celery -A {app.main} beat{scheduler}",
        queue=options.queue,
        broker="of the settings",
        failure_count=circuit.failure_count,
        is_pausing=circuit.is_open(),
    )
    try:
        with connect_broker(app, options.wake_timeout) as connection:
            status = replace(status, broker=connection.as_uri())
            if not ask:
                return status
            connection.ensure_connection(max_retries=1, timeout=options.wake_timeout)
            return replace(
                status,
                waiting_count=_length(connection.channel(), options.queue),
                worker_count=_count_workers(app, connection, options.queue),
            )
    except Exception as error:
        # Of any kind, where URL, password or virtual host is wrong.
        return replace(status, error=f"{type(error).__name__}: {error}")


def _count_workers(app: Any, connection: Any, queue: str) -> int | None:
    if not app.conf.worker_enable_remote_control:
        return None  # they answer nobody
    inspect = app.control.inspect(timeout=WORKER_SECONDS, connection=connection)
    replies = inspect.active_queues() or {}
    return sum(
        any(known["name"] == queue for known in queues) for queues in replies.values()
    )
