"""Wake-ups over a real broker: coalesced, bounded in time, never an error to the sender."""

from __future__ import annotations

import base64
import gc
import json
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
import redis
from celery import current_app
from celery.exceptions import Retry
from celery.signals import before_task_publish, worker_process_shutdown
from django.db import connections
from django.db.models.functions import Now
from pytest_django import Settings

from eventstream import EventSpec, send_event, send_events
from eventstream import relay as relay_module
from eventstream.cursors import Lease
from eventstream.exceptions import PublishUnavailableError
from eventstream.models import Cursor, Event
from eventstream.pausing import pause
from eventstream.relay import Report, relay_partition
from eventstream.rows import partition_of
from eventstream.targets.base import Item
from eventstream.targets.bus import BusTarget
from eventstream_tasks import broker, dispatch, tasks
from eventstream_tasks.connections import close_kept, with_kept_connections
from eventstream_tasks.dispatch import Watcher, wake_flag
from tests.support.fault_proxy import FaultProxy, Mode
from tests.support.processes import free_port
from tests.support.stack import Stack
from tests.support.valkey import Valkey

pytestmark = [
    pytest.mark.django_db(transaction=True),
    # Connections that are given up are not closed, as they may be a parent's: Python does so
    # when it collects them, in `_nothing_left`.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

PARTITION = partition_of("orders")


def use(url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this server broker and bus, and forget the last one."""
    dispatch.flush(30)
    settings.EVENTSTREAM_REDIS = url
    settings.EVENTSTREAM_DISPATCHER = "eventstream_tasks.dispatch.CeleryDispatcher"
    monkeypatch.setattr(current_app.conf, "broker_url", url)
    monkeypatch.setattr(current_app.conf, "broker_write_url", url)
    monkeypatch.setattr(broker, "connections", broker.Connections())
    monkeypatch.setattr(broker, "circuit", broker.Circuit())


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    dispatch.flush(30)
    gc.collect()


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
def valkey(
    server: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Valkey:
    server.client.flushall()
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 10.0  # of a machine that is busy
    use(server.url, settings, monkeypatch)
    return server


def waiting(valkey: Valkey) -> int:
    """Return how many tasks wait in the queue, once all are there."""
    assert dispatch.flush(30)
    return int(valkey.client.llen("eventstream"))


def send(channel: str, event_type: str, data: object) -> None:
    """Send, and see whoever is woken by it woken."""
    send_event(channel, event_type, data)
    assert dispatch.flush(30)


def test_burst_of_events_wakes_once(valkey: Valkey) -> None:
    for _ in range(50):
        send_event("orders", "message", 1)

    assert waiting(valkey) == 1
    flag = wake_flag("default", PARTITION, "bus")
    assert 0 < int(valkey.client.ttl(flag)) <= 30


def test_bus_that_is_away_keeps_no_task_from_another_broker(
    valkey: Valkey, settings: Settings
) -> None:
    """They are not coalesced then; it is the bus alone whose events wait."""
    settings.EVENTSTREAM_REDIS = f"redis://127.0.0.1:{free_port()}/0"

    for _ in range(2):
        send("orders", "message", 1)

    assert waiting(valkey) == 2
    assert not broker.circuit.is_open()


@pytest.mark.parametrize("is_url", [True, False])
def test_setting_that_decodes_answers_changes_nothing(
    valkey: Valkey, settings: Settings, is_url: bool
) -> None:
    parts = urlsplit(valkey.url)
    settings.EVENTSTREAM_REDIS = (
        f"{valkey.url}?decode_responses=True"
        if is_url
        else {"host": parts.hostname, "port": parts.port, "decode_responses": True}
    )
    send("orders", "message", 1)

    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert not valkey.client.exists(wake_flag("default", PARTITION, "bus"))


def test_flags_are_reached_with_the_brokers_tls(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_REDIS = None
    url = "rediss://:secret@h:1/2?ssl_cert_reqs=CERT_NONE"  # of which redis-py has no word
    monkeypatch.setattr(current_app.conf, "broker_write_url", url)

    flags = broker.Connections().flags()

    assert flags is not None
    found = flags.connection_pool.connection_kwargs
    assert (found["host"], found["port"], found["db"]) == ("h", 1, 2)
    assert (found["password"], found["ssl_cert_reqs"]) == ("secret", ssl.CERT_NONE)
    assert flags.connection_pool.connection_class is redis.SSLConnection


def test_worker_that_is_to_be_started_takes_the_projects_tasks_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(current_app.conf, "task_default_queue", "mine")

    status = broker.broker_status(ask=False)

    assert status.start_worker.endswith(" worker -Q mine,eventstream")


def test_beat_that_is_to_be_started_reads_the_schedule_from_the_database() -> None:
    """Celery's own scheduler knows nothing of it."""
    assert broker.broker_status(ask=False).start_beat.endswith(" beat -S django")


def test_task_that_has_begun_leaves_room_for_the_next_wake_up(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that commits while the task reads must be seen by somebody."""
    seen: list[int] = []

    def relay_while_another_sends(*args: object, **options: bool) -> Report:
        report = relay_partition(*args, **options)  # type: ignore[arg-type]
        send("orders", "message", "late")
        seen.append(waiting(valkey))
        return report

    monkeypatch.setattr(tasks, "relay_partition", relay_while_another_sends)
    send("orders", "message", 1)
    before = waiting(valkey)

    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert (before, seen) == (1, [2])
    assert valkey.client.exists(wake_flag("default", PARTITION, "bus"))


def test_task_of_a_target_that_this_worker_does_not_know_leaves_room(
    valkey: Valkey,
) -> None:
    flag = wake_flag("default", PARTITION, "grip:http://new")
    valkey.client.set(flag, "queued")

    tasks.publish.apply(args=("default", PARTITION, "grip:http://new"))

    assert not valkey.client.exists(flag)


def test_event_that_commits_right_after_the_last_look_wakes_somebody(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = relay_module._Relay._report
    late: list[int] = []

    def let_another_send(relay: relay_module._Relay, *args: Any) -> Report:
        """It has looked, and is about to end."""
        if not late:
            before = waiting(valkey)
            send("orders", "message", "late")
            late.append(waiting(valkey) - before)
        return report(relay, *args)

    send("orders", "message", 0)
    tasks.publish.apply(args=("default", PARTITION, "bus"))  # which makes the cursors
    valkey.client.flushall()
    monkeypatch.setattr(relay_module._Relay, "_report", let_another_send)
    send("orders", "message", 1)

    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert late == [1]
    assert valkey.client.exists(wake_flag("default", PARTITION, "bus"))


def test_events_during_a_relay_wake_nobody_and_are_relayed(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay that is at work looks again: a task for each event would only be in its way."""
    relay_partition("default", PARTITION, "bus")  # makes the cursor
    publish = BusTarget.publish
    sent: list[int] = []

    def publish_while_another_sends(self: BusTarget, items: Sequence[Item]) -> None:
        if len(sent) < 3:
            sent.append(len(sent))
            send("orders", "message", "meanwhile")
        publish(self, items)

    monkeypatch.setattr(BusTarget, "publish", publish_while_another_sends)
    send("orders", "message", 1)

    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert waiting(valkey) == 1  # the first one's
    assert Event.objects.filter(position=None).count() == 0
    assert not valkey.client.exists(wake_flag("default", PARTITION, "bus"))


def test_relay_at_work_raises_the_flag_that_another_has_lowered(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each message's task would lower the flag that it came with, and bring the next."""
    relay_partition("default", PARTITION, "bus")  # makes the cursor
    flag = wake_flag("default", PARTITION, "bus")
    publish = BusTarget.publish
    seen: list[object] = []

    def publish_while_another_sends(self: BusTarget, items: Sequence[Item]) -> None:
        if not seen:
            valkey.client.delete(flag)  # by a relay that had the lease before
        if len(seen) < 4:
            seen.append(valkey.client.get(flag))
            send("orders", "message", "meanwhile")
        publish(self, items)

    monkeypatch.setattr(BusTarget, "publish", publish_while_another_sends)
    send("orders", "message", 1)

    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert seen == [None, *[dispatch._RELAYING] * 3]
    assert waiting(valkey) == 2
    assert not valkey.client.exists(flag)
    assert Event.objects.filter(position=None).count() == 0


def test_redis_that_hangs_holds_up_a_relay_once_not_at_each_batch(
    server: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = FaultProxy(server.port)
    use(f"redis://127.0.0.1:{link.port}/0", settings, monkeypatch)
    try:
        flag = dispatch.TaskFlag("default", PARTITION, "bus")
        flag.keep_up()
        link.set_mode(Mode.BLACK_HOLE)
        began = time.monotonic()
        for _ in range(20):
            flag.keep_up()

        assert time.monotonic() - began < 5, "of 20 times half a second"
    finally:
        if (flags := broker.connections.flags()) is not None:
            flags.close()
        link.close()


def test_task_that_finds_the_lease_taken_leaves_the_relay_s_flag(
    valkey: Valkey,
) -> None:
    flag = wake_flag("default", PARTITION, "bus")
    send("orders", "message", 1)
    assert waiting(valkey) == 1
    tasks.publish.apply(args=("default", PARTITION, "bus"))
    Cursor.objects.update(lease_token="other", lease_until=Now() + timedelta(minutes=1))
    valkey.client.set(flag, dispatch._RELAYING)

    tasks.publish.apply(args=("default", PARTITION, "bus"))
    kept = valkey.client.get(flag)
    valkey.client.set(flag, dispatch._QUEUED)
    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert kept == dispatch._RELAYING
    assert not valkey.client.exists(flag)


def test_event_after_the_last_try_for_a_taken_lease_wakes_somebody(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever had the lease may have looked for the last time before it."""
    relay_partition("default", PARTITION, "bus")  # makes the cursor
    send("orders", "message", 1)
    before = waiting(valkey)
    Cursor.objects.update(lease_token="other", lease_until=Now() + timedelta(minutes=1))
    take = Lease.take
    tries: list[bool] = []

    def try_and_let_the_other_end(lease: Lease, **options: Any) -> object:
        taken = take(lease, **options)
        tries.append(taken is not None)
        if len(tries) == 2:
            Cursor.objects.update(lease_token="", lease_until=None)
            send("orders", "message", "late")
        return taken

    monkeypatch.setattr(Lease, "take", try_and_let_the_other_end)

    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert tries == [False, False]
    assert waiting(valkey) == before + 1
    assert valkey.client.exists(wake_flag("default", PARTITION, "bus"))


class Watching:
    """A relay in a thread of its own, whose target got something a moment ago."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.flag = wake_flag("default", PARTITION, "bus")
        self.seconds = 0.0
        self.waits = threading.Semaphore(0)  # one for each wait that has begun
        more_comes = dispatch.TaskFlag.more_comes

        def tell(flag: dispatch.TaskFlag) -> bool:
            self.waits.release()
            return more_comes(flag)

        monkeypatch.setattr(dispatch.TaskFlag, "more_comes", tell)
        self._app = dispatch._get_app()
        relay_partition("default", PARTITION, "bus")  # makes the cursor
        send("orders", "message", "first")
        Cursor.objects.update(confirmed_at=Now() + timedelta(minutes=1))
        self._thread = threading.Thread(target=self._relay)
        self._thread.start()

    def _relay(self) -> None:
        self._app.set_current()  # as a worker does
        began = time.monotonic()
        try:
            tasks.publish("default", PARTITION, "bus")
        finally:
            self.seconds = time.monotonic() - began
            close_kept()
            connections.close_all()

    def until_it_waits(self) -> None:
        assert self.waits.acquire(timeout=30)

    def end(self) -> None:
        self._thread.join(30)
        assert not self._thread.is_alive()
        assert not Cursor.objects.exclude(lease_token="").exists()


@pytest.fixture
def long_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits that no busy machine ends before what is to be heard of."""
    monkeypatch.setattr(dispatch, "LIVELY", 20.0)
    monkeypatch.setattr(dispatch, "MOST_WATCHING", 60.0)
    monkeypatch.setattr(broker, "tasks_wait", lambda: False)


@pytest.mark.usefixtures("long_watch")
def test_event_that_comes_soon_finds_its_relay_waiting_and_takes_no_task(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Watching(monkeypatch)
    before = waiting(valkey)
    relay.until_it_waits()
    for _ in range(3):
        send("orders", "message", "next")
        relay.until_it_waits()
    published = Event.objects.exclude(position=None).count()
    tasks = waiting(valkey)
    send("elsewhere", "message", 1)
    relay.end()

    assert published == 4
    assert (before, tasks) == (1, 1)
    assert not valkey.client.exists(relay.flag)


@pytest.mark.usefixtures("long_watch")
def test_relay_that_waits_makes_room_for_another_partition(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There may be one worker, and it would be waiting for what may never come."""
    assert partition_of("elsewhere") != PARTITION
    look = dispatch._is_any_queued
    looked = threading.Event()

    def tell() -> bool:
        found = look()
        looked.set()
        return found

    monkeypatch.setattr(dispatch, "_is_any_queued", tell)
    relay = Watching(monkeypatch)
    relay.until_it_waits()
    assert looked.wait(30)  # and found nobody

    send("elsewhere", "message", 1)
    relay.end()

    assert relay.seconds < 20
    assert waiting(valkey) == 2


@pytest.mark.usefixtures("long_watch")
def test_relay_makes_room_for_what_was_enqueued_before_it_listened(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one worker may have fetched that task ahead, where the broker does not count it."""
    send("elsewhere", "message", 1)
    valkey.client.delete("eventstream")

    relay = Watching(monkeypatch)
    relay.until_it_waits()
    relay.end()

    assert relay.seconds < 20
    assert not valkey.client.exists(relay.flag)


def test_relay_waits_for_nothing_while_any_task_waits_for_the_worker(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LIVELY", 20.0)
    monkeypatch.setattr(dispatch, "MOST_WATCHING", 60.0)
    valkey.client.lpush("celery", "another task of the project")

    relay = Watching(monkeypatch)
    relay.end()

    assert relay.waits.acquire(blocking=False)
    assert relay.seconds < 20


def test_relay_does_not_wait_for_ever_for_what_keeps_coming(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other tasks of the project may wait for the worker, without anybody to say so."""
    monkeypatch.setattr(dispatch, "LIVELY", 20.0)
    monkeypatch.setattr(dispatch, "MOST_WATCHING", 1.0)
    monkeypatch.setattr(broker, "tasks_wait", lambda: False)
    has_work, watch = Lease.has_work, Watcher.__init__
    looks: list[bool] = []
    watches: list[Watcher] = []

    def find_something_twice(lease: Lease) -> bool:
        if threading.current_thread() is threading.main_thread():
            return has_work(lease)
        looks.append(len(looks) < 2 or has_work(lease))
        return looks[-1]

    def count(watcher: Watcher, *args: Any) -> None:
        watches.append(watcher)
        watch(watcher, *args)

    monkeypatch.setattr(Lease, "has_work", find_something_twice)
    monkeypatch.setattr(Watcher, "__init__", count)
    relay = Watching(monkeypatch)
    relay.end()

    assert looks == [True, True, False]
    assert len(watches) == 1
    assert 1 <= relay.seconds < 20
    # Another goes on, after those, and no event has to wait for it to be enqueued.
    assert waiting(valkey) == 2
    assert valkey.client.get(relay.flag) == dispatch._QUEUED


class Hot:
    """A partition with more to publish than a task does in a turn that ends at once.

    Attributes:
        ids: Of its events, as they are published.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
        self.ids: list[int] = []
        settings.EVENTSTREAM_BATCH_SIZE = 2
        monkeypatch.setattr(dispatch, "MOST_WATCHING", 0.0)
        monkeypatch.setattr(BusTarget, "publish", self._publish)
        relay_partition("default", PARTITION, "bus")  # makes the cursor
        for _ in range(10):
            send("orders", "message", "hot")

    def _publish(self, items: Sequence[Item]) -> None:
        self.ids += [item.eid or json.loads(item.body)[0] for item in items]

    def relay(self) -> None:
        tasks.publish("default", PARTITION, "bus")
        close_kept()
        assert not Cursor.objects.exclude(lease_token="").exists()


def test_relay_that_has_more_makes_room_for_a_task_that_waits(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """With one worker, an event of another partition waited for all of a backlog."""
    hot = Hot(monkeypatch, settings)
    valkey.client.delete("eventstream")  # it has begun
    send("elsewhere", "message", 1)

    hot.relay()

    assert hot.ids == [1, 2]
    assert waiting(valkey) == 2  # the other, and one that goes on behind it
    flag = wake_flag("default", PARTITION, "bus")
    assert valkey.client.get(flag) == dispatch._QUEUED


def test_relay_that_has_more_goes_on_while_nobody_waits(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    hot = Hot(monkeypatch, settings)
    valkey.client.delete("eventstream")

    hot.relay()

    assert hot.ids == list(range(1, 11))


def test_relay_that_has_more_ends_some_time_whoever_waits(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """Tasks of the project's own, which the worker has fetched ahead, nobody sees."""
    hot = Hot(monkeypatch, settings)
    monkeypatch.setattr(dispatch, "LONGEST_TURN", 0.0)
    valkey.client.delete("eventstream")

    hot.relay()

    assert hot.ids == [1, 2]
    assert waiting(valkey) == 1


def test_relay_whose_broker_takes_no_task_goes_on_itself(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    hot = Hot(monkeypatch, settings)
    send("elsewhere", "message", 1)

    def fail(*_: object) -> None:
        raise OSError("away")

    monkeypatch.setattr(dispatch, "_send", fail)

    hot.relay()

    assert hot.ids == list(range(1, 11))


@pytest.mark.usefixtures("long_watch")
def test_event_whose_call_was_lost_is_found_when_the_wait_ends(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pub/sub promises nothing: the flag is lowered, and then it looks again."""
    monkeypatch.setattr(dispatch, "LIVELY", 2.0)
    relay = Watching(monkeypatch)
    relay.until_it_waits()
    monkeypatch.setattr(dispatch, "wanted_topic", lambda: "elsewhere")

    send("orders", "message", "not heard of")
    tasks = waiting(valkey)
    relay.end()

    assert tasks == waiting(valkey) == 1  # and nobody goes on, where nothing comes
    assert Event.objects.filter(position=None).count() == 0


@pytest.mark.usefixtures("long_watch")
def test_target_that_is_paused_during_the_wait_gets_nothing_more(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay = Watching(monkeypatch)
    relay.until_it_waits()
    mark = Cursor.objects.get().watermark
    pause("bus")

    send("orders", "message", "later")
    relay.end()

    assert Cursor.objects.get().watermark == mark == 1
    assert Event.objects.filter(position=None).count() == 0


def test_redis_that_goes_away_during_a_wait_ends_it(
    server: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatch, "LIVELY", 20.0)
    monkeypatch.setattr(dispatch, "MOST_WATCHING", 60.0)
    monkeypatch.setattr(broker, "tasks_wait", lambda: False)
    server.client.flushall()
    link = FaultProxy(server.port)
    use(f"redis://127.0.0.1:{link.port}/0", settings, monkeypatch)
    try:
        relay = Watching(monkeypatch)
        relay.until_it_waits()
    finally:
        link.close()
    relay.end()

    assert relay.seconds < 20
    assert Event.objects.filter(position=None).count() == 0


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[Watcher]:
    """The waits that have begun, none of which lasts; an event is to be relayed."""
    begun: list[Watcher] = []

    def end_at_once(watcher: Watcher, _until: float) -> bool:
        begun.append(watcher)
        return False

    monkeypatch.setattr(Watcher, "more_comes", end_at_once)
    relay_partition("default", PARTITION, "bus")  # makes the cursor
    send("orders", "message", 1)
    return begun


def test_relay_waits_only_where_the_partition_is_not_quiet(
    valkey: Valkey, waits: list[Watcher]
) -> None:
    seen = []
    for _ in range(2):
        flag = dispatch.TaskFlag("default", PARTITION, "bus")
        relay_partition("default", PARTITION, "bus", flag=flag)
        seen.append(len(waits))
        Cursor.objects.update(confirmed_at=Now() + timedelta(minutes=1))
        send("orders", "message", 2)

    assert seen == [0, 1]


def test_eager_task_does_not_make_its_sender_wait(
    valkey: Valkey, waits: list[Watcher]
) -> None:
    Cursor.objects.update(confirmed_at=Now() + timedelta(minutes=1))

    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert Cursor.objects.get().watermark == 1
    assert waits == []


def test_connection_outlives_the_task(valkey: Valkey) -> None:
    """Celery closes the connections that it knows; a new one for each task is costly."""
    send("orders", "message", 1)
    known = connections["default"]
    seen: list[object] = []

    def look() -> None:
        seen.append(connections["default"])
        Event.objects.count()

    with_kept_connections(look)
    with_kept_connections(look)

    assert seen[0] is seen[1]
    assert seen[0] is not known
    assert connections["default"] is known
    close_kept()


@pytest.mark.parametrize("environment", ["gevent", "eventlet"])
def test_greenlet_leaves_no_connection_open(
    monkeypatch: pytest.MonkeyPatch, environment: str
) -> None:
    """No other task would use it, and a worker has thousands of them."""
    monkeypatch.setattr(
        "eventstream_tasks.connections.detect_environment", lambda: environment
    )
    used = []

    def look() -> None:
        used.append(connections["default"])
        Event.objects.count()

    with_kept_connections(look)

    assert used[0].connection is None
    assert Event.objects.count() == 0  # by the caller's own


def test_failed_wake_up_takes_its_flag_back(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr(dispatch, "_send", refuse)

    send_event("orders", "message", 1)

    assert waiting(valkey) == 0
    assert not valkey.client.exists(wake_flag("default", PARTITION, "bus"))
    assert broker.circuit.failure_count == 1


def test_task_is_sent_in_the_context_of_whoever_came_first(valkey: Valkey) -> None:
    """What sends a request's id along, or its trace, finds it there."""
    request_id = ContextVar("request_id", default="none")
    seen = []

    def look(**_: object) -> None:
        seen.append(request_id.get())

    before_task_publish.connect(look)
    token = request_id.set("first")
    send_event("orders", "message", 1)
    request_id.reset(token)
    assert waiting(valkey) == 1
    before_task_publish.disconnect(look)

    assert seen == ["first"]


def test_task_that_goes_on_is_sent_in_no_context(valkey: Valkey) -> None:
    """Else the trace of the first event of a busy channel would have no end."""
    request_id = ContextVar("request_id", default="none")
    seen = []

    def look(**_: object) -> None:
        seen.append(request_id.get())

    flag = dispatch.TaskFlag("default", PARTITION, "bus")
    before_task_publish.connect(look)
    token = request_id.set("first")
    flag.hand_on()
    request_id.reset(token)
    before_task_publish.disconnect(look)

    assert waiting(valkey) == 1
    assert seen == ["none"]


def test_eager_task_runs_in_the_sender(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it sees the transaction of a test case, which nobody else does."""
    threads: list[int] = []

    def relay(*args: object, **options: bool) -> Report:
        threads.append(threading.get_ident())
        return relay_partition(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(tasks, "relay_partition", relay)
    current_app.conf.task_always_eager = True
    try:
        send_event("orders", "message", 1)
    finally:
        current_app.conf.task_always_eager = False

    assert threads == [threading.get_ident()]
    assert Event.objects.exclude(position=None).count() == 1


def test_child_of_a_worker_that_ends_has_woken(valkey: Valkey) -> None:
    send_event("orders", "message", 1)

    worker_process_shutdown.send(sender=None, pid=0, exitcode=0)

    assert valkey.client.llen("eventstream") == 1


@pytest.mark.parametrize("way", ["refused", "mute"])
def test_sender_is_not_held_up_by_a_dead_broker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 2.0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)  # takes connections, and never says a word
        port = listener.getsockname()[1] if way == "mute" else free_port()
        use(f"redis://127.0.0.1:{port}/0", settings, monkeypatch)

        seconds = []
        for _ in range(20):
            began = time.monotonic()
            send_event("orders", "message", 1)
            seconds.append(time.monotonic() - began)
        assert dispatch.flush(30)

    assert max(seconds) < 1.5  # not even the first waits
    assert Event.objects.count() == 20
    # One for the first, and one for what was sent while that was tried.
    assert broker.circuit.failure_count in (1, 2)


def test_best_effort_events_are_not_held_up_by_a_dead_broker_either(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.EVENTSTREAM_STORAGE_CLASS = None
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 2.0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        port = listener.getsockname()[1]
        use(f"redis://127.0.0.1:{port}/0", settings, monkeypatch)

        seconds = []
        for _ in range(20):
            began = time.monotonic()
            send_event("orders", "message", 1)
            seconds.append(time.monotonic() - began)
        assert dispatch.flush(30)

    assert max(seconds) < 1.5
    assert broker.circuit.failure_count == 20  # each is given up, and counted


def test_best_effort_events_go_out_one_task_a_transaction_in_order(
    valkey: Valkey, settings: Settings
) -> None:
    settings.EVENTSTREAM_STORAGE_CLASS = None
    for number in range(5):
        send_events([EventSpec("orders", "message", number)] * 2)

    assert waiting(valkey) == 5
    bodies = [
        json.loads(base64.b64decode(json.loads(message)["body"]))
        for message in valkey.client.lrange("eventstream", 0, -1)
    ]
    data = [[row[6] for row in arguments[1]] for arguments, *_ in reversed(bodies)]
    assert data == [[str(number)] * 2 for number in range(5)]


def test_retry_of_best_effort_events_has_those_that_are_left(
    valkey: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others would come twice."""
    settings.EVENTSTREAM_BATCH_BYTES = 10_000
    published: list[list[bytes]] = []

    def fail_second(_: BusTarget, items: Sequence[Item]) -> None:
        published.append([item.body for item in items])
        if len(published) == 2:
            raise PublishUnavailableError("away")

    monkeypatch.setattr(BusTarget, "publish", fail_second)
    rows = [
        [0, 0, 0, f"cursor-{n}", None, "message", str(n).ljust(3000), ""]
        for n in range(5)
    ]

    tasks.publish_best_effort.apply(args=("bus", rows))

    assert [len(bodies) for bodies in published] == [3, 2, 2]
    assert published[1] == published[2]


def test_monitors_are_not_shown_best_effort_events_that_are_tried_again(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A retry is a message of its own, which Celery describes anew."""

    def fail(_: BusTarget, items: Sequence[Item]) -> None:
        raise PublishUnavailableError("away")

    monkeypatch.setattr(BusTarget, "publish", fail)
    rows = [[0, 0, 0, "cursor", None, "message", '"secret"', ""]]
    task = tasks.publish_best_effort
    queue = {"exchange": "", "routing_key": "eventstream"}
    task.push_request(id="1", called_directly=False, delivery_info=queue)
    try:
        with pytest.raises(Retry):
            task.run("bus", rows)
    finally:
        task.pop_request()

    [found] = valkey.client.lrange("eventstream", 0, -1)
    message = json.loads(found)
    assert "secret" in base64.b64decode(message["body"]).decode()
    assert "secret" not in str(message["headers"])


def test_slow_broker_is_noticed_and_holds_up_no_sender(
    server: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step would be in time: connecting in several, a flag, a task for each channel."""
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 2.0
    link = FaultProxy(server.port)
    link.set_mode(Mode.DELAY)
    use(f"redis://127.0.0.1:{link.port}/0", settings, monkeypatch)
    try:
        seconds = []
        deadline = time.monotonic() + 20
        while not broker.circuit.is_open() and time.monotonic() < deadline:
            began = time.monotonic()
            send_events([EventSpec(f"orders-{n}", "message", 1) for n in range(20)])
            seconds.append(time.monotonic() - began)
            time.sleep(0.05)
    finally:
        link.close()

    assert broker.circuit.is_open()  # every step takes 0.4 s, and there are twenty
    assert max(seconds) < 1.5
    assert Event.objects.count() == 20 * len(seconds)


def test_what_was_asked_for_before_the_circuit_opened_is_tried(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    """The first wake-up of a busy process may take its time, and the broker be well."""
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 0.05
    slow = threading.Event()
    raise_flags = dispatch._raise_flags

    def be_slow(wanted: list[tuple[str, int, str]]) -> list[tuple[str, int, str]]:
        assert slow.wait(30)
        return raise_flags(wanted)

    monkeypatch.setattr(dispatch, "_raise_flags", be_slow)
    send_event("orders", "message", 1)
    deadline = time.monotonic() + 30
    while not broker.circuit.is_open() and time.monotonic() < deadline:
        send_event("others", "message", 1)
        time.sleep(0.01)
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 10
    slow.set()

    assert waiting(valkey) == 2
    assert broker.circuit.failure_count == 1


def test_wake_ups_are_tried_again_after_a_pause(
    server: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client.flushall()
    settings.EVENTSTREAM_TASKS_WAKE_PAUSE = 60.0
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 10.0
    use(f"redis://127.0.0.1:{free_port()}/0", settings, monkeypatch)
    send_event("orders", "message", 1)
    assert dispatch.flush(30)
    circuit = broker.circuit
    assert circuit.is_open()
    use(server.url, settings, monkeypatch)
    monkeypatch.setattr(broker, "circuit", circuit)

    send_event("orders", "message", 2)
    was_open = circuit.is_open()
    assert waiting(server) == 0
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 61)
    send_event("orders", "message", 3)

    assert was_open
    assert waiting(server) == 1


def test_error_of_the_broker_ends_no_waking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that wakes goes on, and no sender hears of it."""
    monkeypatch.setattr(broker, "connections", broker.Connections())
    monkeypatch.setattr(broker, "circuit", broker.Circuit())

    with dispatch._no_failure():
        raise OSError("gone")

    assert broker.circuit.failure_count == 1


@pytest.fixture(scope="module")
def installation() -> Iterator[Stack]:
    """A project of its own, as the processes that send are."""
    stack = Stack()
    yield stack
    stack.close()


SEND = 'from eventstream import send_event; send_event("orders", "message", 1)'


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(SEND, id="a command that sends and ends"),
        pytest.param(
            f"""
import multiprocessing
def send():
    {SEND}
child = multiprocessing.get_context("fork").Process(target=send)
child.start()
child.join()
""",
            id="a child process",
        ),
        pytest.param(
            f"""
import os, sys
{SEND}
from eventstream_tasks import dispatch
assert dispatch.flush(20)
from django.db import connection
connection.close()
from redis import Redis
from django.conf import settings
Redis.from_url(settings.EVENTSTREAM_REDIS).flushall()
if os.fork() == 0:
    {SEND}
    sys.exit()
os.wait()
""",
            id="a child of a process that has sent",
        ),
        pytest.param(
            f"""
import threading, time
def send():
    time.sleep(0.5)
    {SEND}
threading.Thread(target=send).start()
""",
            id="a thread that outlives the main one",
            marks=pytest.mark.xfail(
                (3, 12) <= sys.version_info < (3, 12, 2),
                reason="this Python starts no thread then: python/cpython#113964",
                strict=True,
            ),
        ),
        pytest.param(
            f"""
import atexit
{SEND.replace("orders", "others")}
from eventstream_tasks import dispatch
assert dispatch.flush(20)
from redis import Redis
from django.conf import settings
Redis.from_url(settings.EVENTSTREAM_REDIS).flushall()
import atexit
class AtExit:
    def __call__(self):
        {SEND}
import multiprocessing.util
atexit.unregister(multiprocessing.util._exit_function)
atexit.register(AtExit())
atexit.register(multiprocessing.util._exit_function)
""",
            id="a function that is called at the very end",
        ),
    ],
)
def test_process_that_ends_at_once_has_woken(installation: Stack, code: str) -> None:
    assert installation.valkey
    installation.valkey.client.flushall()

    installation.run(code)

    assert installation.valkey.client.llen("eventstream") == 1


def test_process_that_ends_waits_for_a_dead_broker_no_longer_than_that() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        url = f"redis://127.0.0.1:{listener.getsockname()[1]}/0"
        stack = Stack(with_valkey=False, env={"ES_REDIS": url})
        try:
            found = stack.run(
                "import atexit, time\n"
                "from multiprocessing import util\n"
                "atexit.register(lambda: print(time.monotonic() - began))\n"
                "atexit.unregister(util._exit_function)\n"
                "atexit.register(util._exit_function)\n"
                f"{SEND}\n"
                "began = time.monotonic()"
            )
        finally:
            stack.close()

    assert float(found) < 4
