"""What is measured. A case runs one round of one side and returns its figures."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import psycopg

from tests.bench.sides import Ours, Peer, cpu_seconds, load, memory_bytes
from tests.support.postgres import Postgres
from tests.support.processes import Process, free_port, is_listening, wait_for
from tests.support.pushpin import Pushpin
from tests.support.stack import Stack

Figures = dict[str, Any]
FAULTS = ("missing", "twice", "disorder", "resets", "errors")
WARM_UPS = 3
"""Catch-ups of another channel before the one that is measured."""


class Scale(NamedTuple):
    """How much of everything; the quick run has less."""

    sends: int
    seconds: float
    bulk: int
    clients: int
    events: int
    relayed: int
    channels: int
    streams: int
    backlog: int
    pruned: int


FULL = Scale(5000, 8, 50_000, 1000, 1000, 100_000, 20_000, 5000, 10_000, 1_000_000)
# No less: with fewer clients the sender limits fan-out, with fewer events a catch-up is
# the opening of its stream.
QUICK = Scale(1000, 2, 10_000, 500, 300, 20_000, 5_000, 1000, 5_000, 300_000)


class Bench:
    """The servers of a run, and what a case may ask for."""

    def __init__(self, postgres: Postgres, peer_python: Path, scale: Scale) -> None:
        self.postgres = postgres
        self.peer_python = peer_python
        self.scale = scale
        self.is_quick = scale == QUICK
        # Migrated once: the databases of the cases are copies.
        self._template, self._peer_template = "bench_template", "bench_template_peer"
        url = postgres.create_database(self._template)
        Stack(database_url=url, with_valkey=False).close()
        Peer.migrate(peer_python, postgres.create_database(self._peer_template))

    @contextmanager
    def ours(self, *, pushpin: bool = False, **settings: Any) -> Iterator[Ours]:
        side = Ours(
            self.postgres,
            with_pushpin=pushpin,
            template=self._template,
            settings=settings,
        )
        try:
            yield side
        finally:
            side.stop()
            side.close()

    @contextmanager
    def peer(self, *, pushpin: bool = False) -> Iterator[Peer]:
        side = Peer(
            self.postgres,
            self.peer_python,
            with_pushpin=pushpin,
            with_redis=not pushpin,
            template=self._peer_template,
        )
        try:
            yield side
        finally:
            side.stop()
            side.close()

    @contextmanager
    def side(self, name: str, *, pushpin: bool = False) -> Iterator[Ours | Peer]:
        if name == "peer":
            with self.peer(pushpin=pushpin) as peer:
                yield peer
        else:
            with self.ours(pushpin=pushpin) as ours:
                yield ours


def _spent(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: round(after[name] - before.get(name, 0), 2) for name in after}


def _rate(result: Figures) -> float:
    return float(result["count"] / result["seconds"])


# --- sending


def send_single(bench: Bench, side: str) -> Figures:
    """One process, a transaction each; the worker is at work meanwhile."""
    with bench.side(side) as found:
        if side == "ours":
            found.start_worker()
            found.send("single", "warm", 50)
        before = found.cpu()
        result = found.send("single", "orders", bench.scale.sends, side=side)
        spent = _spent(before, found.cpu())
        return {"value": _rate(result), "sender_cpu": result["cpu"], "cpu": spent}


def send_held(bench: Bench, side: str) -> Figures:
    """Four processes on one channel, transactions held for 5 ms."""
    with bench.side(side) as found:
        if side == "ours":
            found.start_worker()
        else:
            # Its counters: where four processes make one at once, three end with an error.
            found.send("single", "orders", 1)
        senders = [
            found.start_send("until", "orders", bench.scale.seconds, 0.005)
            for _ in range(4)
        ]
        results = [found.collect(sender) for sender in senders]
        crossed = [
            found.start_send("crossed", number, bench.scale.seconds, 0.002)
            for number in range(4)
        ]
        failed = sum(found.collect(sender)["failed"] for sender in crossed)
        return {"value": sum(map(_rate, results)), "deadlocks": failed}


def send_bulk(bench: Bench, side: str) -> Figures:
    """A thousand events a call."""
    with bench.ours() as found:
        result = found.send("bulk", 1, bench.scale.bulk, 1000, side=side)
        return {"value": _rate(result), "sender_cpu": result["cpu"]}


# --- latency


def latency(bench: Bench, side: str, *, pushpin: bool) -> Figures:
    """100 events/s, one client: from the commit to the client's read."""
    count = int(100 * bench.scale.seconds)
    with bench.side(side, pushpin=pushpin) as found:
        found.start_web()
        found.start_worker()
        with load(found.port, [found.path("warm")], expect=50, silence=1) as client:
            client.until_open()
            found.send("rate", "warm", 50, 50)
            client.result()
        with load(
            found.port, [found.path("orders")], expect=count, latencies=True, raw=True,
            silence=3,  # for whoever never sends one of them
        ) as client:  # fmt: skip
            client.until_open()
            before = found.cpu()
            sent = found.send("rate", "orders", count, 100)
            received = client.result()
            spent = _spent(before, found.cpu())
    calls = sorted(ns / 1e6 for _, ns in received["latencies"])
    committed = dict(map(tuple, sent["committed"]))
    arrived = received["arrived"]
    commits = sorted((at - committed[n]) / 1e6 for n, at in arrived if n in committed)

    def at(values: list[float], share: float) -> float:
        return values[min(len(values) - 1, int(share * len(values)))]

    return {
        "value": at(commits, 0.5),
        "p99": at(commits, 0.99),
        "call_p50": at(calls, 0.5),
        "call_p99": at(calls, 0.99),
        "cpu": spent,
        **{fault: received[fault] for fault in FAULTS},
    }


