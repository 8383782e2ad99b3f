"""Random histories of a web process that holds streams itself.

What the hub asks of the database, and what the bus brings, is on its way until the history
lets it go on, and time passes when the history says so. Meanwhile events are sent, numbered,
published (again, too) and pruned, permissions are withdrawn, the bus is cut, the database is
away, and clients stand still, are cut off and come back. What is written at once is an event, a
few, or all. Each client judges what it receives as it receives it.
"""

from __future__ import annotations

import asyncio
import json
import os
import selectors
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from random import Random, randrange
from typing import Any, TypeVar
from unittest import mock

import pytest
from django.contrib.auth.models import Group, User
from django.db import OperationalError
from pytest_django import Settings

from eventstream import channel_permission_changed, send_event
from eventstream.hub import get_hub, streams, subscribers, switchboard, tails
from eventstream.hub import log as hub_log
from eventstream.hub.buslink import BusLink
from eventstream.hub.subscribers import Subscriber
from eventstream.hub.switchboard import Hub
from eventstream.models import Channel, Cursor, Event, Partition
from eventstream.positions import parse_position
from eventstream.reading import Reader
from eventstream.rows import partition_of
from eventstream.storage import get_storage
from eventstream.targets import bus as bus_target
from eventstream.targets.bus import BusTarget
from tests.support.sse import Message, Parser

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

T = TypeVar("T")

collect = Subscriber.collect

CHANNELS = ["a", "members"]
HISTORIES = int(os.environ.get("ES_HISTORIES", "60"))
STEPS = 150
MOST_CLIENTS = 6
SETTLED = 25
"""Turns of the loop after which nothing is left to do but what waits."""
MOST_TURNS = 100_000
"""How often streams look for more, at once, before they are said to go in circles."""
RETENTION = 60
"""Seconds: less than what may pass at once."""
RECOVERY_SECONDS = 120.0
"""After which every client must have everything: a look at the log, and permissions again."""


class Selector(selectors.SelectSelector):
    """Waits for nothing: the time that would be waited passes at once."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1_000.0

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found:
            assert timeout is not None, "nothing will ever happen in this loop"
            self.now += max(0.0, timeout)
        return found


class Loop(asyncio.SelectorEventLoop):
    """An event loop with a time of its own."""

    def __init__(self) -> None:
        self.selector = Selector()
        super().__init__(self.selector)

    def time(self) -> float:
        return self.selector.now


class Roads:
    """Where all that is on its way waits until it may go on, or fails."""

    def __init__(self) -> None:
        self.waiting: list[tuple[str, asyncio.Future[bool]]] = []
        self.is_open = False

    async def wait(self, name: str) -> bool:
        """Return whether to go on."""
        if self.is_open:
            return True
        entry = (name, asyncio.get_running_loop().create_future())
        self.waiting.append(entry)
        try:
            goes_on: bool = await entry[1]
        finally:
            if entry in self.waiting:  # cancelled
                self.waiting.remove(entry)
        return goes_on

    def go_on(self, index: int, *, fails: bool = False) -> None:
        _, future = self.waiting.pop(index)
        if not future.done():
            future.set_result(not fails)


class Pool:
    """Stands in for the hub's threads: the loop runs what they would, when it may."""

    world: World

    def __init__(self, thread_count: int) -> None:
        self.slots = asyncio.Semaphore(thread_count)

    async def run(self, call: Callable[[], T], *aliases: str) -> T:
        name = getattr(getattr(call, "func", call), "__name__", "call")
        if name in {"report", "measure", "sign_off"}:  # in no stream's way
            return call()
        if not await self.world.roads.wait(f"{name} begins"):
            raise OperationalError("the database is away")
        result = call()
        if not await self.world.roads.wait(f"{name} is answered"):
            raise OperationalError("the connection was cut")
        return result

    async def close(self) -> None:
        pass


