"""What is wrong, since when, and what to press."""

from __future__ import annotations

import dataclasses
import datetime
import json

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from eventstream import EventSpec, checks, holders, jobs, send_event, send_events
from eventstream.dispatch import DispatchStatus
from eventstream.models import Cursor, Event, Holder, Job, Sample
from eventstream.pausing import pause
from eventstream.relay import relay_all
from eventstream.series import prune_samples, read_series, record_sample
from eventstream.status import Level, Status, get_status
from eventstream.status.findings import judge
from eventstream.storage import DjangoModelStorage
from tests.support.targets import RecordingTarget

pytestmark = pytest.mark.django_db(transaction=True)

Targets = dict[str, RecordingTarget]


def ago(seconds: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=seconds)


def run_jobs() -> None:
    jobs.republish("default")
    jobs.prune("default")


def subjects(status: Status) -> list[str]:
    return [finding.subject for finding in status.findings]


def target(status: Status, name: str):  # type: ignore[no-untyped-def]
    return next(found for found in status.targets if found.name == name)


def test_all_is_well(targets: Targets) -> None:
    send_event("orders", "message", 1)
    run_jobs()

    status = get_status()

    assert (status.level, status.findings) == (Level.OK, [])
    assert status.summary == "Every event has reached every target."
    assert (status.event_count, status.undelivered_count) == (1, 0)
    assert [(t.name, t.state, t.confirmed_count) for t in status.targets] == [
        ("a", "up", 1),
        ("b", "up", 1),
    ]
    assert status.oldest_seconds is None
    latency = target(status, "a").latency_seconds
    assert latency is not None
    assert 0 <= latency < 60


def test_failing_target_says_why_since_when_and_what_waits(targets: Targets) -> None:
    targets["a"].is_down = True
    send_events([EventSpec("orders", "message", n) for n in range(3)])
    run_jobs()
    Event.objects.update(created=Now() - ago(250))
    Cursor.objects.filter(target="a").update(failing_since=Now() - ago(240))

    status = get_status()

    assert status.level is Level.ERROR
    (finding,) = status.findings
    assert finding.subject == "a"
    assert finding.text == (
        "Failing for 4 min; 3 events wait for it, the oldest for 4 min. Its answer: "
        "a is down"
    )
    assert "manage.py eventstream republish --target a" in finding.hint
    failing = target(status, "a")
    assert (failing.state, failing.waiting_count, failing.attempts) == ("failing", 3, 1)
    assert failing.failure_count == 1
    (part,) = failing.partitions
    assert (part.waiting_count, part.last_error) == (3, "a is down")
    assert target(status, "b").state == "up"
    assert status.undelivered_count == 3


def test_paused_target_says_so_with_its_reason(targets: Targets) -> None:
    pause("a", reason="new certificate")
    send_event("orders", "message", 1)
    run_jobs()

    status = get_status()

    (finding,) = status.findings
    assert finding.level is Level.WARNING
    assert "(new certificate); 1 event" in finding.text
    assert finding.hint == "`python manage.py eventstream resume a`."
    assert target(status, "a").state == "paused"


def test_events_that_nobody_relays_are_late(targets: Targets) -> None:
    send_event("orders", "message", 1)
    run_jobs()
    send_events([EventSpec(f"room-{n}", "message", n) for n in range(20)])
    Event.objects.filter(position__isnull=True).update(created=Now() - ago(301))
    Job.objects.update(started_at=Now() - ago(301), finished_at=Now() - ago(301))

    status = get_status()

    assert status.level is Level.ERROR
    assert subjects(status) == ["sweep", "a", "b"]
    assert "No sweep has run for 5 min" in status.findings[0].text
    assert target(status, "a").state == "behind"
    assert (status.unnumbered_count, status.undelivered_count) == (20, 20)
    assert status.oldest_seconds == pytest.approx(301, abs=20)


@pytest.mark.parametrize(("seconds", "state"), [(50, "ok"), (70, "late")])
def test_sweep_is_late_after_a_minute(
    targets: Targets, seconds: float, state: str
) -> None:
    run_jobs()
    at = Now() - ago(seconds)
    Job.objects.filter(name="republish").update(started_at=at, finished_at=at)

    assert get_status().jobs[0].state == state


