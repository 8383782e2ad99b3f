"""The hub, with a real bus that is made to misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import threading
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

import pytest
from asgiref.sync import sync_to_async
from django.db import OperationalError, connections
from django.db.backends.utils import CursorWrapper
from django.db.models import F
from pytest_django import Settings
from redis.asyncio.client import PubSub

from eventstream import EventSpec, send_event, send_events, sse
from eventstream.hub import Hub, get_hub, permissions
from eventstream.hub.beginnings import Beginnings
from eventstream.hub.buslink import BusLink
from eventstream.hub.log import Log
from eventstream.hub.permissions import Permissions
from eventstream.hub.pool import ReaderPool
from eventstream.hub.subscribers import Subscriber
from eventstream.hub.tails import ChannelState
from eventstream.models import Channel, Event, EventKind, Partition
from eventstream.reading import Reader
from eventstream.redisclients import connect
from eventstream.rows import ChannelLog, LogEvent, OutboxRow, partition_of
from eventstream.storage import DjangoModelStorage, get_storage
from eventstream.targets.bus import BusTarget, event_topic, kick_topic
from eventstream.testing import drain_outbox
from tests.support.sse import Message, Parser
from tests.support.valkey import Valkey

pytestmark = pytest.mark.django_db(transaction=True)


class Stream:
    """A stream of the hub, read event by event."""

    def __init__(
        self,
        *channels: str,
        user_id: str = "",
        checked_at: float | None = None,
        **positions: int,
    ) -> None:
        at = time.monotonic() if checked_at is None else checked_at
        reader = Reader(tuple(sorted(channels)), user_id, positions, at)
        self._chunks = get_hub().stream(reader)
        self._parser = Parser()
        self._messages: list[Message] = []
        self.sizes: list[int] = []

    async def next(self, seconds: float = 30) -> Message:
        async with asyncio.timeout(seconds):
            while not self._messages:
                chunk = await anext(self._chunks)
                self.sizes.append(len(chunk))
                found = self._parser.feed(chunk)
                self._messages += [m for m in found if m.type != "keep-alive"]
        return self._messages.pop(0)

    async def ids(self, count: int) -> list[int]:
        found = [await self.next() for _ in range(count)]
        return [int(message.id.rpartition(":")[2]) for message in found]

    async def open(self) -> Stream:
        assert (await self.next()).type == "stream-open"
        return self

    async def is_silent(self, seconds: float) -> bool:
        """Say whether nothing comes. The stream is not to be read after that."""
        try:
            await self.next(seconds)
        except TimeoutError:
            return True
        return False

    async def close(self) -> None:
        await self._chunks.aclose()  # type: ignore[attr-defined]


def count_looks(monkeypatch: pytest.MonkeyPatch) -> asyncio.Semaphore:
    """Return a semaphore that is released after each look at a log."""
    looks = asyncio.Semaphore(0)
    look = Hub._look

    async def count(hub: Hub, using: str, *, is_full: bool = False) -> None:
        try:
            await look(hub, using, is_full=is_full)
        finally:
            looks.release()

    monkeypatch.setattr(Hub, "_look", count)
    return looks


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
async def bus(
    server: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[BusTarget]:
    """The bus; nothing looks at the log by itself, so that only the hub's care shows."""
    settings.EVENTSTREAM_REDIS = server.url
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    settings.EVENTSTREAM_POLL_INTERVAL = 300
    settings.EVENTSTREAM_CHANNELMANAGER_CLASS = "tests.channels.ChannelManager"
    # Nor is the hub of this process told of what is numbered here.
    monkeypatch.setattr(Hub, "_on_numbered", lambda *args, **kwargs: None)
    target = BusTarget({"url": server.url})
    looks = count_looks(monkeypatch)
    # Before any other stream, as of kicks before its first look a hub does not hear.
    await (await Stream("warm").open()).close()
    # And until it has looked as it began and once the bus was whole, or does not. A later
    # look would take back what a test has on the bus alone.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(10):
            for _ in range(2):
                await looks.acquire()
    yield target
    await get_hub().close()
    target.close()
    await sync_to_async(connections.close_all)()


async def send(count: int, channel: str = "orders") -> None:
    """Have events in the log that nobody has published."""

    def work() -> None:
        send_events(EventSpec(channel, "message", n) for n in range(count))
        drain_outbox()

    await sync_to_async(work)()


def kick_7(*channels: str, using: str = "default") -> None:
    """Withdraw the permission of user 7, in the partition of the channel "members"."""
    partition = partition_of("members")
    for channel in channels:
        kick = Event(kind=EventKind.KICK, partition=partition, channel=channel, type="kick", data="7")  # fmt: skip
        get_storage().append(using, [kick])
    get_storage().number_all(using, partition)


async def publish(bus: BusTarget, *eids: int, channel: str = "orders") -> None:
    rows = [
        OutboxRow(0, 0, EventKind.EVENT, channel, eid, "message", str(eid - 1), "")
        for eid in eids
    ]
    items = [item for row in rows for item in bus.encode(row)]
    await sync_to_async(bus.publish)(items)


