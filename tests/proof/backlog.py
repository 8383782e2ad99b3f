"""`make backlog COUNT=1000000`: drain a long backlog of one channel, and look at the others.

Prints events a second, the worker's memory, and how long an event of another partition
takes meanwhile.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from statistics import median

import psutil
import psycopg

from tests.support.postgres import postgres
from tests.support.sse import Stream
from tests.support.stack import Stack

HOT, OTHER = "hot", "quiet"
_FILL = """
INSERT INTO eventstream_event (partition, kind, channel, type, data, skip_users)
SELECT %s, 0, %s, 'message', n::text, '' FROM generate_series(1, %s) n
"""
_LEFT = "SELECT count(*) FROM eventstream_event WHERE position IS NULL"
_BEHIND = """
SELECT max(p.last_position - c.watermark) FROM eventstream_cursor c
JOIN eventstream_partition p ON p.number = c.partition
"""


@dataclass
class Drained:
    """What was seen while a backlog was drained.

    Attributes:
        seconds: Until everything was confirmed.
        memory_before, memory_most: Resident bytes of the worker.
        latencies: Seconds from the send to the client, of events of another partition.
    """

    count: int
    seconds: float
    memory_before: int
    memory_most: int
    latencies: list[float]

    def __str__(self) -> str:
        megabytes = (self.memory_most - self.memory_before) / 1e6
        return (
            f"{self.count} events in {self.seconds:.1f} s: {self.count / self.seconds:.0f} "
            f"a second; the worker grew by {megabytes:.1f} MB from "
            f"{self.memory_before / 1e6:.0f} MB; {len(self.latencies)} events of another "
            f"partition took {1000 * median(self.latencies):.0f} ms (median), "
            f"{1000 * max(self.latencies):.0f} ms (worst)"
        )


def drain(count: int) -> Drained:
    """Let a worker drain so many events of one channel, that nobody was woken for."""
    with postgres() as server:
        url = server.create_database("backlog")
        stack = Stack(database_url=url)
        try:
            stack.start_web()
            worker = stack.start_worker()
            with (
                psycopg.connect(url, autocommit=True) as database,
                Stream(f"{stack.url}/events/?channel={OTHER}").open() as stream,
            ):
                # Warm: each thread has its connections, and has published something.
                _send(stack, stream, 8)
                memory = psutil.Process(worker.pid)
                before = most = memory.memory_info().rss
                partition = stack.run(
                    "from eventstream.rows import partition_of\n"
                    f"print(partition_of({HOT!r}))"
                )
                database.execute(_FILL, (int(partition), HOT, count))
                latencies = []
                began = time.monotonic()
                stack.send(HOT)
                while not _is_drained(database):
                    latencies += _send(stack, stream, 1)
                    most = max(most, memory.memory_info().rss)
                    time.sleep(0.1)
                seconds = time.monotonic() - began
                latencies += _send(stack, stream, 1)
        finally:
            stack.close()
    return Drained(count + 1, seconds, before, most, latencies)


def _send(stack: Stack, stream: Stream, count: int) -> list[float]:
    found = []
    for _ in range(count):
        began = time.monotonic()
        stack.send(OTHER)
        stream.next(timeout=60)
        found.append(time.monotonic() - began)
    return found


def _is_drained(database: psycopg.Connection) -> bool:
    left = database.execute(_LEFT).fetchone()
    behind = database.execute(_BEHIND).fetchone()
    return left == (0,) and behind == (0,)


if __name__ == "__main__":
    print(drain(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000))