def latency_of_users(bench: Bench, side: str) -> Figures:
    """An event a second to readers behind Pushpin who each have a channel of their own, too.

    From the call to the client's read, in the first minute: no two of them share what the
    proxy asks for them. The value is the 99th percentile.
    """
    clients, count = (100, 15) if bench.is_quick else (300, 60)
    with bench.side(side, pushpin=True) as found:
        found.start_web()
        found.start_worker()
        paths = [f"{found.path('orders')}&channel=own-{n}" for n in range(clients)]
        with load(
            found.port, paths, clients=clients, expect=count, latencies=True,
            per_second=50, silence=60, timeout=count + 120,
        ) as client:  # fmt: skip
            client.until_open()
            found.send("rate", "orders", count, 1)
            received = client.result()
    return {
        "value": received["p99_ms"],
        "p50": received["p50_ms"],
        "clients": clients,
        **{fault: received[fault] for fault in FAULTS},
    }


# --- relaying


def _cursor_marks(connection: psycopg.Connection, *, wanted: str) -> int:
    """Return the sum of the watermarks of the targets whose names are like that.

    Over one connection: each new one takes PostgreSQL as long as a batch.
    """
    row = connection.execute(
        "SELECT coalesce(sum(c.watermark), 0) FROM eventstream_cursor c "
        "WHERE c.target LIKE %s",
        [wanted],
    ).fetchone()
    return int(row[0]) if row else 0


def relay(bench: Bench, side: str, *, channels: str, pushpin: bool) -> Figures:
    """A full outbox, then one worker process: events confirmed a second."""
    count = bench.scale.relayed
    channel_count = 1 if channels == "one" else bench.scale.channels
    if side == "floor":
        return _post_floor(count, channel_count)
    with bench.ours(pushpin=pushpin) as found, ExitStack() as exits:
        url = found.env["ES_DB"]
        wanted = "grip:%" if pushpin else "bus"
        found.stack.run(
            "from eventstream.relay import relay_partition\n"
            "from eventstream.targets import get_targets\n"
            "for p in range(16):\n"
            "    for t in get_targets(): relay_partition('default', p, t)"
        )
        found.send("bulk", channel_count, count, 1000)
        _analyze(url)
        connection = exits.enter_context(psycopg.connect(url, autocommit=True))
        marks = partial(_cursor_marks, connection, wanted=wanted)
        start = marks()
        before = found.cpu()
        worker = found.start_worker()
        wait_for(lambda: marks() > start, "it has begun", timeout=60)
        began, first = time.monotonic(), marks()
        wait_for(lambda: marks() - start >= count, "all is confirmed", timeout=300)
        seconds = time.monotonic() - began
        spent = _spent(before, {**found.cpu(), "worker": cpu_seconds(worker)})
        return {"value": (count + start - first) / seconds, "cpu": spent}


