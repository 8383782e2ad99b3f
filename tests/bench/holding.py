"""What is measured of clients that misbehave, of proxies that restart, and of growth."""

from __future__ import annotations

import time
from typing import Any

from tests.bench.cases import FAULTS, Bench, Figures
from tests.bench.sides import Ours, cpu_seconds, load, memory_bytes
from tests.support.processes import Process, wait_for
from tests.support.pushpin import Pushpin

GROWTH = (10, 100, 1000, 5000)


def proxy_restart(bench: Bench, side: str) -> Figures:
    """Pushpin's clients get 100 events at 20/s; then it restarts; then they are idle.

    The value is the time from the restart until the last client has all. What idle streams
    ask the origin is counted over one timeout of their links and a little more.
    """
    clients, count, link_timeout = bench.scale.clients, 100, 60
    if bench.is_quick:
        clients, count, link_timeout = 200, 20, 3
    with bench.ours(pushpin=True, EVENTSTREAM_NEXT_LINK_TIMEOUT=link_timeout) as found:
        web = found.stack.start_web(extra=("--log-level", "info"))
        found.start_worker()
        pushpin = found.stack.pushpin
        assert pushpin is not None
        path = [found.path("orders")]
        with load(
            found.port, path, clients=clients, expect=count + 20, timeout=180, per_second=250,
            retry=1,
        ) as client:  # fmt: skip
            client.until_open()
            found.send("rate", "orders", count, 20)
            began = time.monotonic()
            _restart(pushpin)
            found.send("rate", "orders", 20, 100, count + 1)
            received = client.result()
            seconds = received["last_at"] - began
        with load(
            found.port, path, clients=clients, expect=10**9, timeout=600, per_second=250,
        ) as client:  # fmt: skip
            client.until_open()
            time.sleep(min(10, link_timeout) + 3)  # each has asked once, and waits
            before, began = _count_asked(web), time.monotonic()
            time.sleep(link_timeout + (2 if bench.is_quick else 5))
            asked = _count_asked(web) - before
            idle_seconds = time.monotonic() - began
    return {
        "value": seconds,
        "finished": received["done"],
        "link_timeout": link_timeout,
        "idle_requests_per_second": asked / idle_seconds,
        "idle_requests_per_stream_and_timeout": asked / clients,
        **{fault: received[fault] for fault in FAULTS},
    }


def _restart(pushpin: Pushpin) -> None:
    pushpin.process.stop()
    pushpin.start()


def _count_asked(web: Process) -> int:
    return web.output().count("/next/")


def slow_client(bench: Bench, side: str) -> Figures:
    """One client reads nothing while many events pass, another all; then the first, too.

    The value is by how much the web process has grown at most.
    """
    count = (2 if bench.is_quick else 10) * bench.scale.backlog
    mute = 3 if bench.is_quick else 60
    with bench.ours() as found:
        web = found.start_web()
        found.start_worker()
        path = [found.path("bulk")]
        with load(found.port, [found.path("warm")], clients=4) as client:
            client.until_open()
        with (
            load(
                found.port, path, expect=count, timeout=300, mute=mute, retry=600,
                receive_buffer=4096,
            ) as slow,
            load(found.port, path, expect=count, timeout=300, retry=600) as fast,
        ):  # fmt: skip
            slow.until_open()
            fast.until_open()
            before, most = memory_bytes(web), 0
            sender = found.start_send("bulk", 1, count, 1000)
            results: dict[str, Any] = {}

            def are_done() -> bool:
                nonlocal most
                most = max(most, memory_bytes(web))
                for name, each in (("slow", slow), ("fast", fast)):
                    results[name] = results.get(name) or each.result_so_far()
                return all(results.values())

            wait_for(are_done, "both have all", timeout=300)
            found.collect(sender)
    return {
        "value": (most - before) / 2**20,
        "events": count,
        "mute": mute,
        "fast_seconds": results["fast"]["last_at"] - results["fast"]["first_at"],
        "slow_seconds": results["slow"]["last_at"] - results["slow"]["first_at"],
        **{fault: results["slow"][fault] + results["fast"][fault] for fault in FAULTS},
    }


def growth_by_clients(bench: Bench, side: str) -> Figures:
    """How memory a stream and latency grow with clients: 20 events at 4/s to each.

    The value is the median latency of the most clients by that of a tenth of them.
    """
    points = []
    with bench.ours() as found:
        web = found.start_web()
        found.start_worker()
        with load(found.port, [found.path("warm")], clients=4) as client:
            client.until_open()
        found.send("rate", "warm", 10, 50)
        for clients in GROWTH[:-1] if bench.is_quick else GROWTH:
            count = 4 if bench.is_quick else 20
            points.append(_point(found, web, clients, count))
    return {
        "value": points[-1]["p50_ms"] / points[-2]["p50_ms"],
        "points": points,
        **{fault: sum(point[fault] for point in points) for fault in FAULTS},
    }


def _point(found: Ours, web: Process, clients: int, count: int) -> Figures:
    channel = f"orders-{clients}"
    empty = memory_bytes(web)
    with load(
        found.port, [found.path(channel)], clients=clients, expect=count, timeout=180,
        latencies=True,
    ) as client:  # fmt: skip
        client.until_open()
        time.sleep(1)
        memory, cpu = memory_bytes(web), cpu_seconds(web)
        found.send("rate", channel, count, 4)
        received = client.result()
        spent = cpu_seconds(web) - cpu
    return {
        "clients": clients,
        "bytes_per_stream": (memory - empty) / clients,
        # Each a write of its own: at this rate no two events share one.
        "writes_per_cpu_second": received["deliveries"] / spent if spent else None,
        "p50_ms": received["p50_ms"],
        "p99_ms": received["p99_ms"],
        **{fault: received[fault] for fault in FAULTS},
    }
