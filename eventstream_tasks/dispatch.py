"""Wake a worker: bounded in time, coalesced, and never an error to the caller.

Celery's default `apply_async` blocks for more than 45 s when the broker hangs, and a limit
on each socket operation bounds none of looking up a name, connecting in several steps, and
a broker that answers all of them slowly. These wake-ups have threads and connections of
their own: the caller stops waiting after half a second, and none is tried for 5 s after a
failure; the sweep delivers meanwhile. The project's Celery settings stay as they are.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import replace
from functools import cache, partial
from typing import Any

import redis
from celery import current_app
from kombu.exceptions import OperationalError as BrokerError

from eventstream import conf as core_conf
from eventstream import instruments, tracing
from eventstream.dispatch import Dispatcher, DispatchStatus
from eventstream.relay import NO_TARGET, WakeFlag
from eventstream.rows import OutboxRow
from eventstream.targets import get_targets
from eventstream.targets.bus import connect
from eventstream_tasks import conf

logger = logging.getLogger(__name__)


class _Circuit:
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


class _Connections(threading.local):
    """This thread's own connections; remade after a fork."""

    def __init__(self) -> None:
        self.pid = 0
        self.producer: Any = None
        self.flags: redis.Redis | None = None

    def check_process(self) -> None:
        if self.pid != os.getpid():
            # Not closed: the sockets are the parent's.
            self.pid, self.producer, self.flags = os.getpid(), None, None


THREADS = 8
"""How many of a process' callers can talk with the broker at once; others wait in turn."""


@cache
def _get_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="eventstream-wake")


# A child has none of its parent's threads.
os.register_at_fork(after_in_child=_get_threads.cache_clear)


_QUEUED, _RELAYING = b"queued", b"relaying"

circuit = _Circuit()
_connections = _Connections()


def wake_flag(using: str, partition: int, target: str) -> str:
    """Return the Redis key that says that a wake-up is under way."""
    prefix = core_conf.get_options().redis_prefix
    return f"{prefix}wake:{using}:{partition}:{target}"


class TaskFlag(WakeFlag):
    """The flag that a task stands for: raised by whoever enqueued it.

    Raised again by its relay, it has another value: a task that finds the lease taken
    lowers the flag of a message, never that of the relay which is at work.
    """

    def __init__(self, using: str, partition: int, target: str) -> None:
        self._key = wake_flag(using, partition, target)
        self._value = _QUEUED

    def lower(self) -> None:
        flags = _get_flags()
        if flags is not None and self._value:
            try:
                if flags.get(self._key) == self._value:
                    flags.delete(self._key)
                self._value = b""
            except redis.RedisError as error:
                logger.warning("Cannot clear a wake-up flag, it expires: %s", error)

    def keep_up(self) -> None:
        flags = _get_flags()
        if flags is not None:
            lifetime = int(core_conf.get_options().lease_seconds) or 1
            try:
                flags.set(self._key, _RELAYING, ex=lifetime)
                self._value = _RELAYING
            except redis.RedisError as error:
                logger.warning("Cannot raise a wake-up flag: %s", error)


def _drop_connections_on_error(call: Callable[[], None]) -> None:
    try:
        call()
    except Exception:
        _connections.producer = None
        _connections.flags = None
        raise


