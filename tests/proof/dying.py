"""`python -m tests.proof.dying WORK POINT`: do one piece of work, and die at a named point of it.

By SIGKILL: nothing is cleaned up, no transaction is ended, no connection is closed.
Without arguments, do each that comes by standard input, in a process of its own.
"""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import django


class Point(NamedTuple):
    """Where to die.

    Attributes:
        work: What is being done, and by whom: "send", "relay" and "prune" are done by a
            process of their own; "wake", "worker", "direct" and "proxied" by a sender, a
            worker and the web process of an installation.
        module: Where the function is.
        path: Its name, or Class.name.
        is_after: After it returns, rather than before it begins.
        call: At which call of it.
    """

    work: str
    module: str
    path: str
    is_after: bool
    call: int = 1


_RELAY = "eventstream.relay"
_CURSORS = "eventstream.cursors"
_STORAGE = "eventstream.storage"
_DISPATCH = "eventstream_tasks.dispatch"
_TASKS = "eventstream_tasks.tasks"
_TAILS = "eventstream.hub.tails"
_CHANNELS = "eventstream.hub.channels"
_SUBSCRIBERS = "eventstream.hub.subscribers"

POINTS = {
    "sender, row written, not committed": Point(
        "send", _STORAGE, "DjangoModelStorage.append", True
    ),
    "sender, row with a key written, not committed": Point(
        "send", _STORAGE, "DjangoModelStorage.append_once", True
    ),
    "sender, committed, nobody woken": Point(
        "send", "eventstream.api", "get_dispatcher", False
    ),
    "relay, before the lease": Point("relay", _CURSORS, "Lease.take", False),
    "relay, leased": Point("relay", _CURSORS, "Lease.take", True),
    "relay, ids given": Point("relay", _STORAGE, "DjangoModelStorage._tell", False),
    "relay, ids committed": Point(
        "relay", _STORAGE, "DjangoModelStorage.number_and_read", True
    ),
    "relay, about to publish": Point("relay", _RELAY, "_Relay._attempt", False),
    "relay, published, not confirmed": Point("relay", _RELAY, "_Relay._attempt", True),
    "relay, confirmed": Point("relay", _CURSORS, "Lease.confirm", True),
    "relay, second batch published": Point(
        "relay", _RELAY, "_Relay._attempt", True, call=2
    ),
    "relay, next ids committed while it publishes": Point(
        "relay", _STORAGE, "DjangoModelStorage.number_and_read", True, call=2
    ),
    "relay, about to release": Point("relay", _CURSORS, "Lease.release", False),
    "relay, released, not looked again": Point(
        "relay", _CURSORS, "Lease.release", True
    ),
    "prune, first batch deleted": Point(
        "prune", "eventstream.pruning", "Pruning._delete", True
    ),
    "dispatcher, flag set, nothing enqueued": Point("wake", _DISPATCH, "_send", False),
    "dispatcher, enqueued": Point("wake", _DISPATCH, "_send", True),
    "worker, task taken": Point("worker", _TASKS, "relay_partition", False),
    "worker, flag lowered, not looked again": Point(
        "worker", _DISPATCH, "TaskFlag.lower", True
    ),
    "worker, published, not confirmed": Point(
        "worker", _RELAY, "_Relay._attempt", True
    ),
    "worker, relayed, task not over": Point("worker", _TASKS, "relay_partition", True),
    "hub, event come by the bus, not taken": Point(
        "direct", _CHANNELS, "Channels.receive", False
    ),
    "hub, event taken, nobody woken": Point(
        "direct", _TAILS, "ChannelState.wake", False
    ),
    "hub, position moved, not written": Point(
        "direct", _SUBSCRIBERS, "Subscriber._encode", True
    ),
    "hold, page read, not answered": Point(
        "proxied", "eventstream.hold", "read_page", True, call=4
    ),
    "hold, next link asked, nothing read": Point(
        "proxied", "eventstream.hold", "read_link", False
    ),
}
"""The call of `read_page` is that of a next link: three readers are there by then."""


def die_at(point: Point) -> None:
    """Wrap the point's function so that this process dies there."""
    owner: Any = importlib.import_module(point.module)
    *outer, name = point.path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    original: Callable[..., Any] = getattr(owner, name)
    calls = itertools.count(1)  # threads may call it at the same time

    @functools.wraps(original)
    def dying(*args: Any, **kwargs: Any) -> Any:
        number = next(calls)
        if number == point.call and not point.is_after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = original(*args, **kwargs)
        if number == point.call:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, dying)


def die_where_told() -> None:
    """Do so in a web process or a worker, if the environment names a point: ES_DIE."""
    point = POINTS.get(os.environ.get("ES_DIE", ""))
    if point is not None:
        die_at(point)


def do(work: str, name: str, *rest: str) -> None:
    """Do the work, in the database of the environment."""
    from django.conf import settings
    from django.db import transaction

    from eventstream import EventSpec, jobs, pruning, send_events
    from eventstream.relay import relay_all

    if work != "wake":
        settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    settings.EVENTSTREAM_BATCH_SIZE = 3
    settings.EVENTSTREAM_LEASE_SECONDS = 1.0
    if name:
        die_at(POINTS[name])
    if work in ("send", "wake"):
        with transaction.atomic():
            channel = os.environ.get("ES_CHANNEL", "orders")
            is_keyed = bool(os.environ.get("ES_KEYED"))
            send_events(
                EventSpec(
                    channel, "message", text, idempotency_key=text if is_keyed else None
                )
                for text in rest
            )
    elif work == "relay":
        relay_all("default")
    elif work == "prune":
        pruning.FIRST_BATCH = 1
        jobs.prune("default", lease_seconds=1)
    elif work == "sweep":
        jobs.SWEEP_LEASE = 1.0
        print(jobs.republish("default"))


def serve() -> None:
    """Do what each line of the input says, a JSON array; write what it printed, and how it ended.

    In a child that has everything imported, which takes far longer than the work.
    """
    for line in iter(sys.stdin.readline, ""):
        if os.fork() == 0:
            do(*json.loads(line))
            return
        _, status = os.wait()
        print("exit code", os.waitstatus_to_exitcode(status), flush=True)


def main() -> None:
    django.setup()
    from tests import celery  # noqa: F401  makes it the current app

    if sys.argv[1:]:
        do(*sys.argv[1:])
    else:
        # What `do` imports: before the fork.
        from eventstream import jobs, pruning, relay  # noqa: F401

        serve()


if __name__ == "__main__":
    main()