class Bus(BusLink):
    """Stands in for the connection to Redis: what is published waits in it."""

    world: World

    def __init__(self, receiver: Any) -> None:
        super().__init__(receiver)
        self.subscribed: set[str] = set()
        self.queue: deque[tuple[str, bytes]] = deque()
        self.subscribed |= self._topics
        self._is_up = True

    @property
    def is_up(self) -> bool:
        return self._is_up

    def restore(self) -> None:
        self._is_up = True
        self.subscribed = set(self._topics)
        self._receiver.bus_is_whole()

    def cut(self) -> None:
        self._is_up = False
        self.subscribed.clear()
        self.queue.clear()

    def publish(self, topic: str, payload: bytes) -> None:
        if topic in self.subscribed:
            self.queue.append((topic, payload))

    def deliver(self) -> None:
        self._take(*self.queue.popleft())

    async def subscribe(self, topic: str) -> None:
        self._topics.add(topic)
        await self.world.roads.wait(f"subscribing to {topic}")
        if self._is_up and topic in self._topics:
            self.subscribed.add(topic)

    async def unsubscribe(self, topic: str) -> None:
        self._topics.discard(topic)
        await self.world.roads.wait(f"unsubscribing from {topic}")
        self.subscribed &= self._topics

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()


class Client:
    """A browser: what it has received, and whether that is what it was promised.

    Attributes:
        places: Its event id in each channel; before the first event of a stream without any,
            where the streams of its channels may begin at most.
    """

    def __init__(
        self, world: World, channels: tuple[str, ...], user_id: str,
        positions: Mapping[str, int],
    ) -> None:  # fmt: skip
        self.world = world
        self.channels = channels
        self.user_id = user_id
        self.places = dict(positions)
        self.is_open = False
        self.is_refused = False
        self.may_read = asyncio.Event()
        self.may_read.set()
        self._parser = Parser()
        reader = Reader(channels, user_id, dict(positions), time.monotonic())
        self.task = asyncio.get_running_loop().create_task(self._read(reader))

    @property
    def is_over(self) -> bool:
        return self.task.done()

    async def _read(self, reader: Reader) -> None:
        await self.world.roads.wait("a stream begins")
        chunks = get_hub().stream(reader)
        try:
            async for chunk in chunks:
                await self.may_read.wait()
                for message in self._parser.feed(chunk):
                    self._take(message)
        finally:
            await chunks.aclose()  # type: ignore[attr-defined]

    def _take(self, message: Message) -> None:
        if message.type == "keep-alive":
            return
        if message.type == "stream-error":
            assert json.loads(message.data)["condition"] == "forbidden"
            assert self.user_id, "nobody has anything to forbid"
            self.is_refused = True
            return
        found = parse_position(message.id)
        if message.type == "stream-open":
            for name, place in self.places.items():
                assert found[name] == place, f"the stream begins at {found}"
            for name in self.channels:
                assert found[name] <= self.world.last_id(name)
            self.is_open = True
            self.places = found
        elif message.type == "stream-reset":
            lost = json.loads(message.data)["channels"]
            for name in lost:
                # Or what was there is there no more.
                assert self.places[name] < self.world.pruned.get(name, 0)
                assert self.places[name] < found[name] <= self.world.last_id(name)
            self._check_others(found, lost)
            self.places = found
        else:
            name, _, number = message.data.partition(":")
            eid = self._passed(name) + 1
            assert found[name] == eid, f"{found} after {self.places}"
            self._check_others(found, [name])
            assert message.data == self.world.committed[name][eid - 1]
            withdrawn = self.world.withdrawn.get(name)
            assert not self.user_id or withdrawn is None or int(number) <= withdrawn
            self.places = found
            if not self.world.roads.is_open:
                self.world.counts["events"] += 1

    def _check_others(self, found: Mapping[str, int], moved: list[str]) -> None:
        """See that no other channel's place has moved, but past what is not for the user."""
        assert found.keys() == set(self.channels)
        for name in set(self.channels) - set(moved):
            assert self.places[name] <= found[name] <= self._passed(name)

    def _passed(self, channel: str) -> int:
        """Return the last id up to which there is nothing more for this client."""
        place = self.places[channel]
        while self.user_id and (channel, place + 1) in self.world.skipping:
            place += 1
        return place

    @property
    def has_all(self) -> bool:
        return self.is_open and all(
            self._passed(name) >= self.world.last_id(name) for name in self.channels
        )