class CeleryDispatcher(Dispatcher):
    """Enqueues `eventstream.publish`, one task for each partition and target."""

    def wake(self, using: str, partitions: Collection[int]) -> None:
        if circuit.is_open():
            instruments.active.wake_up("skipped")
            return
        names = get_targets() or [NO_TARGET]
        wanted = [(using, p, name) for p in sorted(partitions) for name in names]
        self._attempt(self._wake, wanted)

    def publish_unstored(self, rows: list[OutboxRow]) -> None:
        payload = [list(row) for row in rows]
        for name in get_targets():
            # Tried even with the circuit open: nothing else will publish these.
            self._attempt(self._send, "eventstream.publish_unstored", (name, payload))

    def status(self, *, ask: bool = False) -> DispatchStatus:
        return broker_status(ask=ask)

    def _attempt(self, call: Callable[..., None], *arguments: Any) -> None:
        """Call with the app and these, and wait for no longer than `wake_timeout`."""
        app: Any = current_app._get_current_object()  # type: ignore[attr-defined]
        call = partial(_drop_connections_on_error, partial(call, app, *arguments))
        timeout = conf.get_options().wake_timeout
        try:
            if app.conf.task_always_eager:
                call()  # the task itself runs: on the caller's database connection
                return
            waiting = _get_threads().submit(copy_context().run, call)
            try:
                waiting.result(timeout)
            finally:
                waiting.cancel()
        except TimeoutError as error:
            circuit.record_failure(
                TimeoutError(str(error) or f"no answer within {timeout} s")
            )
        except Exception as error:
            if not isinstance(error, BrokerError | redis.RedisError | OSError):
                logger.exception("Unexpected error while waking a worker")
            circuit.record_failure(error)

    def _wake(self, app: Any, wanted: list[tuple[str, int, str]]) -> None:
        """Raise the flags in one round trip; enqueue a task for each that was down."""
        flags = _get_flags()
        if flags is not None:
            raising = flags.pipeline(transaction=False)
            for each in wanted:
                lifetime = conf.get_options().wake_lifetime
                raising.set(wake_flag(*each), _QUEUED, nx=True, ex=lifetime)
            was_down = raising.execute()
            raised = [each for each, down in zip(wanted, was_down, strict=True) if down]
            for _ in range(len(wanted) - len(raised)):
                # A task that has not read yet is on its way.
                instruments.active.wake_up("coalesced")
            wanted = raised
        for number, each in enumerate(wanted):
            try:
                self._send(app, "eventstream.publish", each)
            except BaseException:
                if flags is not None:
                    with suppress(redis.RedisError):  # they expire
                        flags.delete(*[wake_flag(*each) for each in wanted[number:]])
                raise
            instruments.active.wake_up("sent")

    def _send(self, app: Any, name: str, arguments: tuple[object, ...]) -> None:
        task = app.tasks[name]
        if app.conf.task_always_eager:
            task.apply(arguments)
            return
        task.apply_async(
            arguments,
            argsrepr="(…)",  # else monitors are shown the events of best-effort channels
            producer=_get_producer(app),
            retry=False,
            queue=conf.get_options().queue,
            headers=tracing.active.headers(),
        )


def connect_broker(app: Any, timeout: float) -> Any:
    """Return a connection to the broker that gives up after so many seconds, once."""
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


def _get_producer(app: Any) -> Any:
    _connections.check_process()
    if _connections.producer is None:
        connection = connect_broker(app, conf.get_options().wake_timeout)
        _connections.producer = app.amqp.Producer(connection, auto_declare=False)
    return _connections.producer


def _get_flags() -> redis.Redis | None:
    """Return where wake-ups are coalesced: the bus, else a Redis broker, else nowhere."""
    _connections.check_process()
    if _connections.flags is None:
        arguments = core_conf.redis_arguments()
        if arguments is None:
            broker = str(
                current_app.conf.broker_write_url or current_app.conf.broker_url
            )
            if not broker.startswith(("redis://", "rediss://")):
                return None
            arguments = {"url": broker}
        timeout = conf.get_options().wake_timeout
        _connections.flags = connect(arguments, timeout=timeout)
    return _connections.flags


WORKER_SECONDS = 1.0
"""How long workers have to say that they are there."""


def broker_status(*, ask: bool) -> DispatchStatus:
    """Return what is known of broker and workers; asking takes about two seconds."""
    options = conf.get_options()
    app = current_app
    status = DispatchStatus(
        name="Celery",
        sweep_seconds=options.republish_every,
        prune_seconds=options.prune_every,
        start_worker=f"celery -A {app.main} worker -Q celery,{options.queue}",
        start_beat=f"celery -A {app.main} beat",
        queue=options.queue,
        failure_count=circuit.failure_count,
        is_pausing=circuit.is_open(),
    )
    connection = connect_broker(app, options.wake_timeout)
    with connection:
        status = replace(status, broker=connection.as_uri())
        if not ask:
            return status
        try:
            connection.ensure_connection(max_retries=1, timeout=options.wake_timeout)
            waiting = _count_waiting(connection, options.queue)
            workers = _count_workers(app, connection, options.queue)
        except (BrokerError, redis.RedisError, OSError) as error:
            return replace(status, error=f"{type(error).__name__}: {error}")
    return replace(status, waiting_count=waiting, worker_count=workers)


def _count_waiting(connection: Any, queue: str) -> int | None:
    channel = connection.default_channel
    try:
        # Redis' own count: a declaration would create the queue where there is none.
        return int(channel.client.llen(queue))
    except AttributeError:  # another transport
        return None


def _count_workers(app: Any, connection: Any, queue: str) -> int:
    inspect = app.control.inspect(timeout=WORKER_SECONDS, connection=connection)
    replies = inspect.active_queues() or {}
    return sum(
        any(known["name"] == queue for known in queues) for queues in replies.values()
    )
