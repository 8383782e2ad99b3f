"""The periodic tasks in django-celery-beat's tables: installed, corrected, left alone."""

from __future__ import annotations

import pytest
from celery import current_app
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask
from django_celery_beat.schedulers import ModelEntry
from pytest_django import Settings

from eventstream_tasks.schedule import install_schedule

pytestmark = pytest.mark.django_db


def sweep() -> PeriodicTask:
    return PeriodicTask.objects.get(name="eventstream.republish")


def timing() -> tuple[int, str, int]:
    """Return the sweep's interval, its unit, and when a message expires."""
    row = sweep()
    return row.interval.every, row.interval.period, row.expire_seconds


@pytest.fixture(autouse=True)
def installed() -> None:
    PeriodicTask.objects.all().delete()
    install_schedule()


def test_installing_again_changes_nothing() -> None:
    assert install_schedule() == []
    assert timing() == (10, "seconds", 10)


def test_interval_that_was_installed_follows_the_setting(settings: Settings) -> None:
    settings.EVENTSTREAM_TASKS_REPUBLISH_EVERY = 3

    assert install_schedule() == ["eventstream.republish"]
    assert timing() == (3, "seconds", 3)

    settings.EVENTSTREAM_TASKS_REPUBLISH_EVERY = 10
    assert install_schedule() == ["eventstream.republish"]
    assert timing() == (10, "seconds", 10)


@pytest.mark.parametrize(("every", "period"), [(60, "seconds"), (10, "minutes")])
def test_interval_of_an_operator_survives(
    settings: Settings, every: int, period: str
) -> None:
    row = sweep()
    row.interval = IntervalSchedule.objects.create(every=every, period=period)
    row.save()
    assert install_schedule() == []

    settings.EVENTSTREAM_TASKS_REPUBLISH_EVERY = 3

    assert install_schedule() == ["eventstream.republish"]
    assert timing() == (every, period, 3)


def test_other_timing_of_an_operator_survives(settings: Settings) -> None:
    row = sweep()
    row.interval, row.crontab = None, CrontabSchedule.objects.create(minute="*/2")
    row.save()
    settings.EVENTSTREAM_TASKS_REPUBLISH_EVERY = 3

    install_schedule()

    row = sweep()
    assert (row.interval, row.crontab.minute) == (None, "*/2")


def test_task_that_is_switched_off_stays_off(settings: Settings) -> None:
    PeriodicTask.objects.update(enabled=False)
    settings.EVENTSTREAM_TASKS_REPUBLISH_EVERY = 3

    install_schedule()

    assert not sweep().enabled
    assert timing() == (3, "seconds", 3)


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "America/New_York"])
def test_first_sweep_without_time_zones_waits_for_nothing(
    settings: Settings, zone: str
) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = zone
    settings.DJANGO_CELERY_BEAT_TZ_AWARE = False
    PeriodicTask.objects.all().delete()

    install_schedule()

    assert ModelEntry(sweep(), app=current_app).is_due().is_due
