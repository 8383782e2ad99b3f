"""How sending and relaying grow: with channels, with the log, with a backlog.

Each point has a database of its own, filled by SQL. What stays flat is independent of it.
"""

from __future__ import annotations

import psycopg

from tests.bench.cases import FAULTS, Bench, Figures
from tests.bench.sides import Ours, load, memory_bytes

CHANNELS = (10, 1_000, 100_000)
LOG = (1_000, 100_000, 10_000_000)
BACKLOG = (1_000, 10_000, 100_000)
RATE, EVENTS, EVENTS_QUICK = 50, 100, 40

_FILL = """
INSERT INTO eventstream_event
  (partition, kind, channel, position, eid, type, data, skip_users, created)
SELECT n %% 16, 0, 'old-' || (n %% %(channels)s), n / 16 + 1, n / %(channels)s + 1,
  'message', repeat('x', 80), '', now() FROM generate_series(0, %(log)s - 1) n
"""
_HEADS = """
INSERT INTO eventstream_partition (number, last_position)
SELECT partition, max(position) FROM eventstream_event GROUP BY partition
"""
_CHANNELS = """
INSERT INTO eventstream_channel (name, partition, last_eid)
SELECT 'old-' || n, n %% 16, %(log)s / %(channels)s + 1
FROM generate_series(0, %(channels)s - 1) n
"""


def growth_by_channels(bench: Bench, side: str) -> Figures:
    """Channels that have had an event each."""
    sizes = CHANNELS[:-1] if bench.is_quick else CHANNELS
    return _figures([_point(bench, n, channels=n, log=n) for n in sizes])


def growth_by_log(bench: Bench, side: str) -> Figures:
    """Events in the log of a hundred channels."""
    sizes = LOG[:-1] if bench.is_quick else LOG
    return _figures([_point(bench, n, channels=100, log=n) for n in sizes])


def growth_by_backlog(bench: Bench, side: str) -> Figures:
    """Events of one other channel that wait when the worker starts."""
    sizes = BACKLOG[:-1] if bench.is_quick else BACKLOG
    return _figures([_point(bench, n, backlog=n) for n in sizes])


def _figures(points: list[Figures]) -> Figures:
    """Give the median latency at the most by that at the least: 1 is flat."""
    return {
        "value": points[-1]["p50_ms"] / points[0]["p50_ms"],
        "points": points,
        **{fault: sum(point[fault] for point in points) for fault in FAULTS},
    }


def _point(
    bench: Bench, size: int, *, channels: int = 10, log: int = 10, backlog: int = 0
) -> Figures:
    with bench.ours() as found:
        with psycopg.connect(found.env["ES_DB"], autocommit=True) as connection:
            for statement in (_FILL, _HEADS, _CHANNELS):
                connection.execute(statement, {"channels": channels, "log": log})
            connection.execute("VACUUM ANALYZE")
        if backlog:
            found.send("bulk", 1, backlog, 1000)
        web, worker = found.start_web(), found.start_worker()
        received = _receive(found, EVENTS_QUICK if bench.is_quick else EVENTS)
        sent = found.send("spread", "old", channels, bench.scale.sends)
        return {
            "size": size,
            "sends_per_second": sent["count"] / sent["seconds"],
            "p50_ms": received["p50_ms"],
            "p99_ms": received["p99_ms"],
            "worker_mb": memory_bytes(worker) / 1e6,
            "web_mb": memory_bytes(web) / 1e6,
            **{fault: received[fault] for fault in FAULTS},
        }


def _receive(found: Ours, count: int) -> Figures:
    with load(
        found.port, [found.path("orders")], expect=count, timeout=120, latencies=True
    ) as client:
        client.until_open()
        found.send("rate", "orders", count, RATE)
        return client.result()