def _post_floor(count: int, channel_count: int) -> Figures:
    """POST the same bytes in batches of a thousand, to a Pushpin that nobody reads."""
    import requests
    from gripcontrol import HttpStreamFormat
    from pubcontrol import Item

    from tests.bench.floor import event

    pushpin = Pushpin(free_port())
    try:
        bodies = []
        for first in range(1, count + 1, 1000):
            items = []
            for number in range(first, first + 1000):
                text = event(number, "bulk").decode().partition("\n")[2]
                stream = HttpStreamFormat(
                    f"id: %I\n{text}", content_filters=["build-id"]
                )
                previous, place = divmod(number - 1, channel_count)
                item = Item(
                    stream, id=str(previous + 1), prev_id=str(previous)
                ).export()
                items.append({**item, "channel": f"events-bulk-{place}"})
            bodies.append(json.dumps({"items": items}).encode())
        url = f"http://127.0.0.1:{pushpin.config.publish_port}/publish/"
        session = requests.Session()
        before, began = cpu_seconds(pushpin.process), time.monotonic()
        for body in bodies:
            session.post(url, data=body, timeout=10).raise_for_status()
        seconds = time.monotonic() - began
        spent = {"pushpin": round(cpu_seconds(pushpin.process) - before, 2)}
        return {"value": count / seconds, "cpu": spent}
    finally:
        pushpin.close()


# --- fan-out


def fan_out(
    bench: Bench, side: str, *, pushpin: bool, server: str = "uvicorn"
) -> Figures:
    """Deliveries a second, one sender at full speed, from first to last delivery."""
    clients, events = bench.scale.clients, bench.scale.events
    # How long to wait for what never comes.
    silence = 3 if bench.is_quick else 10
    if side == "floor":
        return _fan_out_floor(bench, pushpin=pushpin)
    with bench.side(side, pushpin=pushpin) as found:
        if isinstance(found, Ours):
            found.start_web(server)
        else:
            found.start_web()
        found.start_worker()
        if side == "ours":
            found.send("single", "warm", 50)
        with load(
            found.port, [found.path("orders")],
            clients=clients, expect=events, timeout=240, silence=silence, per_second=250,
        ) as client:  # fmt: skip
            client.until_open()
            before = found.cpu()
            sender = found.start_send("single", "orders", events)
            received = client.result()
            spent = _spent(before, found.cpu())
            found.collect(sender)
    return _delivered(received, spent)


def _delivered(received: Figures, spent: dict[str, float]) -> Figures:
    return {
        "value": received["per_second"] or 0,
        "cpu": spent,
        **({"client_busy": received["busy"]} if received["busy"] is not None else {}),
        **{fault: received[fault] for fault in FAULTS},
    }


def _fan_out_floor(bench: Bench, *, pushpin: bool) -> Figures:
    clients, events = bench.scale.clients, bench.scale.events
    if pushpin:
        return _pushpin_floor(bench)
    port = free_port()
    process = Process(
        [
            sys.executable,
            "-m",
            "tests.bench.floor",
            str(port),
            str(clients),
            str(events),
        ]
    )
    with process:
        process.wait_until(lambda: is_listening(port), "the floor listens")
        with load(port, ["/"], clients=clients, expect=events, timeout=120) as client:
            client.until_open()
            before = {"web": cpu_seconds(process)}
            received = client.result()
            return _delivered(received, _spent(before, {"web": cpu_seconds(process)}))


def _pushpin_floor(bench: Bench) -> Figures:
    """The same bytes POSTed by 100 to Pushpin, whose streams this project has opened."""
    import requests

    clients, events = bench.scale.clients, bench.scale.events
    from eventstream.rows import OutboxRow
    from eventstream.targets.grip import event_item
    from tests.bench.send import payload

    with bench.ours(pushpin=True) as found:
        found.start_web()
        pushpin = found.stack.pushpin
        assert pushpin is not None
        with load(
            found.port, [found.path("orders")],
            clients=clients, expect=events, timeout=120, per_second=250,
        ) as client:  # fmt: skip
            client.until_open()
            # Until Pushpin has asked for each once, as what is POSTed here is in no log.
            time.sleep(12)
            before = found.cpu()
            url = f"http://127.0.0.1:{pushpin.config.publish_port}/publish/"
            session = requests.Session()
            for first in range(1, events + 1, 100):
                items = [
                    event_item(
                        OutboxRow(
                            n, n, 0, "orders", n, "message", json.dumps(payload(n)), ""
                        )
                    )
                    for n in range(first, min(first + 100, events + 1))
                ]
                session.post(url, json={"items": items}, timeout=30).raise_for_status()
            received = client.result()
            return _delivered(received, _spent(before, found.cpu()))


