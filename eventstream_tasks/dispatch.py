"""Wake a worker: coalesced, and never an error or a wait to the sender.

On commit a sender hands over to a thread of its process; see waking.py. Nothing is tried
for 5 s after a failure; the sweep delivers meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context, copy_context
from functools import partial
from typing import Any

import redis
from celery import current_app, signals
from redis.client import PubSub

from eventstream import conf as core_conf
from eventstream import instruments, tracing
from eventstream.cursors import LIVELY
from eventstream.dispatch import Dispatcher, DispatchStatus
from eventstream.relay import NO_TARGET, WakeFlag
from eventstream.rows import OutboxRow
from eventstream.targets import get_targets
from eventstream_tasks import broker, conf
from eventstream_tasks.waking import END_WAIT, Message, Send, Waker, Wanted, get_waker

logger = logging.getLogger(__name__)

_QUEUED, _RELAYING = b"queued", b"relaying"

MOST_WATCHING = 0.5
"""Most seconds for which one task waits for what is sent next, again and again: what other
tasks of the project may have to wait for a worker at most. One that has more to do looks as
often whether any waits."""
LONGEST_TURN = 5.0
"""Seconds after which it ends whether or not any is seen to wait: of the project's own, those
that the worker has fetched ahead are not."""
BEGIN = 0.01
"""Seconds within which a task has begun if any worker is free."""


HIDDEN = "(…)"
"""What monitors are shown for arguments: those of best-effort channels are the events."""


def wake_flag(using: str, partition: int, target: str) -> str:
    """Return the Redis key that says that a wake-up is under way."""
    prefix = core_conf.get_options().redis_prefix
    return f"{prefix}wake:{using}:{partition}:{target}"


def wanted_topic() -> str:
    """Return the pub/sub channel that carries the flags of which something is wanted."""
    return f"{core_conf.get_options().redis_prefix}wanted"


def queued_topic() -> str:
    """Return the pub/sub channel that says that tasks have been enqueued."""
    return f"{core_conf.get_options().redis_prefix}queued"


class TaskFlag(WakeFlag):
    """The flag that a task stands for: raised by whoever enqueued it.

    Raised again by its relay, it has another value: a task that finds the lease taken
    lowers the flag of a message, never that of the relay which is at work.

    While it is raised and its relay watches, what is sent next takes no task. A message to
    one who watches may be lost: whoever lowers the flag looks again.
    """

    def __init__(
        self, using: str, partition: int, target: str, *, may_wait: bool = True
    ) -> None:
        self._wanted = (using, partition, target)
        self._key = wake_flag(*self._wanted)
        self._may_wait = may_wait
        self._value = _QUEUED
        self._is_out_of_reach = False
        self._watcher: Watcher | None = None
        self._watched_since = 0.0
        self._began = self._looked_at = time.monotonic()
        self._is_over = False

    def watch(self) -> None:
        messages = broker.connections.messages() if self._may_wait else None
        if messages is None or self._watcher is not None:
            return
        # Once for a task: what comes after its last look begins no other half a second.
        self._watched_since = self._watched_since or time.monotonic()
        if time.monotonic() < self._watched_since + MOST_WATCHING:
            self.keep_up()  # it has begun: others that wait need not make room for it
            if not self._is_out_of_reach:
                with self._no_failure():
                    self._watcher = Watcher(messages, self._key)

    def more_comes(self) -> bool:
        found = False
        if self._watcher is not None:
            self.keep_up()
            with self._no_failure():
                found = self._watcher.more_comes(self._watched_since + MOST_WATCHING)
        return found

    def has_watched(self) -> bool:
        """Say whether it has watched for as long as a task may."""
        since = self._watched_since
        return since > 0 and time.monotonic() >= since + MOST_WATCHING

    def is_over(self) -> bool:
        now = time.monotonic()
        is_due = self._may_wait and now >= self._looked_at + MOST_WATCHING
        if is_due and not self._is_over:
            self._looked_at = now
            self._is_over = now >= self._began + LONGEST_TURN
            if not (self._is_over or self._is_out_of_reach):
                with self._no_failure():
                    self._is_over = _others_wait()
        return self._is_over

    def hand_on(self) -> bool:
        # In no context: the trace of a busy channel's first event would never end.
        send = Context().run(_sending, _get_app())
        with _no_failure():
            _enqueue([self._wanted], lambda _: send, "handed-on")
            return True
        self._began, self._is_over = time.monotonic(), False
        return False

    @contextmanager
    def _no_failure(self) -> Iterator[None]:
        """Give up watching, if that fails: it is for speed only."""
        try:
            yield
        except broker.FAILURES as error:
            self._watcher = None
            broker.connections.drop()
            logger.warning("Cannot watch for what is sent next: %s", error)

    def lower(self) -> None:
        if self._watcher is not None:
            with self._no_failure():
                self._watcher.close()
            self._watcher = None
        flags = broker.connections.flags()
        if flags is not None and self._value:
            try:
                if flags.get(self._key) == self._value:
                    flags.delete(self._key)
                self._value = b""
            except redis.RedisError as error:
                logger.warning("Cannot clear a wake-up flag, it expires: %s", error)

    def keep_up(self) -> None:
        flags = broker.connections.flags()
        # A Redis that hangs holds up a relay once, not at each batch.
        if flags is not None and not self._is_out_of_reach:
            lifetime = int(core_conf.get_options().lease_seconds) or 1
            try:
                flags.set(self._key, _RELAYING, ex=lifetime)
                self._value = _RELAYING
            except redis.RedisError as error:
                self._is_out_of_reach = True
                logger.warning("Cannot raise a wake-up flag: %s", error)


class Watcher:
    """Hears of what is sent next, for a relay that has the lease and nothing to do.

    Raises:
        redis.RedisError: Redis is out of reach; so does each method.
    """

    def __init__(self, messages: PubSub, key: str) -> None:
        self._key = key.encode()
        self._messages = messages
        self._look_at = time.monotonic() + BEGIN
        topics = {wanted_topic(), queued_topic()}
        messages.subscribe(*topics)
        while topics:
            answer = messages.get_message(timeout=conf.get_options().wake_timeout)
            if answer is None:
                raise redis.TimeoutError("no answer to a subscription")
            if answer["type"] == "subscribe":
                topics.discard(answer["channel"].decode())

    def more_comes(self, until: float) -> bool:
        """Wait for the next, as long as no task waits for a worker.

        Args:
            until: By time.monotonic(), when to give up at the latest.
        """
        until = min(time.monotonic() + LIVELY, until)
        while (now := time.monotonic()) < until:
            if now >= self._look_at:
                if _others_wait():
                    return False
                self._look_at = now + LIVELY
            wait = min(until, self._look_at) - now
            message = self._messages.get_message(timeout=wait)
            if message is None or message["type"] != "message":
                continue  # it may have reconnected, and subscribed again
            if message["channel"] == queued_topic().encode():
                self._look_at = min(self._look_at, now + BEGIN)
            elif self._key in message["data"].split(b"\n"):
                return True
        return False

    def close(self) -> None:
        self._messages.unsubscribe()  # type: ignore[no-untyped-call]


def _others_wait() -> bool:
    """Say whether any task is seen to wait for this worker."""
    return _is_any_queued() or broker.tasks_wait()


def _is_any_queued() -> bool:
    """Say whether a relay's task has been enqueued that has not begun.

    One that the worker has fetched ahead as well, of which the broker knows nothing. One
    that has begun, and does not watch, may be taken for queued: it is about to end.
    """
    flags = broker.connections.flags()
    options = core_conf.get_options()
    keys = [
        wake_flag(using, partition, name)
        for using in options.databases
        for partition in range(options.partitions)
        for name in _target_names()
    ]
    return flags is None or _QUEUED in flags.mget(keys)


class CeleryDispatcher(Dispatcher):
    """Enqueues `eventstream.publish`, one task for each partition and target."""

    def wake(self, using: str, partitions: Collection[int]) -> None:
        if broker.circuit.is_open():
            instruments.active.wake_up("skipped")
            return
        waker = get_waker(_make_waker)
        new = [each for each in partitions if not waker.is_wanted(using, each)]
        for _ in range((len(partitions) - len(new)) * len(_target_names())):
            instruments.active.wake_up("coalesced")
        timeout = conf.get_options().wake_timeout
        if waker.delay() > timeout:
            broker.circuit.record_failure(TimeoutError(f"no answer within {timeout} s"))
        if not new:
            return
        app = _get_app()
        if app.conf.task_always_eager:  # itself runs, on the caller's connection
            _wake({(using, each): partial(_send, app) for each in new})
        else:
            with _no_failure():
                waker.want(using, new, _sending(app))

    def publish_unstored(self, rows: list[OutboxRow]) -> None:
        payload = [list(row) for row in rows]
        app = _get_app()
        waker = get_waker(_make_waker)
        for name in get_targets():
            # Tried even with the circuit open: nothing else will publish these.
            arguments = ("eventstream.publish_unstored", (name, payload))
            with _no_failure():
                if app.conf.task_always_eager:
                    _send(app, *arguments)
                else:
                    waker.post(_sending(app), *arguments)

    def status(self, *, ask: bool = False) -> DispatchStatus:
        return broker.broker_status(ask=ask)


def flush(timeout: float) -> bool:
    """Wait until all that this process wakes for has been tried; say whether it has.

    No sender needs to: the process does so when it ends. For tests, and for a process that
    is about to be frozen or to end by `os._exit`.
    """
    return get_waker(_make_waker).flush(timeout)


@signals.worker_process_shutdown.connect
def _flush_child(**_: object) -> None:
    flush(END_WAIT)  # it ends by os._exit


@contextmanager
def _no_failure() -> Iterator[None]:
    """Count a failure, which the sender never hears of, and open the circuit."""
    try:
        yield
    except Exception as error:
        broker.connections.drop()
        if not isinstance(error, broker.FAILURES):
            logger.exception("Unexpected error while waking a worker")
        broker.circuit.record_failure(error)


def _make_waker() -> Waker:
    return Waker(_wake, _post, _expire)


def _get_app() -> Any:
    return current_app._get_current_object()  # type: ignore[attr-defined]


def _target_names() -> Collection[str]:
    return get_targets() or [NO_TARGET]


def _wake(wanted: Wanted) -> None:
    """Raise the flags in one round trip; enqueue a task for each that was down.

    Whatever the circuit says: what was asked for before it opened is tried.
    """
    with _no_failure():
        names = _target_names()
        raised = _enqueue(
            [(*pair, name) for pair in sorted(wanted) for name in names],
            lambda each: wanted[each[:2]],
            "sent",
        )
        for _ in range(raised):  # a task that has not read yet is on its way
            instruments.active.wake_up("coalesced")


def _enqueue(
    wanted: list[tuple[str, int, str]],
    sending: Callable[[tuple[str, int, str]], Send],
    outcome: str,
) -> int:
    """Enqueue a task for each whose flag is down; return how many were up."""
    lowered = _raise_flags(wanted)
    for number, each in enumerate(lowered):
        try:
            sending(each)("eventstream.publish", each)
        except BaseException:
            _lower_flags(lowered[number:])
            raise
        instruments.active.wake_up(outcome)
    flags = broker.connections.flags()
    if lowered and flags is not None:
        flags.publish(queued_topic(), b"")  # relays that watch make room
    return len(wanted) - len(lowered)


def _raise_flags(wanted: list[tuple[str, int, str]]) -> list[tuple[str, int, str]]:
    """Raise these, and return those that were down: all, where there are no flags."""
    flags = broker.connections.flags()
    if flags is None:
        return wanted
    lifetime = conf.get_options().wake_lifetime
    raising = flags.pipeline(transaction=False)
    for each in wanted:
        raising.set(wake_flag(*each), _QUEUED, nx=True, ex=lifetime)
    raising.publish(wanted_topic(), "\n".join(wake_flag(*each) for each in wanted))
    try:
        *was_down, _ = raising.execute()
    except redis.RedisError as error:
        if not broker.connections.do_without_flags():
            raise
        logger.warning("Wake-ups are not coalesced, the bus is away: %s", error)
        return wanted
    return [each for each, is_down in zip(wanted, was_down, strict=True) if is_down]


def _lower_flags(wanted: list[tuple[str, int, str]]) -> None:
    flags = broker.connections.flags()
    if flags is not None:
        with suppress(redis.RedisError):  # they expire
            flags.delete(*[wake_flag(*each) for each in wanted])


def _post(message: Message) -> None:
    with _no_failure():
        message.send(message.name, message.arguments)


def _expire() -> None:
    timeout = conf.get_options().wake_timeout
    broker.circuit.record_failure(TimeoutError(f"no answer within {timeout} s"))


def _sending(app: Any) -> Send:
    """Return what sends from the thread as from here: the trace, for instance, is this one."""
    context = copy_context()
    return lambda name, arguments: context.run(_send, app, name, arguments)


def _send(app: Any, name: str, arguments: tuple[object, ...]) -> None:
    task = app.tasks[name]
    if app.conf.task_always_eager:
        task.apply(arguments)
        return
    task.apply_async(
        arguments,
        argsrepr=HIDDEN,
        producer=broker.connections.producer(app),
        retry=False,
        queue=conf.get_options().queue,
        headers=tracing.active.headers(),
    )