class World:
    """What there is besides the hub, and what may happen next."""

    def __init__(self, random: Random, *, has_bus: bool) -> None:
        for model in (Event, Channel, Partition, Cursor, User, Group):
            model._default_manager.all().delete()
        self.group = Group.objects.create(name="members")
        self.user = User.objects.create(username="u")
        self.user.groups.add(self.group)
        self.random = random
        self.has_bus = has_bus
        self.roads = Roads()
        self.committed: dict[str, list[str]] = {name: [] for name in CHANNELS}
        self.skipping: set[tuple[str, int]] = set()
        self.pruned: dict[str, int] = {}
        self.withdrawn: dict[str, int] = {}
        self.published: dict[int, int] = {}
        self.written: list[tuple[float, int]] = []
        self.clients: list[Client] = []
        self.counts: Counter[str] = Counter()
        self.history: list[str] = []
        self.loop = Loop()
        self.turns = 0
        Pool.world = Bus.world = self
        actions = {
            self.send: 10, self.number: 8, self.some_go_on: 30, self.one_fails: 4,
            self.time_passes: 5, self.prune: 3, self.withdraw_or_permit: 1,
            self.join: 4, self.stand_still: 3, self.cut_off: 2,
        }  # fmt: skip
        if has_bus:
            actions |= {self.publish: 10, self.deliver: 15, self.cut_the_bus: 1}
        self._actions = list(actions)
        self._weights = list(actions.values())

    def go(self, steps: int) -> None:
        """Live through a history, and let everything recover."""
        try:
            for _ in range(steps):
                (action,) = self.random.choices(self._actions, self._weights)
                action()
            self.recover()
        except Exception as error:
            error.add_note("\n".join(self.history[-60:]))
            raise
        finally:
            self._close()

    def note(self, text: str) -> None:
        self.history.append(text)

    def collect(self, subscriber: Subscriber) -> Any:
        """See that a stream that looks for more waits until there is something."""
        self.turns += 1
        assert self.turns < MOST_TURNS, "streams go in circles"
        return collect(subscriber)

    def last_id(self, channel: str) -> int:
        return get_storage().current_ids("default", [channel])[channel]

    def _run(self, action: Callable[[], object], seconds: float = 0) -> None:
        """Do something in the loop; let it settle, or let time pass."""
        self.turns = 0

        async def work() -> None:
            action()
            await asyncio.sleep(seconds)
            for _ in range(SETTLED):
                await asyncio.sleep(0)

        with mock.patch("time.monotonic", self.loop.time):
            self.loop.run_until_complete(work())
        for client in self.clients:
            if client.is_over and not client.task.cancelled():
                client.task.result()

    def _bus(self) -> Bus | None:
        hub = switchboard._hubs.get(self.loop)
        return None if hub is None else hub._bus  # type: ignore[return-value]

    def _channel(self) -> str:
        return self.random.choice(CHANNELS)

    # --- senders and relays

    def send(self) -> None:
        channel = self._channel()
        sent = self.committed[channel]
        for _ in range(self.random.randint(1, 4)):
            data = f"{channel}:{len(sent) + 1}"
            skipped = [self.user.pk] if self.random.random() < 0.2 else []
            send_event(channel, "message", data, skipped, json_encode=False)
            sent.append(data)
            if skipped:
                self.skipping.add((channel, len(sent)))
        self._note_age()
        self.note(f"sent up to {sent[-1]}")

    def _note_age(self) -> None:
        """Note when rows were written, by the loop's time."""
        last = Event.objects.values_list("pk", flat=True).latest("pk")
        self.written.append((self.loop.time(), last))

    def number(self) -> None:
        partition = partition_of(self._channel())
        limit = self.random.choice([1, 3, 20])
        self._run(lambda: get_storage().number_batch("default", partition, limit=limit))
        self.note(f"numbered {limit} of partition {partition}")

    def publish(self) -> None:
        """As a relay does it, or one that is late and does it again."""
        partition = partition_of(self._channel())
        done = self.published.get(partition, 0)
        after = max(0, done - self.random.choice([0, 0, 0, 1, 3]))
        limit = self.random.randint(1, 4)
        batch = get_storage().read_batch(
            "default", partition, after=after, limit=limit, target="bus"
        )
        if batch.rows:
            self.published[partition] = max(done, batch.rows[-1].position)
        target = BusTarget({})
        items = [item for row in batch.rows for item in target.encode(row)]
        bus = self._bus()
        for topic, payload in bus_target._messages(items):
            if bus is not None:
                bus.publish(topic, payload)
            self.note(f"published to {topic}: {payload.decode()}")

    def deliver(self) -> None:
        bus = self._bus()
        if bus is not None and bus.queue:
            self.note(f"delivered: {bus.queue[0]}")
            self.counts["messages"] += 1
            self._run(bus.deliver)

    def cut_the_bus(self) -> None:
        """Until it is whole again, in a while."""
        bus = self._bus()
        if bus is not None and bus.is_up:
            self.note("bus cut")
            bus.cut()

    def _restore(self) -> None:
        bus = self._bus()
        if bus is not None and not bus.is_up:
            self.note("bus restored")
            bus.restore()

    def prune(self) -> None:
        """The oldest of a partition go, whatever their channel."""
        until = self.loop.time() - RETENTION
        old = max((last for at, last in self.written if at < until), default=0)
        rows = Event.objects.filter(
            partition=partition_of(self._channel()), position__isnull=False, pk__lte=old
        ).order_by("position")[: self.random.randint(1, 8)]
        for row in rows:
            self.counts["pruned"] += 1
            if row.eid is not None:
                self.pruned[row.channel] = row.eid
        Event.objects.filter(pk__in=[row.pk for row in rows]).delete()
        self.note(f"pruned up to {self.pruned}")

    # --- the web process

    def some_go_on(self) -> None:
        for _ in range(self.random.randint(1, 5)):
            self._go_on(fails=False)

    def one_fails(self) -> None:
        self._go_on(fails=True)

    def _go_on(self, *, fails: bool) -> None:
        if self.roads.waiting:
            index = self.random.randrange(len(self.roads.waiting))
            name = self.roads.waiting[index][0]
            self.note(f"{name}{', and fails' if fails else ''}")
            self._run(lambda: self.roads.go_on(index, fails=fails))

    def time_passes(self) -> None:
        seconds = self.random.choice([0.3, 1.1, 3.0, 11.0, 65.0])
        self.note(f"{seconds} s pass")
        if self.random.random() < 0.5:
            self._run(self._restore)
        self._run(lambda: None, seconds)

    # --- permissions

    def withdraw_or_permit(self) -> None:
        if self.withdrawn:
            self.withdrawn = {}
            self.user.groups.add(self.group)
        else:
            self.withdrawn = {"members": len(self.committed["members"])}
            self.user.groups.clear()
            channel_permission_changed(self.user, "members")
            self._note_age()
        self.note(f"withdrawn: {self.withdrawn}")

    # --- clients

    def join(self) -> None:
        self.clients = [client for client in self.clients if not client.is_over]
        if len(self.clients) >= MOST_CLIENTS:
            return
        count = self.random.randint(1, len(CHANNELS))
        channels = tuple(sorted(self.random.sample(CHANNELS, count)))
        back = self.random.choice([None, 0, 3, 8])
        places = {}
        if back is not None:
            places = {name: max(0, self.last_id(name) - back) for name in channels}
        self._come(channels, self.random.choice(["", str(self.user.pk)]), places)

    def _come(
        self, channels: tuple[str, ...], user_id: str, positions: Mapping[str, int]
    ) -> None:
        if "members" in channels and (not user_id or self.withdrawn):
            return
        self.note(f"user {user_id!r} comes for {channels} from {positions}")
        self._run(
            lambda: self.clients.append(Client(self, channels, user_id, positions))
        )

    def stand_still(self) -> None:
        if self.clients:
            may_read = self.random.choice(self.clients).may_read
            self._run(may_read.clear if may_read.is_set() else may_read.set)

    def cut_off(self) -> None:
        if self.clients:
            client = self.random.choice(self.clients)
            self.note(f"cut off: {client.channels} at {client.places}")
            self._run(client.task.cancel)
            if self.random.random() < 0.7:
                self._come_back(client)

    def _come_back(self, client: Client) -> None:
        if not client.is_refused:
            self.clients.remove(client)
            self._come(client.channels, client.user_id, client.places)

    def recover(self) -> None:
        """Heal everything: then every client that may has everything."""
        self.note("all goes on")
        self.roads.is_open = True
        while self.roads.waiting:
            self._run(lambda: self.roads.go_on(0))
        for client in self.clients:
            self._run(client.may_read.set)
        if self.random.random() < 0.5:  # else nothing moves any more
            for name in CHANNELS:
                get_storage().number_all("default", partition_of(name))
        self._run(self._restore, RECOVERY_SECONDS)
        for client in list(self.clients):
            if client.is_over:
                self._come_back(client)
        self._run(lambda: None, RECOVERY_SECONDS)
        for client in self.clients:
            if client.is_refused:
                continue
            assert client.has_all, f"{client.channels} at {client.places}"
            assert not client.user_id or not self.withdrawn.keys() & set(
                client.channels
            )

    def _close(self) -> None:
        for client in self.clients:
            client.task.cancel()
        try:
            self._run(lambda: None)
        finally:
            hub = switchboard._hubs.get(self.loop)
            if hub is not None and not hub.is_closed:
                with mock.patch("time.monotonic", self.loop.time):
                    self.loop.run_until_complete(hub.close())
            self.loop.close()