# --- holding


def idle(bench: Bench, side: str) -> Figures:
    """Streams that nothing is sent to: memory each, connections, queries, CPU."""
    count, seconds = bench.scale.streams, 3 if bench.is_quick else 20
    if side == "floor":
        port = free_port()
        process = Process(
            [
                sys.executable, "-m", "uvicorn", "tests.bench.floor:application",
                "--port", str(port), "--log-level", "critical",
            ]
        )  # fmt: skip
        with process:
            process.wait_until(lambda: is_listening(port), "the floor listens")
            return _hold(process, port, ["/"], count, None, seconds)
    with bench.ours() as found:
        web = found.start_web()
        with load(found.port, [found.path("warm")]) as client:
            client.until_open()
        path = [found.path("orders")]
        return _hold(web, found.port, path, count, found.env["ES_DB"], seconds)


def _hold(
    web: Process,
    port: int,
    paths: list[str],
    count: int,
    url: str | None,
    wait: float,
) -> Figures:
    empty = memory_bytes(web)
    with load(port, paths, clients=count, expect=1, timeout=600) as client:
        opened = client.until_open(timeout=300)
        time.sleep(3)
        memory = memory_bytes(web)
        queries = _count_queries(url)
        cpu, began = cpu_seconds(web), time.monotonic()
        time.sleep(wait)
        seconds = time.monotonic() - began
        share = (cpu_seconds(web) - cpu) / seconds
        return {
            "value": (memory - empty) / count,
            "cpu_share": share,
            "opened_in": opened["seconds"],
            "connections": _count_connections(url),
            "queries_per_second": (_count_queries(url) - queries) / seconds,
        }


def _count_queries(url: str | None) -> int:
    """Return how many transactions the database has ended, this question's included."""
    if url is None:
        return 0
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()"
        ).fetchone()
    return int(row[0]) if row else 0


