"""Wake-ups over a real broker: coalesced, bounded in time, never an error to the sender."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any

import pytest
from celery import current_app
from django.db import connections
from django.db.models.functions import Now
from pytest_django import Settings

from eventstream import EventSpec, send_event, send_events
from eventstream import relay as relay_module
from eventstream.models import Cursor, Event
from eventstream.relay import Report, relay_partition
from eventstream.rows import partition_of
from eventstream.targets.base import Item
from eventstream.targets.bus import BusTarget
from eventstream_tasks import dispatch, tasks
from eventstream_tasks.connections import close_kept, with_kept_connections
from eventstream_tasks.dispatch import CeleryDispatcher, wake_flag
from tests.support.fault_proxy import FaultProxy, Mode
from tests.support.processes import free_port
from tests.support.valkey import Valkey

pytestmark = pytest.mark.django_db(transaction=True)

PARTITION = partition_of("orders")


def use(url: str, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this server broker and bus, and forget the last one."""
    settings.EVENTSTREAM_REDIS = url
    settings.EVENTSTREAM_DISPATCHER = "eventstream_tasks.dispatch.CeleryDispatcher"
    monkeypatch.setattr(current_app.conf, "broker_url", url)
    monkeypatch.setattr(current_app.conf, "broker_write_url", url)
    monkeypatch.setattr(dispatch, "_connections", dispatch._Connections())
    monkeypatch.setattr(dispatch, "circuit", dispatch._Circuit())


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
def valkey(
    server: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Valkey:
    server.client.flushall()
    use(server.url, settings, monkeypatch)
    return server


def waiting(valkey: Valkey) -> int:
    """Return how many tasks wait in the queue."""
    return int(valkey.client.llen("eventstream"))


def test_burst_of_events_wakes_once(valkey: Valkey) -> None:
    for _ in range(50):
        send_event("orders", "message", 1)

    assert waiting(valkey) == 1
    flag = wake_flag("default", PARTITION, "bus")
    assert 0 < int(valkey.client.ttl(flag)) <= 30


def test_task_that_has_begun_leaves_room_for_the_next_wake_up(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event that commits while the task reads must be seen by somebody."""
    seen: list[int] = []

    def relay_while_another_sends(*args: object, **options: bool) -> Report:
        report = relay_partition(*args, **options)  # type: ignore[arg-type]
        send_event("orders", "message", "late")
        seen.append(waiting(valkey))
        return report

    monkeypatch.setattr(tasks, "relay_partition", relay_while_another_sends)
    send_event("orders", "message", 1)
    before = waiting(valkey)

    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert (before, seen) == (1, [2])
    assert valkey.client.exists(wake_flag("default", PARTITION, "bus"))


def test_event_that_commits_right_after_the_last_look_wakes_somebody(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = relay_module._Relay._report
    late: list[int] = []

    def let_another_send(relay: relay_module._Relay, *args: Any) -> Report:
        """It has looked, and is about to end."""
        if not late:
            before = waiting(valkey)
            send_event("orders", "message", "late")
            late.append(waiting(valkey) - before)
        return report(relay, *args)

    send_event("orders", "message", 0)
    tasks.publish.apply(args=("default", PARTITION, "bus"))  # which makes the cursors
    valkey.client.flushall()
    monkeypatch.setattr(relay_module._Relay, "_report", let_another_send)
    send_event("orders", "message", 1)

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
            send_event("orders", "message", "meanwhile")
        publish(self, items)

    monkeypatch.setattr(BusTarget, "publish", publish_while_another_sends)
    send_event("orders", "message", 1)

    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert waiting(valkey) == 1  # the first one's
    assert Event.objects.filter(position=None).count() == 0
    assert not valkey.client.exists(wake_flag("default", PARTITION, "bus"))


def test_task_that_finds_the_lease_taken_leaves_the_relay_s_flag(
    valkey: Valkey,
) -> None:
    flag = wake_flag("default", PARTITION, "bus")
    send_event("orders", "message", 1)
    tasks.publish.apply(args=("default", PARTITION, "bus"))
    Cursor.objects.update(lease_token="other", lease_until=Now() + timedelta(minutes=1))
    valkey.client.set(flag, dispatch._RELAYING)

    tasks.publish.apply(args=("default", PARTITION, "bus"))
    kept = valkey.client.get(flag)
    valkey.client.set(flag, dispatch._QUEUED)
    tasks.publish.apply(args=("default", PARTITION, "bus"))

    assert kept == dispatch._RELAYING
    assert not valkey.client.exists(flag)


def test_connection_outlives_the_task(valkey: Valkey) -> None:
    """Celery closes the connections that it knows; a new one for each task is costly."""
    send_event("orders", "message", 1)
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


def test_failed_wake_up_takes_its_flag_back(
    valkey: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise ConnectionError("no broker")

    monkeypatch.setattr(CeleryDispatcher, "_send", refuse)

    send_event("orders", "message", 1)

    assert not valkey.client.exists(wake_flag("default", PARTITION, "bus"))


@pytest.mark.parametrize("way", ["refused", "mute"])
def test_sender_is_not_held_up_by_a_dead_broker(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
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

    # The first waits for half a second; then none is tried.
    assert seconds[0] < 1.0
    assert max(seconds[1:]) < 0.2
    assert Event.objects.count() == 20
    assert dispatch.circuit.failure_count == 1


def test_sender_waits_for_a_slow_broker_no_longer_than_that_in_all(
    server: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step would be in time: connecting in several, a flag, a task for each channel."""
    settings.EVENTSTREAM_TASKS_WAKE_TIMEOUT = 1.0
    link = FaultProxy(server.port)
    link.set_mode(Mode.DELAY)
    use(f"redis://127.0.0.1:{link.port}/0", settings, monkeypatch)
    try:
        began = time.monotonic()
        send_events(
            [EventSpec(f"orders-{number}", "message", 1) for number in range(20)]
        )
        seconds = time.monotonic() - began
    finally:
        link.close()

    assert 0.9 < seconds < 2.0  # every step takes 0.4 s, and there are twenty
    assert dispatch.circuit.is_open()
    assert Event.objects.count() == 20


def test_wake_ups_are_tried_again_after_a_pause(
    server: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.client.flushall()
    settings.EVENTSTREAM_TASKS_WAKE_PAUSE = 0.2
    use(f"redis://127.0.0.1:{free_port()}/0", settings, monkeypatch)
    send_event("orders", "message", 1)
    circuit = dispatch.circuit
    assert circuit.is_open()
    use(server.url, settings, monkeypatch)
    monkeypatch.setattr(dispatch, "circuit", circuit)

    send_event("orders", "message", 2)
    assert waiting(server) == 0
    time.sleep(0.25)
    send_event("orders", "message", 3)

    assert waiting(server) == 1