@pytest.mark.parametrize("has_bus", [True, False], ids=["bus", "no bus"])
def test_no_history_of_a_hub_breaks_the_promise(
    settings_fixture: Settings, monkeypatch: pytest.MonkeyPatch, has_bus: bool
) -> None:
    settings_fixture.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    settings_fixture.EVENTSTREAM_CHANNELMANAGER_CLASS = "tests.channels.ChannelManager"
    settings_fixture.EVENTSTREAM_REDIS = "redis://nowhere" if has_bus else None
    settings_fixture.EVENTSTREAM_QUEUE_LENGTH = 5
    settings_fixture.EVENTSTREAM_RETENTION = RETENTION
    # Only the history numbers.
    monkeypatch.setattr(hub_log, "number_stale", lambda *args: None)
    # The loop runs what the hub's threads would.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    monkeypatch.setattr(switchboard, "ReaderPool", Pool)
    monkeypatch.setattr(switchboard, "BusLink", Bus)
    monkeypatch.setattr(Subscriber, "collect", lambda each: Pool.world.collect(each))
    if has_bus:  # another process numbers
        monkeypatch.setattr(Hub, "_on_numbered", lambda *args, **kwargs: None)
    seed = randrange(10**9)
    counts: Counter[str] = Counter()

    for number in range(HISTORIES):
        random = Random(seed + number)
        size = random.choice([1, 100, 1_000_000])
        for module in (hub_log, streams, subscribers, tails):
            monkeypatch.setattr(module, "CHUNK_BYTES", size)
        world = World(random, has_bus=has_bus)
        try:
            world.go(STEPS)
        except Exception as error:
            error.add_note(f"seed {seed + number}")
            raise
        counts += world.counts

    # It was about something.
    assert counts["events"] > 5 * HISTORIES
    assert counts["pruned"] > HISTORIES
    assert not has_bus or counts["messages"] > HISTORIES