def _analyze(url: str) -> None:
    """Make the statistics that autovacuum would have made within a minute."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")


def _count_connections(url: str | None) -> int:
    if url is None:
        return 0
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        ).fetchone()
    return int(row[0]) if row else 0


# --- coming back


def catch_up(bench: Bench, side: str, *, pushpin: bool, clients: int) -> Figures:
    """Events a second and client, of a backlog, until all have the last one."""
    count = bench.scale.backlog
    if side == "floor":
        return _read_floor(bench, count)
    with bench.side(side, pushpin=pushpin) as found:
        filling = found.start_send("bulk", 1, count, 1000, "warm")
        found.start_web()
        found.collect(filling)
        found.send("bulk", 1, count, 1000)
        if isinstance(found, Ours):
            found.stack.run(
                "from eventstream.storage import get_storage\n"
                "for p in range(16): get_storage().number_all('default', p)"
            )
        _analyze(found.env["ES_DB"])
        # A process that is up: what it does and keeps for the first catch-ups, and PostgreSQL
        # for the first statements of each connection, is no catch-up. Nor the floor's.
        for _ in range(1 if bench.is_quick else WARM_UPS):
            with load(
                found.port, [found.path("warm")], expect=count, after=1,
                last_event_id=found.event_id("warm", 1), timeout=60,
            ) as client:  # fmt: skip
                assert client.result()["done"] == 1
            time.sleep(1)  # for so long it shares what it has read
        before = found.cpu()
        with load(
            found.port, [found.path("bulk")], clients=clients, expect=count, after=1,
            last_event_id=found.event_id("bulk", 1), timeout=60, retry=600,
        ) as client:  # fmt: skip
            received = client.result()
        spent = _spent(before, found.cpu())
        if received["done"] < clients:
            unfinished = f"{received['done']} of {clients} had finished after 60 s"
            return {"error": unfinished, "cpu": spent}
        seconds = received["last_at"] - received["started_at"]
        return {
            "value": received["deliveries"] / seconds,
            "seconds": seconds,
            "finished": received["done"],
            "cpu": spent,
            **{fault: received[fault] for fault in FAULTS},
        }


def _read_floor(bench: Bench, count: int) -> Figures:
    with bench.ours() as found:
        for name in ("warm", "bulk"):
            found.send("bulk", 1, count, 1000, name)
        out = found.stack.run(
            "import time\n"
            "from django.db import connection\n"
            "from eventstream.models import Event\n"
            "from eventstream.storage import get_storage\n"
            "for p in range(16): get_storage().number_all('default', p)\n"
            "connection.cursor().execute('ANALYZE')\n"
            f"for channel in [*['warm'] * {WARM_UPS}, 'bulk']:\n"
            "    t = time.perf_counter(); after = 0\n"
            "    while True:\n"
            "        rows = list(Event.objects.filter(channel=channel, eid__gt=after)"
            ".order_by('eid').values_list('eid', 'type', 'data', 'skip_users')[:1000])\n"
            "        if not rows: break\n"
            "        after = rows[-1][0]\n"
            "print(time.perf_counter() - t)\n"
        )
        seconds = float(out.splitlines()[-1])
        return {"value": count / seconds, "seconds": seconds}


def return_at_once(bench: Bench, side: str) -> Figures:
    """Clients, each a hundred events behind, come back when the web process is new."""
    clients = bench.scale.clients
    with bench.ours() as found:
        url = found.env["ES_DB"]
        found.send("bulk", 1, 200, 1000)
        found.stack.run(
            "from eventstream.storage import get_storage\n"
            "for p in range(16): get_storage().number_all('default', p)"
        )
        found.start_web()
        most = 0
        with load(
            found.port, [found.path("bulk")], clients=clients, expect=200, after=100,
            last_event_id="bulk:100", per_second=2000, timeout=60,
        ) as client:  # fmt: skip

            def is_over() -> bool:
                nonlocal most
                most = max(most, _count_connections(url))
                return "deliveries" in client.process.output()

            wait_for(is_over, "all are back", timeout=60)
            received = client.result()
    return {
        "value": received["last_at"] - received["started_at"],
        "connections": most,
        "finished": received["done"],
        **{fault: received[fault] for fault in FAULTS},
    }


# --- pruning


def prune(bench: Bench, side: str) -> Figures:
    """Rows deleted a second beside a sender at full speed.

    And the longest that a send takes meanwhile, beside the longest of the seconds around it:
    a disk has pauses of its own.
    """
    count = bench.scale.pruned
    with bench.ours() as found:
        url = found.env["ES_DB"]
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO eventstream_event (partition, kind, channel, position, eid, "
                "type, data, skip_users, created) SELECT 3, 0, 'old', n, n, 'message', "
                "repeat('x', 80), '', now() - interval '2 days' "
                "FROM generate_series(1, %s) n",
                [count],
            )
            connection.execute(
                "INSERT INTO eventstream_partition (number, last_position) VALUES (3, %s)",
                [count],
            )
            connection.execute("VACUUM ANALYZE eventstream_event")
            connection.execute("CHECKPOINT")  # as ever since they were young
        sender = found.start_send("until", "orders", bench.scale.seconds, 0)
        time.sleep(1.5)  # it has begun
        if side == "floor":
            with psycopg.connect(url, autocommit=True) as connection:
                began = time.monotonic()
                connection.execute(
                    "DELETE FROM eventstream_event WHERE channel = 'old'"
                )
                ended = time.monotonic()
        else:
            out = found.stack.run(
                "import time\nfrom django.db import connection\n"
                "from eventstream import jobs\nconnection.ensure_connection()\n"
                "t = time.monotonic(); jobs.prune('default')\n"
                "print(t, time.monotonic())"
            )
            began, ended = map(float, out.split()[-2:])
        pauses: dict[bool, list[float]] = {True: [0.0], False: [0.0]}
        for since, until in found.collect(sender)["pauses"]:
            pauses[since < ended and until > began].append(1000 * (until - since))
        return {
            "value": count / (ended - began),
            "longest_ms": max(pauses[True]),
            "longest_otherwise_ms": max(pauses[False]),
        }


def describe_machine() -> str:
    """Say what is measured on, for the page."""
    memory = psutil.virtual_memory().total // 2**30
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        names = [
            line.partition(":")[2].strip()
            for line in text.splitlines()
            if line.startswith("model name")
        ]
        if names:
            return f"{len(names)} of {names[0]}, {memory} GB"
    return f"{psutil.cpu_count()} processors, {memory} GB"
