"""Which cases there are, and what each aims at."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tests.bench.cases import (
    Bench,
    Figures,
    catch_up,
    fan_out,
    idle,
    latency,
    latency_of_users,
    prune,
    relay,
    return_at_once,
    send_bulk,
    send_held,
    send_single,
)
from tests.bench.growth import (
    growth_by_backlog,
    growth_by_channels,
    growth_by_log,
)
from tests.bench.holding import growth_by_clients, proxy_restart, slow_client


class Case(NamedTuple):
    """A row of the table.

    Attributes:
        name: Its key in the results.
        title: What the page says.
        unit: Of its value.
        sides: Who takes part.
        run: One round of one side.
        is_low_good: Less is better.
        is_once: One round says it, or takes too long for more.
        is_long: A quick run leaves it out: for whoever has the time, or asks for it.
        without_peer: Why the peer takes no part.
        to_floor, to_peer: The least ratio that is aimed at (the most, where low is good).
    """

    name: str
    title: str
    unit: str
    sides: tuple[str, ...]
    run: Callable[[Bench, str], Figures]
    is_low_good: bool = False
    to_floor: float | None = None
    to_peer: float | None = None
    is_once: bool = False
    is_long: bool = False
    without_peer: str = ""


ALL = ("floor", "peer", "ours")
CASES = [
    Case("send", "send_event, one process, a transaction each", "events/s", ALL, send_single, to_floor=0.8, to_peer=3),
    Case("send-held", "send_event, 4 processes, one channel, transactions of 5 ms", "events/s", ("peer", "ours"), send_held, to_peer=4),
    Case("send-bulk", "send_events, 1,000 a call", "events/s", ("floor", "ours"), send_bulk, to_floor=0.7, without_peer="it has no call for many events; a thousand are a thousand transactions"),
    Case("latency-direct", "commit to client, direct, 100 events/s", "ms (p50)", ("peer", "ours"), partial(latency, pushpin=False), is_low_good=True, to_peer=1),
    Case("latency-pushpin", "commit to client, Pushpin, 100 events/s", "ms (p50)", ("peer", "ours"), partial(latency, pushpin=True), is_low_good=True, to_peer=1),
    Case("latency-users", "send to client, Pushpin, 300 readers who all differ, 1 event/s", "ms (p99)", ("peer", "ours"), latency_of_users, is_low_good=True, to_peer=1, is_once=True),
    Case("relay-pushpin-one", "confirmed, one channel, Pushpin", "events/s", ("floor", "ours"), partial(relay, channels="one", pushpin=True), to_floor=0.5, without_peer="it has no outbox: what is not published by the sender is not published"),
    Case("relay-pushpin-many", "confirmed, many channels, Pushpin", "events/s", ("floor", "ours"), partial(relay, channels="many", pushpin=True), to_floor=0.5),
    Case("relay-bus-one", "confirmed, one channel, bus", "events/s", ("ours",), partial(relay, channels="one", pushpin=False)),
    Case("relay-bus-many", "confirmed, many channels, bus", "events/s", ("ours",), partial(relay, channels="many", pushpin=False)),
    Case("fan-out-pushpin", "fan-out, Pushpin", "deliveries/s", ALL, partial(fan_out, pushpin=True), to_floor=0.8, to_peer=1.5),
    Case("fan-out-direct", "fan-out, direct", "deliveries/s", ALL, partial(fan_out, pushpin=False), to_floor=0.5, to_peer=5),
    Case("idle", "idle streams, direct", "bytes a stream", ("floor", "ours"), idle, is_low_good=True, to_floor=1.2, is_once=True, without_peer="it has a database connection and a thread for each stream: with PostgreSQL's default of 100 connections the hundredth client takes the last, and sending fails as well"),
    Case("catch-up-direct", "catch-up, one client, direct", "events/s", ALL, partial(catch_up, pushpin=False, clients=1), to_floor=0.5, to_peer=1),
    Case("catch-up-pushpin", "catch-up, one client, Pushpin", "events/s", ALL, partial(catch_up, pushpin=True, clients=1), to_floor=0.5, to_peer=1),
    Case("catch-up-crowd", "catch-up, 100 clients at once, Pushpin", "events/s", ALL, partial(catch_up, pushpin=True, clients=100), to_floor=0.5, to_peer=1),
    Case("return", "all return at once, each 100 behind, new web process", "s", ("ours",), return_at_once, is_low_good=True, without_peer="as above, at a hundred clients"),
    Case("fan-out-2", "fan-out, direct, two web processes", "deliveries/s", ("ours",), partial(fan_out, pushpin=False, server="uvicorn-2"), is_once=True, is_long=True),
    Case("fan-out-granian", "fan-out, direct, granian", "deliveries/s", ("ours",), partial(fan_out, pushpin=False, server="granian"), is_once=True, is_long=True),
    Case("proxy-restart", "Pushpin restarted under its clients: until all have all", "s", ("ours",), proxy_restart, is_low_good=True, is_once=True),
    Case("slow-client", "growth of the web process while a client does not read", "MiB", ("ours",), slow_client, is_low_good=True, is_once=True, is_long=True),
    Case("growth-clients", "median latency, most clients by a tenth of them", "times", ("ours",), growth_by_clients, is_low_good=True, is_once=True, is_long=True),
    Case("growth-channels", "median latency, 100,000 channels by 10", "times", ("ours",), growth_by_channels, is_low_good=True, is_once=True, is_long=True),
    Case("growth-log", "median latency, 10,000,000 events in the log by 1,000", "times", ("ours",), growth_by_log, is_low_good=True, is_once=True, is_long=True),
    Case("growth-backlog", "median latency beside a backlog, 100,000 events by 1,000", "times", ("ours",), growth_by_backlog, is_low_good=True, is_once=True, is_long=True),
    Case("prune", "prune while sending", "rows/s", ("floor", "ours"), prune, to_floor=0.7, without_peer="it deletes as it sends, row by row"),
]  # fmt: skip