async def test_live_reader_needs_no_database(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = await Stream("orders").open()

    def fail(*_: object) -> None:
        raise AssertionError("the log was read")

    monkeypatch.setattr(Log, "read", fail)
    await publish(bus, 1, 2)
    await publish(bus, 3)

    assert await stream.ids(3) == [1, 2, 3]
    await stream.close()


async def test_gap_on_the_bus_is_filled_from_the_log(bus: BusTarget) -> None:
    stream = await Stream("orders").open()
    await send(5)

    await publish(bus, 1)
    await publish(bus, 4, 5)

    assert await stream.ids(5) == [1, 2, 3, 4, 5]
    await stream.close()


async def test_repeated_and_overtaken_messages_change_nothing(bus: BusTarget) -> None:
    stream = await Stream("orders").open()
    await send(3)

    for eids in ((1, 2), (2, 3), (1,), (3,)):
        await publish(bus, *eids)

    assert await stream.ids(3) == [1, 2, 3]
    assert await stream.is_silent(0.3)
    await stream.close()


async def test_what_the_bus_lost_while_it_was_away_is_found(
    bus: BusTarget, server: Valkey
) -> None:
    stream = await Stream("orders").open()
    server.process.kill()
    await send(3)  # published to nobody
    server.start()

    assert await stream.ids(3) == [1, 2, 3]
    await publish(bus, 4)
    await send(1)
    assert await stream.ids(1) == [4]
    await stream.close()


@pytest.mark.parametrize("is_url", [True, False])
async def test_what_passed_while_the_connection_was_cut_is_found(
    bus: BusTarget, server: Valkey, settings: Settings, is_url: bool
) -> None:
    """The server is there all the time, so it is only the hub that can notice."""
    parts = urlsplit(server.url)
    settings.EVENTSTREAM_REDIS = (
        server.url if is_url else {"host": parts.hostname, "port": parts.port}
    )
    await get_hub().close()  # it is to connect by this setting
    stream = await Stream("orders").open()
    await send(3)  # published to nobody

    def cut() -> None:
        with connect({"url": server.url}, timeout=2) as client:
            client.client_kill_filter(_type="pubsub")

    await sync_to_async(cut)()

    assert await stream.ids(3) == [1, 2, 3]
    await stream.close()


async def test_stream_opens_while_the_bus_is_away(
    bus: BusTarget, server: Valkey
) -> None:
    await send(2)
    server.process.kill()
    try:
        stream = Stream("orders", orders=0)

        assert (await stream.next()).id == "orders:0"
        assert await stream.ids(2) == [1, 2]
        await send(1)
    finally:
        server.start()
    assert await stream.ids(1) == [3]
    await stream.close()


@pytest.mark.parametrize(
    "topic", [event_topic("orders"), kick_topic()], ids=["event", "kick"]
)
@pytest.mark.parametrize(
    "payload", [b"\xff", b"7", b'[[2, "message", 7, ""]]', b'[["2", "", "", ""]]']
)
async def test_message_of_another_kind_is_passed_over(
    bus: BusTarget,
    server: Valkey,
    caplog: pytest.LogCaptureFixture,
    topic: str,
    payload: bytes,
) -> None:
    stream = await Stream("orders").open()
    await publish(bus, 1)
    assert await stream.ids(1) == [1]

    def publish_it() -> None:
        with connect({"url": server.url}, timeout=2) as client:
            client.publish(topic, payload)

    await sync_to_async(publish_it)()
    await publish(bus, 2)

    assert await stream.ids(1) == [2]
    assert f"Cannot take a message of {topic}" in caplog.messages
    await stream.close()


async def test_topic_that_is_confirmed_as_its_time_is_up_is_confirmed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the hub would wait for its confirmation to look at the log again."""
    monkeypatch.setattr("eventstream.hub.buslink._CONFIRM", 0.01)
    link = BusLink(get_hub())
    link._is_up = True

    async def send(command: str, topic: str) -> None:
        link._confirm(topic)
        await asyncio.sleep(30)

    monkeypatch.setattr(link, "_send", send)
    await link.subscribe("events:orders")

    assert not link._unconfirmed


class Whole:
    """Counts how often it is told that the bus is whole."""

    count = 0

    def bus_is_whole(self) -> None:
        self.count += 1


async def test_bus_is_whole_once_the_last_topic_is_confirmed() -> None:
    """What is published between a look and a later subscription would be seen by neither."""
    link = BusLink(whole := Whole())  # type: ignore[arg-type]
    link._unconfirmed = {"events:films", "events:orders"}

    link._confirm("events:films")
    assert whole.count == 0
    link._confirm("events:orders")
    link._confirm("events:orders")

    assert whole.count == 1


async def test_bus_is_whole_once_the_last_topic_is_wanted_no_more() -> None:
    link = BusLink(whole := Whole())  # type: ignore[arg-type]
    link._unconfirmed = {"events:films", "events:orders"}
    link._confirm("events:films")

    await link.unsubscribe("events:orders")

    assert whole.count == 1


async def test_bus_is_whole_once_a_topic_is_confirmed_that_nobody_waits_for_any_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("eventstream.hub.buslink._CONFIRM", 0.01)
    link = BusLink(whole := Whole())  # type: ignore[arg-type]
    await link.subscribe("events:orders")

    link._confirm("events:orders")

    assert whole.count == 1


async def test_bus_is_connected_to_anew_whatever_has_ended_it(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stream = await Stream("orders").open()
    failures = iter([RuntimeError("what nobody thought of")])
    confirm = BusLink._confirm

    def fail_once(link: BusLink, topic: str) -> None:
        for error in failures:
            raise error
        confirm(link, topic)

    monkeypatch.setattr(BusLink, "_confirm", fail_once)
    await send(1)  # published to nobody
    other = await Stream("other").open()

    assert await stream.ids(1) == [1]
    assert "Reading the bus failed" in caplog.messages
    for each in (stream, other):
        await each.close()


async def test_what_fails_in_one_second_is_done_in_the_next(
    bus: BusTarget,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    settings.EVENTSTREAM_KEEP_ALIVE = 1
    failures = iter([RuntimeError("what nobody thought of")])
    tick = Permissions.tick

    def fail_once(permissions: Permissions, *arguments: Any) -> None:
        for error in failures:
            raise error
        tick(permissions, *arguments)

    monkeypatch.setattr(Permissions, "tick", fail_once)
    stream = await Stream("orders").open()

    for _ in range(2):
        async with asyncio.timeout(30):
            assert await anext(stream._chunks) == sse.KEEP_ALIVE.encode()
    assert "What the hub does each second failed" in caplog.messages
    await stream.close()


async def test_slow_reader_is_put_back_on_the_log_and_misses_nothing(
    bus: BusTarget, settings: Settings
) -> None:
    settings.EVENTSTREAM_QUEUE_LENGTH = 10
    slow, fast = await Stream("orders").open(), await Stream("orders").open()
    await send(200)
    for first in range(1, 201, 5):
        await publish(bus, *range(first, first + 5))
    assert await fast.ids(200) == list(range(1, 201))

    assert len(get_hub().channels["orders"].tail) == 10
    assert await slow.ids(200) == list(range(1, 201))
    await slow.close()
    await fast.close()


async def send_large(
    count: int, channel: str = "orders", skip_user_ids: Sequence[str] = ()
) -> None:
    """Have events of 200 kB in the log."""

    def work() -> None:
        spec = EventSpec(channel, "message", "x" * 199_998, skip_user_ids=skip_user_ids)
        send_events([spec] * count)
        drain_outbox()

    await sync_to_async(work)()


async def test_client_that_reads_nothing_leaves_a_megabyte_in_memory(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    for channel in ("films", "orders"):
        await send_large(12, channel)
    counts: list[int] = []
    read_after = DjangoModelStorage.read_after

    def count(*arguments: Any, **options: Any) -> ChannelLog:
        log = read_after(*arguments, **options)
        counts.append(len(log.rows))
        return log

    monkeypatch.setattr(DjangoModelStorage, "read_after", count)
    stream = await Stream("films", "orders", films=0, orders=0).open()

    messages = [await stream.next() for _ in range(24)]

    assert [message.id for message in messages] == [
        *(f"films:{n},orders:0" for n in range(1, 6)),
        *(f"films:5,orders:{n}" for n in range(1, 6)),
        *(f"films:{n},orders:5" for n in range(6, 11)),
        *(f"films:10,orders:{n}" for n in range(6, 11)),
        *(f"films:{n},orders:10" for n in range(11, 13)),
        *(f"films:12,orders:{n}" for n in range(11, 13)),
    ]
    assert max(stream.sizes) < 1_100_000
    # How large they are is known from the first.
    assert counts == [12, 12, 5, 5, 2, 2]
    await stream.close()


@pytest.mark.parametrize("is_in_tail", [True, False], ids=["tail", "log"])
async def test_client_that_names_long_channels_leaves_a_megabyte_in_memory(
    bus: BusTarget, is_in_tail: bool
) -> None:
    """The id of every event names all of them."""
    names = [f"{n}{255 * '!'}"[:255] for n in range(9)]
    if is_in_tail:
        reader = await Stream("orders", orders=0).open()
    await send(600)
    if is_in_tail:
        await get_hub().look()
        await get_hub().channels.filled(get_hub().channels["orders"])
        assert await reader.ids(600) == list(range(1, 601))
        await reader.close()
    stream = await Stream("orders", *names, orders=0).open()

    messages = [await stream.next() for _ in range(600)]

    assert [message.data for message in messages] == [str(n) for n in range(600)]
    assert max(stream.sizes) < 1_100_000
    await stream.close()


async def test_reset_of_a_channel_does_not_wait_for_its_turn(bus: BusTarget) -> None:
    """The ids of the other's events would name a position that the log may yet reach."""
    await send_large(12, "films")
    await send(1)
    stream = await Stream("films", "orders", films=0, orders=99).open()

    messages = [await stream.next() for _ in range(13)]

    assert [message.type for message in messages] == ["stream-reset"] + ["message"] * 12
    assert {message.id.partition(",")[2] for message in messages} == {"orders:1"}
    await stream.close()


async def test_reset_of_a_channel_comes_before_what_the_tail_of_another_has(
    bus: BusTarget,
) -> None:
    """A client cut off between the two would come back with what the log may yet reach."""
    await send(1)
    reader = await Stream("films", films=0).open()
    await send(3, "films")
    await publish(bus, 1, 2, 3, channel="films")
    assert await reader.ids(3) == [1, 2, 3]
    stream = await Stream("films", "orders", films=0, orders=99).open()

    messages = [await stream.next() for _ in range(4)]

    assert [(message.type, message.id) for message in messages] == [
        ("stream-reset", "films:0,orders:1"),
        *(("message", f"films:{n},orders:1") for n in range(1, 4)),
    ]
    await reader.close()
    await stream.close()


@pytest.mark.parametrize(("user_id", "skipped"), [("", []), ("7", []), ("7", ["7"])])
async def test_large_events_of_the_tail_are_written_by_the_megabyte(
    bus: BusTarget, user_id: str, skipped: list[str]
) -> None:
    stream = await Stream("orders", user_id=user_id).open()
    await send_large(6, skip_user_ids=skipped)
    await send_large(6)
    await get_hub().look()
    state = get_hub().channels["orders"]
    await get_hub().channels.filled(state)
    assert len(state.tail) == 12

    expected = list(range(7 if skipped else 1, 13))
    assert await stream.ids(len(expected)) == expected
    assert max(stream.sizes) < 1_100_000
    await stream.close()


async def test_kicked_reader_gets_nothing_of_what_follows(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.Event()
    check = Permissions._check

    async def check_slowly(
        asked_of: Permissions, subscribers: list[object]
    ) -> list[object]:
        await asked.wait()
        return await check(asked_of, subscribers)  # type: ignore[arg-type, return-value]

    monkeypatch.setattr(Permissions, "_check", check_slowly)
    stream = await Stream("members", user_id="7").open()  # there is no such user
    kick = OutboxRow(0, 0, EventKind.KICK, "members", None, "kick", "7", "")
    await sync_to_async(bus.publish)(bus.encode(kick))
    await publish(bus, 1, channel="members")
    await asyncio.sleep(0.3)
    asked.set()

    message = await stream.next()
    assert (message.type, message.id) == ("stream-error", "error")
    with pytest.raises(StopAsyncIteration):
        await stream.next()


async def test_slow_channel_manager_holds_up_nobody_else(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def ask(*_: object) -> str:
        asked.set()
        may_answer.wait(60)  # longer than a stream is waited for
        return ""

    monkeypatch.setattr("eventstream.hub.permissions.ask_permission", ask)
    await send(2)
    kicked = [await Stream("members", user_id=str(n)).open() for n in range(9)]
    for number in range(9):
        get_hub().receive_kick("members", str(number))
    await sync_to_async(asked.wait)()

    stream = await Stream("orders", orders=0).open()

    assert await stream.ids(2) == [1, 2]
    may_answer.set()
    for each in [*kicked, stream]:
        await each.close()


@pytest.mark.parametrize("may_read", [True, False])
async def test_kicked_reader_is_sent_nothing_until_the_manager_could_be_asked(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch, may_read: bool
) -> None:
    refusal = sse.encode_error("forbidden", "no")
    answers: list[object] = [RuntimeError("away"), "" if may_read else refusal]

    def ask(*_: object) -> object:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("eventstream.hub.permissions.ask_permission", ask)
    stream = await Stream("members", user_id="7").open()
    kick = OutboxRow(0, 0, EventKind.KICK, "members", None, "kick", "7", "")
    await sync_to_async(bus.publish)(bus.encode(kick))
    await publish(bus, 1, channel="members")

    message = await stream.next()

    assert answers == []  # so the stream was silent while it failed
    assert message.type == ("message" if may_read else "stream-error")
    await stream.close()


async def test_permissions_are_asked_again_at_the_interval(
    bus: BusTarget, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_PERMISSION_INTERVAL = 0.1
    failures = 0
    ask = permissions.ask_permission

    def fail_once(*arguments: object) -> str:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise RuntimeError("away")
        return ask(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("eventstream.hub.permissions.ask_permission", fail_once)
    idle = await Stream("members", user_id="7").open()  # there is no such user

    message = await idle.next(10)

    assert (message.type, failures) == ("stream-error", 2)
    assert json.loads(message.data)["condition"] == "forbidden"


async def test_those_about_whom_nobody_answers_have_no_others_asked_about(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def ask(user_id: str, channels: tuple[str, ...]) -> str:
        asked.append(user_id)
        if user_id == "8":
            raise LookupError("no such room")
        return ""

    monkeypatch.setattr("eventstream.hub.permissions.ask_permission", ask)
    streams = [await Stream("members", user_id=n).open() for n in ("7", "8")]
    hub = get_hub()
    permissions, subscribers = hub._permissions, hub.channels.subscribers()
    asked.clear()

    async def tick(seconds: float) -> list[str]:
        permissions.tick(time.monotonic() + seconds, subscribers)
        if permissions._asking is not None:
            await asyncio.wait([permissions._asking])
        found = sorted(asked)
        asked.clear()
        return found

    assert await tick(61) == ["7", "8"]
    assert await tick(1) == []
    assert await tick(6) == ["8"]
    assert await tick(12) == ["8"]
    assert await tick(123) == ["7", "8"]
    for stream in streams:
        await stream.close()
    assert await tick(12) == []


async def send_after_a_kick() -> None:
    """Have a kick of user 7 and an event after it in the log; nothing is published."""

    def work() -> None:
        partition = partition_of("members")
        kick = Event(kind=EventKind.KICK, partition=partition, channel="members", type="kick", data="7")  # fmt: skip
        get_storage().append("default", [kick])
        send_event("members", "message", 0)
        drain_outbox()

    await sync_to_async(work)()


async def read_rows(channel: str) -> list[OutboxRow]:
    def work() -> list[OutboxRow]:
        partition = partition_of(channel)
        return (
            get_storage()
            .read_batch("default", partition, after=0, limit=100, target="")
            .rows
        )

    return await sync_to_async(work)()


async def test_kick_that_the_bus_lost_comes_before_the_event_after_it(
    bus: BusTarget,
) -> None:
    stream = await Stream("members", user_id="7").open()  # there is no such user
    other = await Stream("members").open()
    await send_after_a_kick()
    _, event = await read_rows("members")
    assert event.kicked == ",7,"

    await sync_to_async(bus.publish)(bus.encode(event))

    assert (await stream.next()).type == "stream-error"
    assert (await other.next()).type == "message"
    await other.close()


async def test_kick_is_found_with_the_page_that_a_reader_is_behind(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was read with it nothing is sent until the permission was asked again."""
    await send(1, "members")
    stream = await Stream("members", user_id="7", members=0).open()
    await send_after_a_kick()
    ask, may_answer = permissions.ask_permission, threading.Event()

    def wait(user_id: str, channels: tuple[str, ...]) -> str:
        assert may_answer.wait(15)
        return ask(user_id, channels)

    monkeypatch.setattr(permissions, "ask_permission", wait)
    reading = asyncio.create_task(stream.next())
    await asyncio.wait([reading], timeout=0.5)
    assert not reading.done()
    may_answer.set()

    assert (await reading).type == "stream-error"


async def test_kick_is_found_with_the_events_that_fill_a_gap(bus: BusTarget) -> None:
    stream = await Stream("members", user_id="7").open()
    await send_after_a_kick()
    await send(2, "members")

    await publish(bus, 3, channel="members")

    assert (await stream.next()).type == "stream-error"


@pytest.mark.parametrize("is_on_bus", [True, False])
async def test_kick_that_was_pruned_unheard_ends_the_stream(
    bus: BusTarget, settings: Settings, is_on_bus: bool
) -> None:
    """The web process could not read the log for long, and the bus was away meanwhile."""
    settings.EVENTSTREAM_RETENTION = 60
    stream = await Stream("members", user_id="7").open()  # there is no such user
    other = await Stream("members").open()
    get_hub()._log._looked_at["default"] -= 30
    await send_after_a_kick()
    await Event.objects.filter(kind=EventKind.KICK).adelete()

    if is_on_bus:
        await publish(bus, 1, channel="members")
    else:
        await get_hub().look()

    assert (await stream.next()).type == "stream-error"
    assert (await other.next()).type == "message"
    await other.close()


async def test_kick_between_check_and_start_ends_the_stream(bus: BusTarget) -> None:
    checked_at = time.monotonic()
    first = await Stream("members", user_id="8").open()
    get_hub().receive_kick("members", "7")
    await send(1, "members")

    stream = Stream("members", user_id="7", members=0, checked_at=checked_at)

    assert [(await stream.next()).type for _ in range(2)] == [
        "stream-open",
        "stream-error",
    ]
    await first.close()


async def test_kick_is_kept_in_mind_until_streams_checked_before_have_begun(
    bus: BusTarget,
) -> None:
    checked_at = time.monotonic()
    first = await Stream("members", user_id="8").open()
    get_hub().receive_kick("members", "7")
    asked = get_hub()._permissions
    asked.tick(checked_at + 59, set())

    stream = await Stream("members", user_id="7", checked_at=checked_at).open()

    assert (await stream.next()).type == "stream-error"
    asked.tick(checked_at + 62, set())
    assert not asked._kicks
    await first.close()


async def test_kick_before_the_hub_has_looked_ends_the_stream(bus: BusTarget) -> None:
    """Permission was asked before it, and the log is past it when the hub begins."""
    checked_at = time.monotonic()
    await get_hub().close()
    await send_after_a_kick()

    stream = Stream("members", user_id="7", checked_at=checked_at)

    assert (await stream.next()).type == "stream-open"
    await publish(bus, 2, channel="members")
    assert (await stream.next()).type == "stream-error"


async def test_kick_in_the_moment_in_which_the_hub_looks_ends_the_stream(
    bus: BusTarget,
) -> None:
    """By a clock that does not tell it from the moment when permission was asked."""
    await get_hub().close()
    await send_after_a_kick()
    first = await Stream("members").open()
    checked_at = get_hub()._log.heard_since

    stream = Stream("members", user_id="7", checked_at=checked_at)

    assert (await stream.next()).type == "stream-open"
    assert (await stream.next()).type == "stream-error"
    await first.close()


async def test_kick_between_two_looks_that_are_both_the_first_is_heard(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await get_hub().close()
    heard: list[str] = []
    run, is_read, may_go_on = ReaderPool.run, asyncio.Event(), asyncio.Event()

    async def wait(pool: ReaderPool, call: object, *aliases: str) -> object:
        found: object = await run(pool, call, *aliases)  # type: ignore[arg-type]
        if not is_read.is_set():
            is_read.set()
            await may_go_on.wait()
        return found

    monkeypatch.setattr(ReaderPool, "run", wait)
    pool = ReaderPool(2)
    log = Log(pool, lambda channel, user_id: heard.append(user_id), lambda: None)
    first = asyncio.create_task(log.look("default"))
    await is_read.wait()
    await send_after_a_kick()
    second = asyncio.create_task(log.look("default"))
    await asyncio.sleep(0.1)
    may_go_on.set()
    await asyncio.gather(first, second)
    await pool.close()

    assert heard == ["7"]


async def test_hub_that_is_told_of_new_events_looks_once(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = count_looks(monkeypatch)

    get_hub()._look_soon["default"].set()
    async with asyncio.timeout(10):
        await looks.acquire()

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await looks.acquire()


async def test_look_goes_on_though_a_channel_is_left_meanwhile(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await (await Stream("films").open()).close()
    stream = await Stream("orders").open()
    await send(2)
    current_ids = Log.current_ids

    async def leave(log: Log, using: str, names: list[str]) -> dict[str, int]:
        assert "films" in names
        await get_hub().channels.leave_idle(math.inf)
        return await current_ids(log, using, names)

    monkeypatch.setattr(Log, "current_ids", leave)
    await get_hub().look(is_full=True)

    assert await stream.ids(2) == [1, 2]
    await stream.close()


@pytest.mark.parametrize("step", ["current_ids", "read"])
async def test_look_that_could_not_be_finished_is_taken_up_by_the_next(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The heads were read, and what was to follow failed: nothing else would come for it."""
    stream = await Stream("orders").open()
    await send(2)
    work, failures = getattr(Log, step), 0

    async def fail_once(log: Log, *arguments: object) -> object:
        nonlocal failures
        failures += 1
        if failures == 1:
            raise OperationalError("too many clients")
        return await work(log, *arguments)

    monkeypatch.setattr(Log, step, fail_once)
    for _ in range(2):
        with contextlib.suppress(OperationalError):
            await get_hub().look()
        await asyncio.sleep(0.1)  # what a look has begun goes on by itself

    assert await stream.ids(2) == [1, 2]
    await stream.close()


async def test_one_of_those_whose_join_failed_begins_the_next(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two joins at once: the later would put the head above a tail that ends before it."""
    is_asked, is_down, joins = asyncio.Event(), asyncio.Event(), 0

    async def current_ids(log: Log, using: str, names: list[str]) -> dict[str, int]:
        nonlocal joins
        joins += names == ["orders"]  # and not the hub's own looks
        if joins == 1 and names == ["orders"]:
            is_asked.set()
            await is_down.wait()
            raise OperationalError("down")
        await asyncio.sleep(0.1)
        return dict.fromkeys(names, 0)

    monkeypatch.setattr(Log, "current_ids", current_ids)
    channels = get_hub().channels
    state = channels.add("orders", is_reliable=True)

    async def join() -> bool:
        try:
            await channels.join(state)
        except OperationalError:
            return False
        return True

    early = [asyncio.create_task(join()) for _ in range(2)]
    await is_asked.wait()
    is_down.set()
    # In the same round of the loop in which the join fails, and after those who waited.
    late = [asyncio.create_task(join()) for _ in range(2)]
    await asyncio.wait(early)
    late.append(asyncio.create_task(join()))

    assert await asyncio.gather(*early) == [False, False]
    assert all(await asyncio.gather(*late[1:]))
    assert joins == 2


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
@pytest.mark.parametrize("is_gap", [True, False])
async def test_first_event_of_a_channel_is_found_in_whichever_database(
    bus: BusTarget, settings: Settings, is_gap: bool
) -> None:
    """As long as no database has one, nobody knows where it will be sent to."""
    settings.EVENTSTREAM_DATABASES = ["default", "other"]
    await get_hub().close()  # it is to look at both from the beginning
    stream = await Stream("orders").open()

    def work() -> None:
        for number in range(3):
            send_event("orders", "message", number, using="other")
        get_storage().number_all("other", partition_of("orders"))

    await sync_to_async(work)()
    if is_gap:
        await publish(bus, 1, 3)
    else:
        await get_hub().look()

    assert await stream.ids(3) == [1, 2, 3]
    await stream.close()


@contextlib.contextmanager
def database_away(alias: str) -> Iterator[None]:
    """Have every statement fail that this database is asked."""

    def execute(self: CursorWrapper, *arguments: Any) -> object:
        if self.db.alias == alias:
            raise OperationalError("server closed the connection unexpectedly")
        return original(self, *arguments)

    original = CursorWrapper._execute  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CursorWrapper, "_execute", execute)
        yield


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_database_that_is_away_stops_no_stream_of_another(
    bus: BusTarget, settings: Settings
) -> None:
    settings.EVENTSTREAM_DATABASES = ["other", "default"]
    await get_hub().close()  # it is to look at both from the beginning
    await send(1)

    with database_away("other"):
        stream = await Stream("orders", orders=0).open()
        assert await stream.ids(1) == [1]
        await send(1)
        with pytest.raises(OperationalError):
            await get_hub().look()
        assert await stream.ids(1) == [2]
        with pytest.raises(StopAsyncIteration):
            await Stream("nobody-knows-where").open()
        await (await Stream("live-x").open()).close()  # in no database
    await stream.close()


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_database_that_hangs_stops_no_stream_of_another(
    bus: BusTarget, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_DATABASES = ["default", "other"]
    settings.EVENTSTREAM_POLL_INTERVAL = 0.1
    await get_hub().close()
    may_go_on = threading.Event()
    heads = DjangoModelStorage.heads

    def hang(storage: DjangoModelStorage, using: str) -> dict[int, int]:
        if using == "other":
            may_go_on.wait(20)
        return heads(storage, using)

    monkeypatch.setattr(DjangoModelStorage, "heads", hang)
    await send(1)
    stream = await Stream("orders", orders=0).open()
    await send(1)

    assert await stream.ids(2) == [1, 2]
    may_go_on.set()
    await stream.close()


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_database_that_ceases_to_answer_takes_not_every_thread(
    bus: BusTarget, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_DATABASES = ["default", "other"]
    await get_hub().close()
    names = [f"elsewhere-{number}" for number in range(5)]

    def work() -> None:
        for name in names:
            send_event(name, "message", 1, using="other")
        send_event("orders", "message", 1)
        for using in ("default", "other"):
            drain_outbox(using)

    await sync_to_async(work)()
    await (await Stream(names[0], "orders").open()).close()
    may_go_on = threading.Event()
    current_ids = DjangoModelStorage.current_ids

    def hang(
        storage: DjangoModelStorage, using: str, channels: Collection[str]
    ) -> dict[str, int]:
        if using == "other":
            may_go_on.wait(20)
        return current_ids(storage, using, channels)

    monkeypatch.setattr(DjangoModelStorage, "current_ids", hang)
    others = [asyncio.create_task(Stream(name).open()) for name in names[1:]]
    await asyncio.sleep(0.1)
    try:
        stream = await Stream("orders", orders=0).open()
        assert await stream.ids(1) == [1]
    finally:
        may_go_on.set()
    for each in [stream, *await asyncio.gather(*others)]:
        await each.close()


@pytest.mark.django_db(transaction=True, databases=["default", "other"])
async def test_kick_of_which_a_database_has_not_told_since_the_hub_began_is_heard(
    bus: BusTarget, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be sent `using` another than the channel's, of which no stream waits."""
    settings.EVENTSTREAM_DATABASES = ["default", "other"]
    await get_hub().close()
    await send(1, "members")
    looks = count_looks(monkeypatch)
    with database_away("other"):
        await (await Stream("members").open()).close()
        stream = await Stream("members", user_id="7").open()  # there is no such user
        for _ in range(4):  # at both, as it began and once the bus was whole
            await looks.acquire()

    def work() -> None:
        kick_7("members", using="other")

    await sync_to_async(work)()
    await get_hub().look()

    assert (await stream.next()).type == "stream-error"
    await stream.close()


async def test_best_effort_stream_opens_once_its_kicks_are_heard_of(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await get_hub().close()  # the next has not looked at any database yet
    may_look = asyncio.Event()
    original = Log._look

    async def look(log: Log, using: str) -> Any:
        await may_look.wait()
        return await original(log, using)

    monkeypatch.setattr(Log, "_look", look)
    opening = asyncio.ensure_future(Stream("live-x").open())
    done, _ = await asyncio.wait([opening], timeout=1)
    assert not done

    may_look.set()
    await (await opening).close()


async def test_best_effort_events_of_one_message_all_arrive(bus: BusTarget) -> None:
    stream = await Stream("live-x").open()
    rows = [
        OutboxRow(0, 0, EventKind.EVENT, "live-x", None, "message", text, "")
        for text in ("a", "b", "c")
    ]

    await sync_to_async(bus.publish)([item for r in rows for item in bus.encode(r)])

    assert [(await stream.next()).data for _ in range(3)] == ["a", "b", "c"]
    await stream.close()


@contextlib.asynccontextmanager
async def joining(
    monkeypatch: pytest.MonkeyPatch, stream: Stream
) -> AsyncIterator[None]:
    """Open a stream; its channel's head has been read, and is not known before the end."""
    is_read, may_go_on = asyncio.Event(), asyncio.Event()
    current_ids = Log.current_ids

    async def wait(log: Log, using: str, names: list[str]) -> dict[str, int]:
        found = await current_ids(log, using, names)
        # Joining asks for one channel; looks, for all that there are, "other" as well.
        if names == ["orders"] and not is_read.is_set():
            is_read.set()
            await may_go_on.wait()
        return found

    monkeypatch.setattr(Log, "current_ids", wait)
    opening = asyncio.create_task(stream.open())
    await is_read.wait()
    yield
    may_go_on.set()
    await opening


async def test_look_while_a_channel_is_joined_begins_no_tail(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tail from before would not end at the head that joining finds."""
    await send(8)
    await (await Stream("other").open()).close()
    channels = get_hub().channels
    stream = Stream("orders", orders=8)

    async with joining(monkeypatch, stream):
        await send(2)
        await channels.look("default", None)
        await channels.filled(channels["orders"])

    assert await stream.ids(2) == [9, 10]
    assert [item.place for item in channels["orders"].tail] == [9, 10]
    await stream.close()


async def test_event_that_comes_while_a_channel_is_joined_begins_no_tail(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(3)
    other = await Stream("other").open()
    stream = Stream("orders", orders=0)

    async with joining(monkeypatch, stream):
        await publish(bus, 1)
        await publish(bus, 1, channel="other")
        assert await other.ids(1) == [1]  # so the former has come as well

    assert await stream.ids(3) == [1, 2, 3]
    await stream.close()
    await other.close()


async def test_event_that_comes_while_a_channel_is_joined_is_not_between_head_and_bus(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever begins at the head that was read has it from nowhere else."""
    await send(3)
    other = await Stream("other").open()
    stream = Stream("orders")

    async with joining(monkeypatch, stream):
        await send(1)
        await publish(bus, 4)
        await publish(bus, 1, channel="other")
        assert await other.ids(1) == [1]  # so the former has come as well

    assert await stream.ids(1) == [4]
    await stream.close()
    await other.close()


async def test_channel_that_is_asked_for_while_the_bus_connects_is_heard_of(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await get_hub().close()
    subscribe, is_connecting, may_go_on = (
        PubSub.subscribe, asyncio.Event(), asyncio.Event(),
    )  # fmt: skip

    async def wait(pubsub: PubSub, *topics: str) -> None:
        is_connecting.set()
        await may_go_on.wait()
        await subscribe(pubsub, *topics)

    monkeypatch.setattr(PubSub, "subscribe", wait)
    monkeypatch.setattr("eventstream.hub.buslink._CONFIRM", 0.1)
    first = asyncio.create_task(Stream("first").open())
    await is_connecting.wait()
    stream = await Stream("orders").open()  # the bus may be down for good
    await send(1)  # published to nobody
    may_go_on.set()

    assert await stream.ids(1) == [1]
    await publish(bus, 2)
    assert await stream.ids(1) == [2]
    for each in (await first, stream):
        await each.close()


@pytest.mark.parametrize("step", ["current_ids", "_read_page"])
async def test_client_that_is_gone_takes_nobody_along(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """All who come together wait for one join, and for one read."""
    await send(3)
    work, is_asked, may_go_on = getattr(Log, step), asyncio.Event(), asyncio.Event()

    async def wait(log: Log, *arguments: object) -> object:
        is_asked.set()
        await may_go_on.wait()
        return await work(log, *arguments)

    monkeypatch.setattr(Log, step, wait)
    streams = [Stream("orders", orders=0) for _ in range(2)]
    gone, stays = (asyncio.create_task(read(stream, 4)) for stream in streams)
    await is_asked.wait()
    await asyncio.sleep(0.1)  # and both wait for it
    gone.cancel()
    await asyncio.wait([gone])
    may_go_on.set()

    assert await stays == ["orders:0", "orders:1", "orders:2", "orders:3"]
    await streams[1].close()


async def read(stream: Stream, count: int) -> list[str]:
    return [(await stream.next()).id for _ in range(count)]


async def test_client_that_is_gone_ends_no_filling(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever is ahead of the hub waits until it has come as far."""
    await send(3)
    behind = await Stream("orders", orders=3).open()
    await send(2)  # published to nobody
    work, is_asked, may_go_on = Log._read_page, asyncio.Event(), asyncio.Event()

    async def wait(log: Log, state: ChannelState, place: int) -> ChannelLog:
        if place == 3:
            is_asked.set()
            await may_go_on.wait()
        return await work(log, state, place)

    monkeypatch.setattr(Log, "_read_page", wait)
    ahead = await Stream("orders", orders=5).open()
    gone = asyncio.create_task(ahead.next())
    await is_asked.wait()
    await asyncio.sleep(0.1)
    gone.cancel()
    await asyncio.wait([gone])
    may_go_on.set()

    assert await behind.ids(2) == [4, 5]
    await behind.close()


@pytest.mark.parametrize("aliases", [["default"], []], ids=["its own", "whichever"])
async def test_call_whose_connection_was_cut_is_made_once_more_by_another(
    aliases: list[str],
) -> None:
    pool, used = ReaderPool(1), []

    def ask() -> str:
        connections["default"].ensure_connection()
        used.append(connections["default"].connection)
        if len(used) == 1:
            raise OperationalError("server closed the connection unexpectedly")
        return "answer"

    answer = await pool.run(ask, *aliases)
    await pool.close()

    assert answer == "answer"
    first, second = used
    assert first is not second


async def test_no_more_idle_channels_are_kept_than_there_is_room_for(
    bus: BusTarget, server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client may ask for any, ten at a time, and be gone."""
    monkeypatch.setattr("eventstream.hub.channels.MOST_IDLE", 3)
    channels = get_hub().channels
    read = await Stream("read").open()
    for number in range(6):
        await (await Stream(f"idle-{number}").open()).close()

    await channels.leave_idle(time.monotonic())

    kept = {"read", "idle-3", "idle-4", "idle-5"}
    assert {state.name for state in channels} == kept
    topics = {topic.encode() for topic in (kick_topic(), *map(event_topic, kept))}
    async with asyncio.timeout(30):
        while set(server.client.pubsub_channels()) != topics:  # noqa: ASYNC110  Redis tells nobody
            await asyncio.sleep(0.01)
    await read.close()


async def test_channel_that_is_being_joined_is_not_one_too_many(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reader has gone, and the bus is yet to confirm its subscription."""
    monkeypatch.setattr("eventstream.hub.channels.MOST_IDLE", 0)
    channels = get_hub().channels
    joined = channels.add("joined", is_reliable=True)

    await channels.leave_idle(time.monotonic())

    assert list(channels) == [joined]


async def test_channel_that_is_read_again_while_another_is_left_is_kept(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("orders", "other"):
        await (await Stream(name).open()).close()
    streams: dict[str, Stream] = {}
    unsubscribe = BusLink.unsubscribe

    async def open_meanwhile(link: BusLink, topic: str) -> None:
        if not streams:
            name = "other" if topic == event_topic("orders") else "orders"
            streams[name] = await Stream(name).open()
        await unsubscribe(link, topic)

    monkeypatch.setattr(BusLink, "unsubscribe", open_meanwhile)
    channels = get_hub().channels

    await channels.leave_idle(math.inf)

    assert [state.name for state in channels] == list(streams)
    for name, stream in streams.items():
        await publish(bus, 1, channel=name)
        assert await stream.ids(1) == [1]
        await stream.close()


async def lose(last_eid: int, channel: str = "orders") -> None:
    """Have a replica promoted that lacks the last commits."""

    def work() -> None:
        lost, _ = Event.objects.filter(channel=channel, eid__gt=last_eid).delete()
        Channel.objects.filter(name=channel).update(last_eid=last_eid)
        Partition.objects.filter(number=partition_of(channel)).update(
            last_position=F("last_position") - lost
        )

    await sync_to_async(work)()


async def test_readers_of_what_a_promoted_replica_lacks_are_reset(
    bus: BusTarget,
) -> None:
    await send(8)
    early = await Stream("orders", orders=8).open()
    await send(2)
    await get_hub().look()
    streams = [await Stream("orders", orders=0).open() for _ in range(2)]
    for stream in streams:
        assert await stream.ids(10) == list(range(1, 11))
    reader, slow = streams

    await lose(8)
    await get_hub().look()
    assert (await reader.next()).type == "stream-reset"
    await send(3)
    await get_hub().look()

    assert await reader.ids(3) == [9, 10, 11]
    # It had no time to look until there was again what it has seen by id.
    message = await slow.next()
    assert (message.type, message.id) == ("stream-reset", "orders:11")
    # And one that had not seen what is lost misses nothing.
    messages = [await early.next() for _ in range(3)]
    assert [(m.id, m.data) for m in messages] == [
        ("orders:9", "0"), ("orders:10", "1"), ("orders:11", "2"),
    ]  # fmt: skip
    for stream in (early, *streams):
        await stream.close()


@pytest.mark.parametrize("step", ["page", "beginning", "reset"])
async def test_page_of_a_log_that_has_lost_its_end_meanwhile_is_read_again(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Its last ids are of other events by the time that it would be written."""
    await send(10)
    await send(5, "more")
    await sync_to_async(Event.objects.filter(channel="more", eid__lt=3).delete)()
    is_read, may_go_on = asyncio.Event(), asyncio.Event()
    read_page, read_beginnings = Log._read_page, Beginnings.read

    async def wait() -> None:
        is_read.set()
        await may_go_on.wait()

    async def wait_with_page(log: Log, state: ChannelState, place: int) -> ChannelLog:
        found = await read_page(log, state, place)
        if state.name == "orders":
            await wait()
        return found

    async def wait_with_beginning(
        beginnings: Beginnings, subscriber: Subscriber, states: list[ChannelState]
    ) -> dict[str, str]:
        if states:
            await wait()
        return await read_beginnings(beginnings, subscriber, states)

    if step == "beginning":
        monkeypatch.setattr(Beginnings, "read", wait_with_beginning)
    else:
        monkeypatch.setattr(Log, "_read_page", wait_with_page)
    if step == "reset":
        await sync_to_async(Event.objects.filter(eid__lt=3).delete)()
    stream = await Stream("orders", "more", orders=0, more=0).open()
    following = asyncio.create_task(stream.next())
    await is_read.wait()
    await lose(8)
    await get_hub().look()
    await send(3)
    may_go_on.set()

    message = await following
    assert message.type == "stream-reset"
    if step == "reset":
        assert message.id == "more:5,orders:11"
        await stream.close()
        return
    messages = [await stream.next() for _ in range(11)]
    assert [m.id for m in messages] == [f"more:5,orders:{n}" for n in range(1, 12)]
    assert [m.data for m in messages[8:]] == ["0", "1", "2"]
    await stream.close()


async def test_answer_that_is_older_than_what_the_bus_has_brought_resets_nobody(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(1)
    stream = await Stream("orders", orders=1).open()
    current_ids, is_read, may_go_on = Log.current_ids, asyncio.Event(), asyncio.Event()

    async def wait(log: Log, using: str, names: list[str]) -> dict[str, int]:
        found = await current_ids(log, using, names)
        is_read.set()
        await may_go_on.wait()
        return found

    monkeypatch.setattr(Log, "current_ids", wait)
    look = asyncio.create_task(get_hub().look(is_full=True))
    await is_read.wait()
    await send(2)
    await publish(bus, 2)
    assert await stream.ids(1) == [2]
    may_go_on.set()
    await look
    await publish(bus, 3)

    message = await stream.next()
    assert (message.type, message.id) == ("message", "orders:3")
    await stream.close()


async def test_kick_where_the_log_had_another_position_before_is_heard(
    bus: BusTarget,
) -> None:
    await send(3, "members")
    await get_hub().look()
    stream = await Stream("members", user_id="7", members=1).open()
    assert await stream.ids(2) == [2, 3]

    await lose(1, "members")
    await send_after_a_kick()  # and not as many as were lost
    await lose(1, "members")
    await get_hub().look()

    assert (await stream.next()).type == "stream-error"
    await stream.close()


@pytest.mark.parametrize("step", ["current_ids", "_read_page"])
async def test_failure_that_nobody_waits_for_any_more_is_not_logged(
    bus: BusTarget,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    step: str,
) -> None:
    await send(1)
    is_asked, may_go_on = asyncio.Event(), asyncio.Event()

    async def fail(*_: object) -> None:
        is_asked.set()
        await may_go_on.wait()
        raise OperationalError("down")

    monkeypatch.setattr(Log, step, fail)
    stream = Stream("orders", orders=0)
    reading = asyncio.create_task(stream.ids(2))
    await is_asked.wait()
    reading.cancel()
    await asyncio.wait([reading])
    del reading, stream  # with all that their errors hold
    await get_hub().channels.leave_idle(math.inf)
    may_go_on.set()
    await asyncio.sleep(0.1)
    gc.collect()

    assert "never retrieved" not in caplog.text


async def test_reader_of_a_channel_that_was_pruned_past_the_hub_is_reset(
    bus: BusTarget,
) -> None:
    await send(3)
    stream = await Stream("orders", orders=3).open()
    await send(7)  # published to nobody
    await sync_to_async(Event.objects.filter(eid__lte=8).delete)()

    await get_hub().look()

    message = await stream.next()
    assert (message.type, message.id) == ("stream-reset", "orders:10")
    await send(1)
    await publish(bus, 11)
    assert await stream.ids(1) == [11]
    await stream.close()


async def test_hub_goes_on_from_where_a_reader_is_that_is_ahead_of_it(
    bus: BusTarget,
) -> None:
    """It would ask the log again and again for what follows its position."""
    await send(3)
    behind = await Stream("orders", orders=3).open()
    await send(2)  # published to nobody
    ahead = await Stream("orders", orders=5).open()
    following = asyncio.create_task(ahead.next())

    assert await behind.ids(2) == [4, 5]
    await publish(bus, 6)
    assert (await following).id == "orders:6"
    for stream in (behind, ahead):
        await stream.close()


async def test_kick_of_whom_nobody_holds_a_stream_keeps_no_other_unheard(
    bus: BusTarget,
) -> None:
    stream = await Stream("members", user_id="7").open()  # there is no such user

    def work() -> None:
        kick_7("nobody-s", "members")

    await sync_to_async(work)()
    await get_hub().look()

    assert (await stream.next()).type == "stream-error"
    await stream.close()


async def test_who_comes_while_the_process_ends_is_given_what_there_is_and_sent_on(
    bus: BusTarget,
) -> None:
    await send(2)
    get_hub()._end_streams()
    stream = await Stream("orders", orders=0).open()

    assert await stream.ids(2) == [1, 2]
    with pytest.raises(StopAsyncIteration):
        await stream.next()


async def test_keep_alive_is_one_and_for_who_has_been_sent_nothing(
    bus: BusTarget, settings: Settings
) -> None:
    settings.EVENTSTREAM_KEEP_ALIVE = 60
    hub, stream = get_hub(), await Stream("orders").open()
    [subscriber] = hub.channels["orders"].subscribers
    subscriber.written_at -= 61
    await publish(bus, 1)
    assert await stream.ids(1) == [1]
    following = asyncio.ensure_future(anext(stream._chunks))
    await asyncio.sleep(0)  # it waits for more

    await hub._tick(time.monotonic())
    assert not subscriber.is_due
    await hub._tick(time.monotonic() + 61)

    assert await following == sse.KEEP_ALIVE.encode()
    assert await stream.is_silent(0.3)


async def test_thousand_that_come_back_at_once_share_a_read(
    bus: BusTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    await send(100)
    reads = 0
    read = ReaderPool.run

    async def count(pool: ReaderPool, call: object, *aliases: str) -> object:
        nonlocal reads
        reads += 1
        return await read(pool, call, *aliases)  # type: ignore[arg-type]

    monkeypatch.setattr(ReaderPool, "run", count)
    streams = [Stream("orders", orders=0) for _ in range(1000)]

    await asyncio.gather(*[stream.open() for stream in streams])
    found = await asyncio.gather(*[stream.ids(100) for stream in streams])

    assert all(ids == list(range(1, 101)) for ids in found)
    assert reads <= 20  # looks at heads included
    for stream in streams:
        await stream.close()


def test_tail_that_begins_anew_has_nothing_from_before() -> None:
    """Not even what was encoded: the same ids may be those of other events by now."""
    state = ChannelState("orders", is_reliable=True)
    state.extend([LogEvent(eid, "message", "old", "") for eid in (1, 2, 3)])
    assert state.chunk_after(2) == (3, b"id: orders:3\nevent: message\ndata: old\n\n")

    state.go_back(2)
    assert (state.head, state.start, list(state.tail)) == (2, 2, [])
    state.extend([LogEvent(3, "message", "new", "")])
    assert state.chunk_after(2) == (3, b"id: orders:3\nevent: message\ndata: new\n\n")

    state.start_from(10)
    assert (state.head, state.start, state.tail_bytes) == (10, 10, 0)


def test_events_that_do_not_follow_are_not_taken() -> None:
    state = ChannelState("orders", is_reliable=True)
    state.extend([LogEvent(1, "message", "a", ""), LogEvent(3, "message", "c", "")])

    assert (state.head, [item.place for item in state.tail]) == (1, [1])


def test_tail_stays_within_its_bytes_at_both_ends(settings: Settings) -> None:
    """The page that the first reader of many has read is not kept whole, if it is large."""
    settings.EVENTSTREAM_QUEUE_BYTES = 10_000
    settings.EVENTSTREAM_QUEUE_LENGTH = 100
    data = "x" * 1_500
    state = ChannelState("orders", is_reliable=True)
    state.start_from(20)

    rows = [(n, "message", data, "", 20, False) for n in range(1, 21)]
    state.prepend(ChannelLog(rows, 20, is_reset=False))
    assert [item.place for item in state.tail] == [15, 16, 17, 18, 19, 20]
    assert state.tail_bytes == sum(item.size for item in state.tail) <= 10_000

    state.extend([LogEvent(n, "message", data, "") for n in (21, 22)])
    assert [item.place for item in state.tail] == [17, 18, 19, 20, 21, 22]
    assert state.tail_bytes == sum(item.size for item in state.tail) <= 10_000
