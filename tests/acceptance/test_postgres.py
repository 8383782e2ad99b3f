"""The whole installation on PostgreSQL, with more streams than it takes connections."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from tests.support.postgres import Postgres, postgres
from tests.support.sse import Crowd
from tests.support.stack import Stack, migrated_database, running

pytestmark = pytest.mark.timeout(180)

POOL_SIZE = 8


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres() as server:
        yield server


@pytest.fixture(params=["direct", "pushpin", "direct-pooled", "pushpin-pooled"])
def stack(server: Postgres, request: pytest.FixtureRequest) -> Iterator[Stack]:
    holder, _, pooled = request.param.partition("-")
    url = migrated_database(server, f"streams_{holder}_{uuid.uuid4().hex[:8]}")
    with running(
        database_url=url, is_migrated=True, with_pushpin=holder == "pushpin", beat=True,
        env={"ES_POOL": str(POOL_SIZE)} if pooled else None,
    ) as stack:  # fmt: skip
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
        # Three readers of the log, and the pool, or what requests in flight have; four
        # threads of the worker, and beat.
        at_once = POOL_SIZE if "ES_POOL" in stack.env else 5
        assert opened - before <= 3 + at_once + 5
    finally:
        await crowd.stop()


PUBLISH = """
from django.db import connection
from eventstream import send_event
from eventstream.models import Event
from eventstream.relay import relay_partition
from eventstream.rows import partition_of
for number in range(10):
    send_event("orders", "message", number)
    relay_partition("default", partition_of("orders"), "bus")
assert list(Event.objects.order_by("eid").values_list("eid", flat=True)) == [*range(1, 11)]
with connection.cursor() as cursor:
    cursor.execute("SELECT statement FROM pg_prepared_statements")
    kept = [statement for statement, in cursor.fetchall()]
print(len(kept), sum("lease_token" in statement for statement in kept))
"""


@pytest.mark.parametrize(
    ("options", "has_kept"),
    [("{}", False), ('{"prepare_threshold": 2}', True)],
    ids=["default", "allowed"],
)
def test_statements_stay_prepared_only_where_the_project_allows_it(
    server: Postgres, options: str, *, has_kept: bool
) -> None:
    """They break behind a pooler that hands connections on."""
    url = migrated_database(server, f"prepared_{uuid.uuid4().hex[:8]}")
    stack = Stack(database_url=url, is_migrated=True, env={"ES_DB_OPTIONS": options})
    try:
        kept_count, lease_count = map(int, stack.run(PUBLISH).split())
    finally:
        stack.close()

    # To take, confirm and release; and those that number and look.
    assert (kept_count >= 5, lease_count == 3) == (has_kept, has_kept)
    assert has_kept or kept_count == 0


async def test_proxy_holds_its_streams_while_the_database_is_away(
    server: Postgres,
) -> None:
    url = migrated_database(server, "away")
    env = {"ES_LINK_TIMEOUT": "1"}
    with running(
        database_url=url, is_migrated=True, with_pushpin=True, beat=True, env=env
    ) as stack:
        crowd = Crowd(stack.url, [f"room-{n}" for n in range(10)])
        await crowd.start()
        try:
            await asyncio.sleep(
                2
            )  # a held stream asks once about a second after the hold
            server.process.stop()
            assert stack.web
            held = "A stream is held as it is: the database cannot be read"
            await asyncio.sleep(5)
            server.start()
            assert stack.web.output().count(held) >= 10
            send = (
                "from eventstream import send_event\n"
                "for n in range(10): send_event(f'room-{n}', 'message', n)"
            )
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(None, stack.run, send)
            await crowd.until_received(1)

            assert [reader.reconnects for reader in crowd.readers] == [0] * 10
            assert "Traceback" not in stack.web.output()
        finally:
            await crowd.stop()


async def test_readers_without_a_database_are_told_no_error_and_come_back(
    stack: Stack, server: Postgres
) -> None:
    """At an error a plain EventSource would give up; a log of tracebacks tells nothing."""
    crowd = Crowd(stack.url, [f"room-{n % 10}" for n in range(50)])
    crowd.patience = 8  # Pushpin may take a request as it starts, and not answer it
    await crowd.start(per_second=100)
    try:
        send = (
            "from eventstream import send_event\n"
            "for i in range(10):\n"
            "    for n in range(10): send_event(f'room-{n}', 'message', i)"
        )
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, stack.run, send)
        await crowd.until_received(10)

        server.process.stop()
        stack.kill_and_restart_holders()
        reconnects = sum(reader.reconnects for reader in crowd.readers)
        await asyncio.sleep(5)
        assert sum(reader.reconnects for reader in crowd.readers) >= reconnects + 50
        server.start()
        await loop.run_in_executor(None, stack.run, send)
        await crowd.until_received(20)

        assert crowd.faults(1, 20) == []
        assert sum(reader.errors for reader in crowd.readers) == 0
        assert stack.web
        assert "Traceback" not in stack.web.output()
        # With a pool streams wait for a connection, and may have one before they give up.
        said = ("database cannot be read", "Cannot look at the log")
        assert any(text in stack.web.output() for text in said)
    finally:
        await crowd.stop()
