"""The application hears of channels that do not move."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from eventstream import EventSpec, jobs, send_event, send_events
from eventstream.models import Event, Sample
from eventstream.pausing import pause
from eventstream.relay import relay_all
from eventstream.signals import channel_stalled
from eventstream.stalls import report_stalls
from eventstream.status import get_status
from tests.integration.test_relay import ago
from tests.support.targets import RecordingTarget, relay_now

pytestmark = pytest.mark.django_db(transaction=True)

Targets = dict[str, RecordingTarget]


@pytest.fixture
def stalls() -> Iterator[list[tuple[object, object, object]]]:
    found: list[tuple[object, object, object]] = []

    def receive(channel: str, target: str, reason: str, **_: object) -> None:
        found.append((channel, target, reason))

    channel_stalled.connect(receive)
    yield found
    channel_stalled.disconnect(receive)


def age(seconds: float) -> None:
    Event.objects.update(created=Now() - ago(seconds))


@pytest.mark.parametrize(("seconds", "is_told"), [(20, False), (40, True)])
def test_stalled_channel_is_told_with_its_target_and_reason(
    targets: Targets, stalls: list[object], seconds: float, is_told: bool
) -> None:
    send_event("well", "message", 1)
    relay_all("default")
    targets["a"].is_down = True
    send_event("orders", "message", 1)
    relay_all("default")
    age(seconds)

    jobs.republish("default")
    jobs.republish("default")  # within the same minute

    samples = Sample.objects.count()
    assert stalls == ([("orders", "a", "a is down")] * samples if is_told else [])


def test_channels_that_wait_for_another_partitions_attempt_are_told(
    targets: Targets, stalls: list[object]
) -> None:
    """Of the only target: nobody else has given ids to their events."""
    del targets["b"]
    targets["a"].is_down = True
    channels = [f"room-{n}" for n in range(5)]
    for channel in channels:
        send_event(channel, "message", 1)
    relay_all("default")
    age(90)
    assert Event.objects.filter(position=None).exists()

    report_stalls(get_status())

    assert set(stalls) == {(channel, "a", "a is down") for channel in channels}
    assert len(stalls) == len(channels)


def test_channel_that_waits_for_a_moment_is_not_told(
    targets: Targets, stalls: list[object], settings: Settings
) -> None:
    settings.EVENTSTREAM_PARTITIONS = 1
    targets["a"].is_down = True
    send_event("orders", "message", 1)
    relay_all("default")
    age(90)
    send_event("rooms", "message", 1)
    send_event("orders", "message", 2)
    relay_all("default")

    report_stalls(get_status())

    assert stalls == [("orders", "a", "a is down")]


def test_paused_target_stalls_nobody(targets: Targets, stalls: list[object]) -> None:
    pause("a")
    send_event("orders", "message", 1)
    relay_all("default")
    age(90)

    assert report_stalls(get_status()) == 0
    assert stalls == []


def test_a_hundred_channels_of_a_target_are_enough(
    targets: Targets, stalls: list[object]
) -> None:
    targets["a"].is_down = True
    send_events([EventSpec(f"room-{n}", "message", n) for n in range(300)])
    relay_now("default")
    age(90)

    assert report_stalls(get_status()) == 100


def test_nothing_is_asked_where_nobody_listens(targets: Targets) -> None:
    targets["a"].is_down = True
    send_event("orders", "message", 1)
    relay_all("default")
    age(90)
    status = get_status()

    with CaptureQueriesContext(connection) as queries:
        assert report_stalls(status) == 0
    assert len(queries) == 0
