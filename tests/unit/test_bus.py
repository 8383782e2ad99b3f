"""Messages of the Redis bus."""

from __future__ import annotations

import pytest
from pytest_django import Settings

from eventstream.exceptions import PublishUnavailableError
from eventstream.models import EventKind
from eventstream.redisclients import connect, connect_async
from eventstream.rows import OutboxRow
from eventstream.targets.bus import (
    BusTarget,
    _messages,
    decode,
    event_topic,
    kick_topic,
)
from tests.support.processes import free_port


def make_row(channel: str, eid: int | None, data: str = "x") -> OutboxRow:
    return OutboxRow(1, 1, EventKind.EVENT, channel, eid, "message", data, ",3,")


def test_consecutive_events_of_a_channel_are_one_message() -> None:
    target = BusTarget({})
    rows = [make_row("a", 1), make_row("b", 1), make_row("a", 2, "é\n")]
    items = [item for row in rows for item in target.encode(row)]

    found = {topic: decode(payload) for topic, payload in _messages(items)}

    assert found == {
        "eventstream:events:a": [
            [1, "message", "x", ",3,"],
            [2, "message", "é\n", ",3,"],
        ],
        "eventstream:events:b": [[1, "message", "x", ",3,"]],
    }


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"7",
        b"[7]",
        b'[[1, "message", "x", ""], [2, "message", 7, ""]]',
        b"[[1.5]]",
    ],
)
def test_message_of_another_kind_is_refused_whole(payload: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        decode(payload)


def test_kicks_come_before_the_events_of_their_batch() -> None:
    target = BusTarget({})
    kick = make_row("a", None)._replace(kind=EventKind.KICK, data="5")
    items = target.encode(make_row("a", 1)) + target.encode(kick)

    assert [topic for topic, _ in _messages(items)] == [
        "eventstream:kicks",
        "eventstream:events:a",
    ]


def test_bus_that_cannot_be_understood_is_a_failure_of_the_target() -> None:
    target = BusTarget({"hots": "127.0.0.1"})

    with pytest.raises(
        PublishUnavailableError, match="EVENTSTREAM_REDIS cannot be used"
    ):
        target.publish(target.encode(make_row("a", 1)))


def test_bus_that_is_away_is_for_now() -> None:
    target = BusTarget({"host": "127.0.0.1", "port": free_port()})

    with pytest.raises(PublishUnavailableError):
        target.publish(target.encode(make_row("a", 1)))


def test_url_of_a_bus_takes_no_limit_away() -> None:
    """In redis-py what a URL says wins over its arguments."""
    query = "socket_timeout=60&health_check_interval=0&client_name=a%26b&db=3"
    url = f"redis://:p%2Fw@localhost/2?{query}"

    sync = connect({"url": url}, timeout=0.5)
    hub = connect_async({"url": url})

    found = sync.connection_pool.connection_kwargs
    assert (found["socket_timeout"], found["socket_connect_timeout"]) == (0.5, 0.5)
    assert hub.connection_pool.connection_kwargs["health_check_interval"] == 5
    for client in (sync, hub):
        kept = client.connection_pool.connection_kwargs
        assert (kept["client_name"], kept["db"], kept["password"]) == ("a&b", 3, "p/w")


@pytest.mark.parametrize(
    ("server", "prefix"),
    [
        (None, "eventstream:"),
        ("redis://127.0.0.1:6379", "eventstream:"),
        ("redis://127.0.0.1:6379/0", "eventstream:"),
        ("redis://127.0.0.1:6379/1", "eventstream:1:"),
        ("redis://127.0.0.1:6379?db=2", "eventstream:2:"),
        ("unix:///run/valkey.sock?db=3", "eventstream:3:"),
        ({"host": "127.0.0.1", "db": 4}, "eventstream:4:"),
        ({"sentinels": [("a", 1)], "service_name": "s", "db": 5}, "eventstream:5:"),
    ],
)
def test_database_of_the_server_is_part_of_each_name(
    settings: Settings, server: object, prefix: str
) -> None:
    """What is published is heard in all of them, unlike keys."""
    settings.EVENTSTREAM_REDIS = server

    assert event_topic("a") == f"{prefix}events:a"
    assert kick_topic() == f"{prefix}kicks"
