"""What the sending processes run, on either side: `python send.py SIDE WHAT …`.

Imports nothing of this repository but the side's own package, so that the peer's virtual
environment can run it, too. Writes one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

PAD = "x" * 40
SLOW = 0.002
"""Seconds from which a send is told of one by one."""


def payload(number: int, *, sent_at: int | None = None) -> dict[str, Any]:
    """Return an event's data: about a hundred bytes on the wire."""
    return {"n": number, "t": sent_at or time.time_ns(), "pad": PAD}


def sender(side: str) -> Callable[[str, dict[str, Any]], object]:
    """Return the function that sends one event in a transaction of its own."""
    if side == "peer":
        from django_eventstream import send_event as send_peer

        return lambda channel, data: send_peer(channel, "message", data)
    if side == "floor":
        from eventstream.models import Event

        rows = Event.objects
        return lambda channel, data: rows.create(
            partition=0, channel=channel, type="message", data=json.dumps(data)
        )
    from eventstream import send_event

    return lambda channel, data: send_event(channel, "message", data)


def _warm_up(send: Callable[[str, dict[str, Any]], object]) -> None:
    """Let each side connect, and import what it publishes with: it does so once."""
    for number in range(20):
        send("warm", payload(number))
    time.sleep(0.5)


def run_single(side: str, channel: str, count: int, first: int) -> dict[str, Any]:
    """Send as fast as it goes, from a process that has sent before."""
    send = sender(side)
    _warm_up(send)
    started, cpu = time.perf_counter(), time.process_time()
    for number in range(first, first + count):
        send(channel, payload(number))
    seconds = time.perf_counter() - started
    return {"count": count, "seconds": seconds, "cpu": time.process_time() - cpu}


def run_spread(side: str, name: str, channels: int, count: int) -> dict[str, Any]:
    """Send as fast as it goes, to channels in turn."""
    send = sender(side)
    send(f"{name}-0", payload(0))
    started = time.perf_counter()
    for number in range(count):
        send(f"{name}-{number * 7919 % channels}", payload(number))
    return {"count": count, "seconds": time.perf_counter() - started}


def run_until(side: str, channel: str, seconds: float, held: float) -> dict[str, Any]:
    """Send for so long, each in a transaction held open for some seconds.

    Says of each that took longer than `SLOW` when it began and ended, by time.monotonic().
    """
    from django.db import transaction

    send = sender(side)
    send("warm", payload(1))
    count, pauses = 0, []
    before = time.monotonic()
    deadline = before + seconds
    while before < deadline:
        if held:
            with transaction.atomic():
                send(channel, payload(count))
                time.sleep(held)
        else:
            send(channel, payload(count))
        after = time.monotonic()
        if after - before > SLOW:
            pauses.append((before, after))
        before = after
        count += 1
    return {"count": count, "seconds": seconds, "pauses": pauses}


def run_crossed(side: str, name: str, seconds: float, held: float) -> dict[str, Any]:
    """Send to two channels in one transaction, in an order that depends on the process."""
    from django.db import DatabaseError, transaction

    send = sender(side)
    channels = ["cross-a", "cross-b"]
    if int(name) % 2:
        channels.reverse()
    deadline, count, failed = time.perf_counter() + seconds, 0, 0
    while time.perf_counter() < deadline:
        try:
            with transaction.atomic():
                send(channels[0], payload(count))
                time.sleep(held)
                send(channels[1], payload(count))
            count += 2
        except DatabaseError:
            failed += 1
    return {"count": count, "seconds": seconds, "failed": failed}


def run_rate(
    side: str, channel: str, count: int, rate: float, first: int = 1
) -> dict[str, Any]:
    """Send at a steady rate, from a process that has sent before.

    Says when each event's row was committed.
    """
    from django.db import transaction

    send = sender(side)
    _warm_up(send)
    committed: list[tuple[int, int]] = []
    if side == "peer":
        from django_eventstream.storage import DjangoModelStorage

        append = DjangoModelStorage.append_event

        def append_event(self: Any, *arguments: Any) -> Any:
            event = append(self, *arguments)
            committed.append((len(committed) + 1, time.time_ns()))
            return event

        DjangoModelStorage.append_event = append_event
    started = time.perf_counter()
    for number in range(first, first + count):
        delay = started + (number - first) / rate - time.perf_counter()
        if delay > 0:
            time.sleep(delay)
        data = payload(number)
        if side == "peer":
            send(channel, data)
        else:
            with transaction.atomic():
                # The first to be called on commit: before the wake-up.
                transaction.on_commit(
                    lambda n=number: committed.append((n, time.time_ns()))  # type: ignore[misc]
                )
                send(channel, data)
    seconds = time.perf_counter() - started
    return {"count": count, "seconds": seconds, "committed": committed}


def run_bulk(
    side: str, channels: int, count: int, size: int, name: str = "bulk"
) -> dict[str, Any]:
    """Send in bulk, to channels in turn; to one, its events are numbered from 1."""
    names = [name] if channels == 1 else [f"{name}-{n}" for n in range(channels)]
    started, cpu = time.perf_counter(), time.process_time()
    for first in range(1, count + 1, size):
        numbers = range(first, min(first + size, count + 1))
        pairs = [(names[n % channels], payload(n)) for n in numbers]
        if side == "floor":
            from eventstream.models import Event

            Event.objects.bulk_create(
                [
                    Event(partition=0, channel=c, type="message", data=json.dumps(d))
                    for c, d in pairs
                ]
            )
        elif side == "ours":
            from eventstream import EventSpec, send_events

            send_events(EventSpec(c, "message", d) for c, d in pairs)
        else:
            _fill_peer(pairs)
    seconds = time.perf_counter() - started
    return {"count": count, "seconds": seconds, "cpu": time.process_time() - cpu}


def _fill_peer(pairs: list[tuple[str, dict[str, Any]]]) -> None:
    """Write events to the peer's log, which has no bulk; each one's number is its id."""
    from django_eventstream.models import Event, EventCounter

    def row(channel: str, data: dict[str, Any]) -> Any:
        text = json.dumps(json.dumps(data))  # its storage encodes the encoded text
        return Event(channel=channel, type="message", data=text, eid=data["n"])

    Event.objects.bulk_create([row(*pair) for pair in pairs])
    for channel, last in {channel: data["n"] for channel, data in pairs}.items():
        EventCounter.objects.update_or_create(name=channel, defaults={"value": last})


def main() -> None:
    side, what, *arguments = sys.argv[1:]
    import django

    django.setup()
    if what == "single":
        result = run_single(side, arguments[0], int(arguments[1]), 1)
    elif what == "spread":
        result = run_spread(side, arguments[0], int(arguments[1]), int(arguments[2]))
    elif what == "until":
        result = run_until(side, arguments[0], float(arguments[1]), float(arguments[2]))
    elif what == "crossed":
        result = run_crossed(
            side, arguments[0], float(arguments[1]), float(arguments[2])
        )
    elif what == "rate":
        numbers = [int(argument) for argument in arguments[1:]]
        result = run_rate(side, arguments[0], *numbers)
    else:
        channels, count, size, *name = arguments
        result = run_bulk(side, int(channels), int(count), int(size), *name)
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    if side == "peer":
        # It publishes from threads that outlive this function, and do not end.
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join(5)
        os._exit(0)


if __name__ == "__main__":
    main()
