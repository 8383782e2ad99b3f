"""Moments where USE_TZ is off: west and east of UTC, and across a change of the clocks."""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from collections.abc import Iterator

import pytest
from django.core.management import call_command
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.test import Client
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families
from pytest_django import Settings

from eventstream import EventSpec, holders, jobs, latency, metrics, send_events
from eventstream.models import Cursor, Event, Job, PausedTarget, Sample
from eventstream.pausing import pause, resume
from eventstream.relay import relay_all
from eventstream.series import read_series, record_sample
from eventstream.status import Level, get_status
from eventstream.undelivered import Search, find_undelivered
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)

Targets = dict[str, RecordingTarget]


@pytest.fixture(params=["Europe/Berlin", "America/New_York"])
def zone(request: pytest.FixtureRequest, settings: Settings) -> str:
    settings.USE_TZ = False
    settings.TIME_ZONE = request.param
    name: str = request.param
    return name


@pytest.fixture
def clock(settings: Settings) -> Iterator[Clock]:
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    clock = Clock()
    yield clock
    clock.go_on()


class Clock:
    """The database's, at a moment of one's choice: its function is found before its own."""

    def set(self, moment: str) -> None:
        if connection.vendor == "sqlite":
            text = moment.removesuffix("+00") + ".000"
            connection.connection.create_function("strftime", 2, lambda *_: text)
            return
        with connection.cursor() as cursor:
            cursor.execute("CREATE SCHEMA IF NOT EXISTS frozen")
            cursor.execute(
                "CREATE OR REPLACE FUNCTION frozen.statement_timestamp() "
                "RETURNS timestamptz LANGUAGE sql STABLE "
                f"AS $$ SELECT '{moment}'::timestamptz $$"
            )
            cursor.execute("SET search_path = frozen, pg_catalog, public")

    def go_on(self) -> None:
        if connection.vendor == "sqlite":
            connection.connection.create_function("strftime", 2, None)
            return
        with connection.cursor() as cursor:
            cursor.execute("RESET search_path")
            cursor.execute("DROP SCHEMA frozen CASCADE")


def send(count: int = 1) -> None:
    send_events([EventSpec("orders", "message", n) for n in range(count)])


def seconds_since(name: str) -> dict[str, float]:
    """Return by label how long ago a metric says that something was."""
    found = {}
    for family in text_string_to_metric_families(metrics.collect().decode()):
        for sample in family.samples:
            if sample.name == name:
                label = sample.labels.get("task") or sample.labels["target"]
                found[label] = time.time() - sample.value
    return found


def back_date(seconds: float) -> None:
    ago = datetime.timedelta(seconds=seconds)
    Event.objects.update(created=F("created") - ago)


@pytest.mark.usefixtures("zone")
def test_status_and_metrics_tell_true_ages(targets: Targets) -> None:
    holders.report("web:1", stream_count=3, readers={"orders": 3})
    send()
    jobs.republish("default")
    jobs.prune("default")

    status = get_status()
    assert status.level is Level.OK, status.findings
    assert [job.state for job in status.jobs] == ["ok", "ok"]
    assert all((job.age_seconds or 0) < 60 for job in status.jobs)
    assert [holder.name for holder in status.holders] == ["web:1"]
    for name in ("last_success", "last_run"):
        since = seconds_since(f"eventstream_{name}_timestamp_seconds")
        assert len(since) == 2
        assert all(-1 < seconds < 60 for seconds in since.values()), since


@pytest.mark.usefixtures("zone")
def test_events_that_wait_have_their_age(targets: Targets) -> None:
    targets["a"].is_down = True
    send()
    relay_all("default")
    send()
    back_date(600)

    status = get_status()
    assert 599 < (status.oldest_seconds or 0) < 660
    assert 599 < (status.unnumbered_seconds or 0) < 660
    for older_than, count in ((540, 2), (660, 0)):
        found = find_undelivered("default", Search(older_than=older_than))
        assert len(found.events) == count
        assert all(599 < event.age_seconds < 660 for event in found.events)


@pytest.mark.usefixtures("zone")
def test_prune_deletes_the_old_and_not_the_young(
    targets: Targets, settings: Settings
) -> None:
    settings.EVENTSTREAM_RETENTION = 60
    send(2)
    relay_all("default")
    back_date(61)
    send(1)
    relay_all("default")
    Event.objects.filter(eid=3).update(created=Now() - datetime.timedelta(seconds=59))

    jobs.prune("default")

    assert list(Event.objects.values_list("eid", flat=True)) == [3]


@pytest.mark.usefixtures("zone")
def test_delivery_is_measured_by_the_clock(targets: Targets) -> None:
    send()
    relay_all("default")
    back_date(5)

    taken = latency.Delivery("default", "orders", 1, time.time())

    (seconds,) = latency.measure([taken])
    assert 4.5 < seconds < 30


