"""The whole installation on PostgreSQL, with more streams than it takes connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.postgres import Postgres, postgres
from tests.support.sse import Crowd
from tests.support.stack import Stack, running

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(params=["direct", "pushpin"])
def stack(server: Postgres, request: pytest.FixtureRequest) -> Iterator[Stack]:
    url = server.create_database(f"streams_{request.param}")
    with running(
        database_url=url, with_pushpin=request.param == "pushpin", beat=True
    ) as stack:
        yield stack


def count_connections(server: Postgres, name: str) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname LIKE %s"
    with psycopg.connect(server.url) as connection:
        row = connection.execute(query, (name,)).fetchone()
    assert row is not None
    return int(row[0])


async def test_streams_take_no_connections_and_miss_nothing(
    stack: Stack, server: Postgres
) -> None:
    before = count_connections(server, "streams_%")
    crowd = Crowd(stack.url, [f"room-{n % 40}" for n in range(200)])
    await crowd.start(per_second=100)
    try:
        opened = count_connections(server, "streams_%")
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(
            None,
            stack.run,
            "from eventstream import EventSpec, send_events\n"
            "for i in range(5):\n"
            "    send_events(EventSpec(f'room-{n}', 'message', i)"
            " for i in range(10) for n in range(40))",
        )
        await crowd.until_received(50)

        assert crowd.faults(1, 50) == []
        assert sum(reader.errors for reader in crowd.readers) == 0
        # Three readers of the log, and what requests in flight have.
        assert opened - before <= 8
    finally:
        await crowd.stop()