def test_sweep_that_never_ran_is_told(targets: Targets) -> None:
    assert subjects(get_status()) == ["sweep"]


@pytest.mark.parametrize(("seconds", "state"), [(3590, "new"), (3610, "never")])
def test_pruning_is_missed_once_there_is_something_to_prune(
    targets: Targets, seconds: float, state: str
) -> None:
    send_event("orders", "message", 1)
    jobs.republish("default")
    Event.objects.update(created=Now() - ago(seconds))

    assert get_status().jobs[1].state == state
    assert subjects(get_status()) == ([] if state == "new" else ["prune"])


@pytest.mark.parametrize("has_succeeded", [False, True])
def test_job_that_always_fails_is_told(
    targets: Targets, monkeypatch: pytest.MonkeyPatch, has_succeeded: bool
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise PermissionError("permission denied")

    send_event("orders", "message", 1)
    if has_succeeded:
        run_jobs()
    monkeypatch.setattr("eventstream.jobs.relay_all", fail)
    monkeypatch.setattr(DjangoModelStorage, "prune", fail)

    for job in (jobs.republish, jobs.prune):
        with pytest.raises(PermissionError):
            job("default")

    status = get_status()
    level = Level.WARNING if has_succeeded else Level.ERROR
    told = [(f.subject, f.level) for f in status.findings if f.subject != "a"]
    assert [(job.state, job.level) for job in status.jobs] == [("failed", level)] * 2
    assert told == [("sweep", level), ("prune", level)]
    assert "failed: permission denied." in status.findings[0].text
    # Nothing else would say so once it has been so for long.
    Job.objects.update(finished_at=Now() - ago(7200))
    assert {job.level for job in get_status().jobs} == {Level.ERROR}
    # Nor is a beat that is missing taken for one whose jobs fail.
    Job.objects.update(started_at=Now() - ago(7200))
    assert [job.state for job in get_status().jobs] == ["late", "late"]


def test_sweep_that_is_running_is_not_late(targets: Targets) -> None:
    Job.objects.create(name="republish", lease_until=Now() + ago(5))

    assert get_status().jobs[0].state == "running"


@pytest.mark.parametrize("lease", [5, -1])
def test_sweep_that_is_killed_each_time_is_told(targets: Targets, lease: int) -> None:
    run_jobs()
    Job.objects.filter(name="republish").update(
        finished_at=Now() - ago(600),
        started_at=Now() - ago(3),
        lease_until=Now() + ago(lease),
    )

    status = get_status()

    assert status.jobs[0].state == "unfinished"
    (finding,) = status.findings
    assert (finding.subject, finding.level) == ("sweep", Level.WARNING)
    assert "has not ended, and none has succeeded for 10 min." in finding.text
    # One that only takes long has had a predecessor.
    Job.objects.update(finished_at=Now() - ago(20))
    assert get_status().findings == []


def test_dead_letters_are_counted_and_told(targets: Targets) -> None:
    targets["a"].poison = {"1"}
    send_events([EventSpec("orders", "message", n) for n in range(3)])
    run_jobs()

    status = get_status()

    assert status.dead_letter_count == 1
    assert target(status, "a").refused_count == 1
    assert subjects(status) == ["dead letters"]
    assert status.findings[0].text == (
        "1 event was refused for good by a target; readers get it from the log."
    )


WAKE_UPS = DispatchStatus(
    name="Celery", queue="eventstream", broker="redis://", start_worker="START WORKER",
    start_beat="START BEAT",
)  # fmt: skip


@pytest.mark.parametrize(
    ("known", "subject", "text", "hint"),
    [
        ({}, "sweep", "no beat, or no worker, is at work", "`START BEAT` and `START WORKER`"),
        ({"worker_count": 1}, "sweep", "No beat has", "Start beat: `START BEAT`"),
        ({"worker_count": 1}, "sweep", "No beat has", "its clock and the workers' agree"),
        ({"worker_count": 1, "waiting_count": 9}, "sweep", "9 tasks wait", "Start more"),
        (
            {"worker_count": 0, "waiting_count": 1},
            "worker",
            "No worker takes tasks from the queue 'eventstream'; 1 task waits; no sweep has "
            "ever run.",
            "Start one: `START WORKER`. Until then: `python manage.py eventstream relay`. If "
            "there is one, with `-P solo`, it answers once its task is done.",
        ),
        (
            {"error": "timed out"},
            "broker",
            "takes no tasks: timed out; no sweep has ever run.",
            "Start or mend it",
        ),
    ],
)  # fmt: skip
def test_missing_sweep_names_who_is_missing_and_nobody_else(
    targets: Targets, known: dict[str, object], subject: str, text: str, hint: str
) -> None:
    wake_ups = dataclasses.replace(WAKE_UPS, **known)  # type: ignore[arg-type]

    found = judge(dataclasses.replace(get_status(), wake_ups=wake_ups))

    assert subjects(found) == [subject]
    assert text in found.findings[0].text
    assert hint in found.findings[0].hint


@pytest.mark.parametrize(
    ("known", "hint"),
    [
        ({}, "see that a worker runs, and what its log says"),
        ({"worker_count": 0}, "It waits for a worker."),
        ({"error": "timed out"}, "It waits for the broker."),
    ],
)
def test_target_that_is_behind_says_what_it_waits_for(
    targets: Targets, known: dict[str, object], hint: str
) -> None:
    send_event("orders", "message", 1)
    Event.objects.update(created=Now() - ago(60))
    wake_ups = dataclasses.replace(WAKE_UPS, **known)  # type: ignore[arg-type]

    found = judge(dataclasses.replace(get_status(), wake_ups=wake_ups))

    behind = next(finding for finding in found.findings if finding.subject == "a")
    assert hint in behind.hint


def test_database_that_takes_no_writes_is_told_and_no_beat_missed(
    targets: Targets, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_jobs()
    Job.objects.update(started_at=Now() - ago(7200), finished_at=Now() - ago(7200))
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SET default_transaction_read_only = on")
            status = get_status()
            cursor.execute("SET default_transaction_read_only = off")
    else:  # which nobody can ask
        with monkeypatch.context() as context:
            context.setattr(
                "eventstream.status.survey.is_read_only", lambda using: True
            )
            status = get_status()

    (finding,) = status.findings
    assert (finding.subject, finding.level) == ("database", Level.ERROR)
    assert "'default' is read-only: no event can be sent" in finding.text
    assert "default_transaction_read_only" in finding.hint
    assert "database" not in subjects(get_status())


def test_removed_target_is_listed_and_holds_nothing_up(targets: Targets) -> None:
    send_event("orders", "message", 1)
    run_jobs()
    del targets["a"]
    send_event("orders", "message", 2)
    run_jobs()

    status = get_status()

    assert status.level is Level.OK
    assert [t.name for t in status.targets] == ["b", "a"]
    assert target(status, "a").state == "removed"
    assert status.undelivered_count == 0


def test_asking_finds_a_target_that_is_down_before_any_event_does(
    targets: Targets,
) -> None:
    run_jobs()
    targets["a"].is_down = True

    assert target(get_status(), "a").state == "idle"
    asked = get_status(ask=True)

    assert (target(asked, "a").state, target(asked, "a").answer) == (
        "failing",
        "a is down",
    )
    assert target(asked, "b").answer == ""
    assert asked.level is Level.ERROR


def test_queries_do_not_grow_with_partitions_or_events(targets: Targets) -> None:
    def count() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            get_status()
        return len(queries)

    send_event("orders", "message", 1)
    few = count()
    send_events([EventSpec(f"room-{n}", "message", n) for n in range(300)])
    relay_all("default")

    assert count() <= few


def test_status_is_plain_json(targets: Targets) -> None:
    targets["a"].is_down = True
    send_event("orders", "message", {"secret": 1})
    run_jobs()

    text = json.dumps(get_status().as_dict())

    assert json.loads(text)["targets"][0]["state"] == "failing"
    assert "secret" not in text


def test_readers_are_those_of_the_processes_that_reported_lately(
    targets: Targets,
) -> None:
    holders.report("web:1", stream_count=3, readers={"orders": 2, "rooms": 1})
    holders.report("web:1", stream_count=5, readers={"orders": 2, "rooms": 1})
    holders.report("web:2", stream_count=10, readers={"orders": 1})
    holders.report("web:3", stream_count=99, readers={"orders": 1})
    Holder.objects.filter(name="web:3").update(seen_at=Now() - ago(61))
    holders.report("web:4", stream_count=1, readers={"orders": 1})
    holders.sign_off("web:4")
    # Of a proxy that is not in the settings any more.
    holders.report("grip:http://127.0.0.1:1", stream_count=7, readers={})

    status = get_status()

    assert [holder.name for holder in status.holders] == ["web:1", "web:2"]
    assert status.reader_count == 15


def test_status_of_a_project_without_targets(settings: Settings) -> None:
    send_event("orders", "message", 1)  # inline: numbered at once
    jobs.prune("default")

    status = get_status()

    assert (status.level, status.targets) == (Level.OK, [])


# --- the series


def back_date(minutes: int) -> None:
    """Move every sample into the past, so that the next sweep writes a new one."""
    for sample in Sample.objects.order_by("minute"):
        earlier = sample.minute - datetime.timedelta(minutes=minutes)
        Sample.objects.filter(pk=sample.pk).update(minute=earlier)


@pytest.mark.usefixtures("one_minute")
def test_series_has_what_happened_between_two_sweeps(targets: Targets) -> None:
    jobs.republish("default")
    back_date(1)
    send_events([EventSpec("orders", "message", n) for n in range(5)])
    targets["b"].is_down = True
    jobs.republish("default")

    (point,) = read_series("default")

    assert (point.seconds, point.event_count, point.reader_count) == (60, 5, None)
    a, b = point.targets["a"], point.targets["b"]
    assert (a.state, a.confirmed_count, a.waiting_count) == ("up", 5, 0)
    assert (b.state, b.confirmed_count, b.failure_count) == ("failing", 0, 1)
    assert (b.waiting_count, a.latency_seconds is not None) == (5, True)
    assert point.oldest_seconds is not None


@pytest.mark.usefixtures("one_minute")
def test_missing_minutes_lose_nothing(targets: Targets) -> None:
    send_events([EventSpec("orders", "message", n) for n in range(5)])
    jobs.republish("default")
    back_date(3)
    send_events([EventSpec("orders", "message", n) for n in range(6)])
    jobs.republish("default")

    (point,) = read_series("default")

    assert (point.seconds, point.event_count) == (180, 6)


@pytest.mark.usefixtures("one_minute")
def test_one_sample_a_minute_however_many_sweeps_there_are(targets: Targets) -> None:
    written = [record_sample("default") is not None for _ in range(4)]

    assert written == [True, False, False, False]
    assert Sample.objects.count() == 1


def test_samples_are_kept_for_a_day(targets: Targets) -> None:
    record_sample("default")
    back_date(25 * 60 + 2)
    record_sample("default")
    holders.report("web:1", stream_count=3, readers={"orders": 2, "rooms": 1})
    Holder.objects.update(seen_at=Now() - ago(3601))

    prune_samples("default")

    assert Sample.objects.count() == 1
    assert not Holder.objects.exists()


# --- what the check says


def test_check_is_silent_until_there_is_something_to_sweep() -> None:
    """So that the first `migrate` of a database, and of a test's, warns of nothing."""
    assert checks.check_sweep(None, databases=["default"]) == []

    send_event("orders", "message", 1)

    (found,) = checks.check_sweep(None, databases=["default"])
    assert found.id == "eventstream.W006"
    assert found.hint is not None
    assert "celery -A <project> beat" in found.hint
    run_jobs()
    assert checks.check_sweep(None, databases=["default"]) == []


def test_check_names_no_command_that_the_project_has_not_got(
    settings: Settings,
) -> None:
    settings.INSTALLED_APPS = [
        name for name in settings.INSTALLED_APPS if name != "eventstream_tasks"
    ]
    send_event("orders", "message", 1)

    (found,) = checks.check_sweep(None, databases=["default"])

    assert found.hint == (
        "Start `python manage.py eventstream relay`. Without it events whose publishing "
        "failed wait for the next one."
    )