@pytest.mark.usefixtures("zone", "one_minute")
def test_series_begins_an_hour_ago(targets: Targets) -> None:
    for _ in range(3):
        record_sample("default")
        for sample in Sample.objects.order_by("minute"):
            earlier = sample.minute - datetime.timedelta(minutes=20)
            Sample.objects.filter(pk=sample.pk).update(minute=earlier)
    record_sample("default")

    points = read_series("default")

    assert [point.seconds for point in points] == [1200, 1200, 1200]
    assert 0 <= time.time() - points[-1].at.timestamp() < 120


@pytest.mark.usefixtures("zone")
def test_target_that_was_paused_for_a_moment_is_no_backlog(targets: Targets) -> None:
    send()
    relay_all("default")
    pause("a")
    send()
    relay_all("default")
    since = PausedTarget.objects.get().since

    resume("a")

    cursor = Cursor.objects.get(target="a")
    assert cursor.failing_since == since
    assert abs(time.time() - since.timestamp()) < 60


def test_pages_show_the_time_of_the_zone(
    zone: str, targets: Targets, admin_client: Client
) -> None:
    targets["a"].is_down = True
    send()
    jobs.republish("default")
    jobs.prune("default")
    Job.objects.update(lease_until=Now() + datetime.timedelta(hours=1))
    Cursor.objects.update(lease_until=Now() + datetime.timedelta(hours=1))
    back_date(125)
    event = Event.objects.get()
    here = timezone.now() - datetime.timedelta(seconds=125)

    index = "/admin/eventstream/"
    pages = {
        name: admin_client.get(f"{index}{name}").content.decode()
        for name in (
            "undeliveredevent/", "sample/", "pausedtarget/", "pausedtarget/a/change/",
            "channel/orders/change/", "event/", f"event/{event.pk}/change/",
            "cursor/", "job/", "deadletter/",
        )
    }  # fmt: skip

    assert re.search(r'field-age[^>]*">2 min<', pages["event/"])
    assert "2 min" in pages[f"event/{event.pk}/change/"]
    moments = re.findall(r'<time datetime="([^"]+)">', "".join(pages.values()))
    assert len(moments) > 5
    for moment in moments:
        at = datetime.datetime.fromisoformat(moment)
        assert abs(time.time() - at.timestamp()) < 300, moment
    shown = re.search(
        r'<time datetime="([^"]+)">([\d: -]+)<', pages["undeliveredevent/"]
    )
    assert shown is not None
    minutes = {
        (here + datetime.timedelta(minutes=n)).strftime("%H:%M") for n in (0, 1, 2, 3)
    }
    assert shown[2][-8:-3] in minutes
    until = here + datetime.timedelta(hours=1)
    held = re.search(r"held until (\d\d)", pages["cursor/"])
    assert held is not None
    assert int(held[1]) in {until.hour, (until.hour + 1) % 24}


@pytest.mark.usefixtures("zone")
def test_doctor_finds_the_clocks_alike(
    targets: Targets, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.suppress(SystemExit):
        call_command("eventstream", "doctor")

    assert "within 2 s of the database's" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("written", "now", "is_kept"),
    [
        # 02:30 comes twice: first by summer time.
        ("2026-10-25 00:29:50+00", "2026-10-25 00:30:00+00", True),
        ("2026-10-25 00:50:00+00", "2026-10-25 01:10:00+00", True),
        ("2026-10-25 00:45:00+00", "2026-10-25 01:16:00+00", False),
        # 02:00 to 03:00 is left out.
        ("2026-03-29 00:55:00+00", "2026-03-29 01:05:00+00", True),
        ("2026-03-29 00:35:00+00", "2026-03-29 01:06:00+00", False),
    ],
)
def test_retention_does_not_follow_a_change_of_the_clocks(
    settings: Settings,
    targets: Targets,
    clock: Clock,
    written: str,
    now: str,
    is_kept: bool,
) -> None:
    settings.EVENTSTREAM_RETENTION = 1800
    send()
    relay_all("default")
    clock.set(written)
    Event.objects.update(created=Now())
    clock.set(now)

    jobs.prune("default")

    assert Event.objects.exists() is is_kept


def test_ages_do_not_follow_a_change_of_the_clocks(
    targets: Targets, clock: Clock
) -> None:
    send()
    clock.set("2026-10-25 00:50:00+00")
    Event.objects.update(created=Now())
    clock.set("2026-10-25 01:10:00+00")

    assert get_status().oldest_seconds == 1200
    for older_than, count in ((1199, 1), (1201, 0)):
        found = find_undelivered("default", Search(older_than=older_than))
        assert [event.age_seconds for event in found.events] == [1200] * count
    assert Event.objects.get().created.isoformat() == "2026-10-25T02:50:00+02:00"
