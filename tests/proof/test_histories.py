"""Random histories of everything that senders, relays, jobs and readers can do.

What each reader and each target has received is compared with what was committed, after
every step. Hypothesis shrinks a history that breaks the promise to a short one.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.db import transaction
from django.db.models.functions import Now
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from pytest_django import Settings

from eventstream import EventSpec, jobs, send_event, send_events
from eventstream import relay as relay_module
from eventstream.cursors import Lease
from eventstream.models import (
    Channel,
    Cursor,
    DeadLetter,
    Event,
    Job,
    Partition,
    PausedTarget,
)
from eventstream.pausing import pause_target, resume_target
from eventstream.reading import Reader, read_page
from eventstream.relay import pending, relay_partition
from eventstream.rows import partition_of
from eventstream.storage import DjangoModelStorage, get_storage
from tests.support.sse import Parser
from tests.support.targets import RecordingTarget, relay_now

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.timeout(300)]

CHANNELS = ["a", "b", "c"]
NAMES = st.sampled_from(CHANNELS)
TARGETS = st.sampled_from(["a", "b"])


class Death(BaseException):
    """Stands for a SIGKILL: nothing that catches Exception sees it."""


@contextmanager
def death_after(owner: Any, name: str) -> Iterator[None]:
    """Die when the function returns, without any cleaning up."""
    original: Callable[..., Any] = getattr(owner, name)
    release = Lease.release

    def dying(*args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        raise Death

    setattr(owner, name, dying)
    Lease.release = lambda self: None  # type: ignore[method-assign]
    try:
        yield
    except Death:
        pass
    finally:
        setattr(owner, name, original)
        Lease.release = release  # type: ignore[method-assign]


DEATHS = {
    "leased": (Lease, "take"),
    "numbered": (DjangoModelStorage, "number_and_read"),
    "published": (relay_module._Relay, "_publish"),
    "confirmed": (Lease, "confirm"),
}


class Client:
    """A reader of one channel: where it is, and what it has received since it began."""

    def __init__(self, channel: str, position: int) -> None:
        self.channel = channel
        self.position = position
        self.events: dict[int, str] = {}
        self.resets = 0

    def read(self) -> None:
        """Come back, and take a page."""
        reader = Reader((self.channel,), "", {self.channel: self.position})
        for message in Parser().feed(read_page(reader).text.encode()):
            eid = int(message.id.rpartition(":")[2])
            if message.type == "stream-reset":
                self.resets += 1
                self.events.clear()
            else:
                assert eid == self.position + 1, (
                    f"{self.channel}: {eid} after {self.position}"
                )
                self.events[eid] = message.data
            self.position = eid


class Histories(RuleBasedStateMachine):
    """The world. `targets` and `settings` are set by the test."""

    targets: dict[str, RecordingTarget]

    def __init__(self) -> None:
        super().__init__()
        tables = (Event, Channel, Partition, Cursor, DeadLetter, Job, PausedTarget)
        for model in tables:
            model._default_manager.all().delete()
        for target in self.targets.values():
            target.__init__(target.name)  # type: ignore[misc]
        self.committed: dict[str, list[str]] = {name: [] for name in CHANNELS}
        self.clients: list[Client] = []
        self.count = 0
        self.pruned_up_to = 0

    def _data(self, count: int) -> list[str]:
        first, self.count = self.count + 1, self.count + count
        return [str(n) for n in range(first, self.count + 1)]

    # --- senders

    @rule(channel=NAMES, count=st.integers(1, 5))
    def send(self, channel: str, count: int) -> None:
        data = self._data(count)
        with transaction.atomic():
            for item in data:
                send_event(channel, "message", item, json_encode=False)
        self.committed[channel] += data

    @rule(count=st.integers(1, 4))
    def send_to_every_channel(self, count: int) -> None:
        specs = []
        for channel in CHANNELS:
            for item in self._data(count):
                specs.append(EventSpec(channel, "message", item, json_encode=False))
                self.committed[channel].append(item)
        send_events(specs)

    @rule(channel=NAMES, count=st.integers(1, 3))
    def roll_back(self, channel: str, count: int) -> None:
        with transaction.atomic():
            for item in self._data(count):
                send_event(channel, "message", item, json_encode=False)
            transaction.set_rollback(True)

    @rule(channel=NAMES)
    def roll_back_to_a_savepoint(self, channel: str) -> None:
        before, inside, after = self._data(3)
        with transaction.atomic():
            send_event(channel, "message", before, json_encode=False)
            with transaction.atomic():
                send_event(channel, "message", inside, json_encode=False)
                transaction.set_rollback(True)
            send_event(channel, "message", after, json_encode=False)
        self.committed[channel] += [before, after]

    @rule(channel=NAMES, key=st.sampled_from(["k1", "k2"]))
    def send_once(self, channel: str, key: str) -> None:
        (item,) = self._data(1)
        rows = Event.objects.filter(channel=channel, idempotency_key=key)
        is_new = not rows.exists()
        send_event(channel, "message", item, json_encode=False, idempotency_key=key)
        if is_new:
            self.committed[channel].append(item)

    # --- relays

    @rule(channel=NAMES, name=TARGETS)
    def relay(self, channel: str, name: str) -> None:
        relay_partition("default", partition_of(channel), name)

    @rule(channel=NAMES, name=TARGETS, point=st.sampled_from(sorted(DEATHS)))
    def relay_and_die(self, channel: str, name: str, point: str) -> None:
        with death_after(*DEATHS[point]):
            relay_partition("default", partition_of(channel), name, force=True)

    @rule()
    def sweep(self) -> None:
        jobs.republish("default")

    @rule(channel=NAMES)
    def reader_numbers(self, channel: str) -> None:
        get_storage().number_batch("default", partition_of(channel), limit=2)

    @rule(name=TARGETS, is_down=st.booleans())
    def switch(self, name: str, is_down: bool) -> None:
        self.targets[name].is_down = is_down

    @rule(name=TARGETS)
    def pause(self, name: str) -> None:
        pause_target("default", name)

    @rule(name=TARGETS)
    def resume(self, name: str) -> None:
        resume_target("default", name)

    @rule()
    def time_passes(self) -> None:
        """Leases run out, and what has failed is due."""
        past = Now() - datetime.timedelta(seconds=1)
        Cursor.objects.filter(lease_until__isnull=False).update(lease_until=past)
        Cursor.objects.filter(next_attempt__isnull=False).update(next_attempt=past)
        Job.objects.update(lease_until=None)

    @rule(count=st.integers(1, 6))
    def prune(self, count: int) -> None:
        """Some events, the newest of which may be older than the others, are past the age."""
        rows = Event.objects.filter(eid__isnull=False).order_by("?")[:count]
        old = Now() - datetime.timedelta(days=2)
        Event.objects.filter(pk__in=[row.pk for row in rows]).update(created=old)
        jobs.prune("default")

    # --- readers

    @rule(channel=NAMES)
    def join(self, channel: str) -> None:
        head = get_storage().current_ids("default", [channel])[channel]
        self.clients.append(Client(channel, head))

    @precondition(lambda self: self.clients)
    @rule(data=st.data())
    def read(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.clients)).read()

    # --- what must hold

    @invariant()
    def ids_are_consecutive_and_final(self) -> None:
        for channel in CHANNELS:
            last = get_storage().current_ids("default", [channel])[channel]
            log = self.committed[channel][:last]
            rows = Event.objects.filter(channel=channel, eid__isnull=False)
            stored = list(rows.order_by("eid").values_list("eid", "data"))
            floor = last - len(stored)
            expected = list(enumerate(log, 1))[floor:]
            assert stored == expected, f"{channel}: {stored} is not {expected}"

    @invariant()
    def targets_have_had_ids_in_order(self) -> None:
        for target in self.targets.values():
            first: dict[tuple[str, int], str] = {}
            tops: dict[str, int] = {}
            for channel, eid, data in target.received:
                assert isinstance(eid, int)
                if (channel, eid) in first:
                    assert first[channel, eid] == data
                    continue
                first[channel, eid] = data
                # A target begins at the head: its first id may be any.
                assert eid == tops.get(channel, eid - 1) + 1
                assert data == self.committed[channel][eid - 1]
                tops[channel] = eid

    @invariant()
    def readers_have_what_was_committed(self) -> None:
        for client in self.clients:
            for eid, data in client.events.items():
                assert data == self.committed[client.channel][eid - 1]

    def teardown(self) -> None:
        """Let everything recover: then nothing waits, and every reader is at the end."""
        for target in self.targets.values():
            target.is_down = False
            resume_target("default", target.name)
        for _ in range(3):
            self.time_passes()
            relay_now("default")
        assert pending("default") == []
        self.ids_are_consecutive_and_final()
        self.targets_have_had_ids_in_order()
        for name, log in self.committed.items():
            head = get_storage().current_ids("default", [name])[name]
            assert head == len(log)
        for client in self.clients:
            before = -1
            while client.position != before:  # page by page
                before = client.position
                client.read()
            assert client.position == len(self.committed[client.channel])
        self.readers_have_what_was_committed()


def test_no_history_breaks_the_promise(
    settings_fixture: Settings, targets: dict[str, RecordingTarget]
) -> None:
    Histories.targets = targets

    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=120,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
