"""System checks of the Celery side.

| id                     | level   | what                                      |
|------------------------|---------|-------------------------------------------|
| eventstream_tasks.E001 | error   | a setting has a value that it cannot have |
| eventstream_tasks.E002 | error   | an unknown EVENTSTREAM_TASKS_… setting    |
| eventstream_tasks.W001 | warning | the project's Celery app is not loaded    |
| eventstream_tasks.W002 | warning | no time between the two time limits       |
| eventstream_tasks.W003 | warning | beat's times are aware, the project's not |
| eventstream_tasks.W004 | warning | the project has not declared the queue    |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import current_app
from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Warning, register  # noqa: A004
from django.core.exceptions import ImproperlyConfigured

from eventstream.checks import check_names, check_values
from eventstream.dispatch import get_dispatcher
from eventstream_tasks import conf
from eventstream_tasks.dispatch import CeleryDispatcher


@register("eventstream")
def check_settings(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """Check every EVENTSTREAM_TASKS_… setting against its table."""
    found = [
        *check_values(conf.SETTINGS, "eventstream_tasks.E001"),
        *check_names(conf.SETTINGS, "eventstream_tasks.E002", prefix=conf.PREFIX),
    ]
    if found:
        return found
    options = conf.get_options()
    if options.soft_time_limit >= options.time_limit:
        text = (
            f"{conf.PREFIX}SOFT_TIME_LIMIT is not less than {conf.PREFIX}TIME_LIMIT: no "
            "task would hand its partition on before its worker's child is replaced."
        )
        hint = "Leave it some 30 s."
        found.append(Warning(text, hint=hint, id="eventstream_tasks.W002"))
    return found


@register("eventstream")
def check_beat(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """Check that django-celery-beat reads its times as it has written them."""
    is_aware = getattr(settings, "DJANGO_CELERY_BEAT_TZ_AWARE", True)
    if settings.USE_TZ or not is_aware or not apps.is_installed("django_celery_beat"):
        return []
    text = "USE_TZ is off, and DJANGO_CELERY_BEAT_TZ_AWARE is not."
    hint = (
        "Set DJANGO_CELERY_BEAT_TZ_AWARE = False. Otherwise beat fails on SQLite, and with "
        "PostgreSQL takes its times for UTC: each time that it starts nothing is swept for "
        "as many hours as TIME_ZONE is ahead."
    )
    return [Warning(text, hint=hint, id="eventstream_tasks.W003")]


@register("eventstream")
def check_celery_app(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """Check that wake-ups go to the project's broker, not to Celery's default."""
    if not _is_by_celery():
        return []
    if (
        current_app.main != "default"
    ):  # the app that Celery makes up where there is none
        return []
    text = "This process has no Celery app: wake-ups would go to amqp://localhost."
    hint = (
        "Import the app in the __init__.py of the project's package: "
        "`from .celery import app as celery_app`."
    )
    return [Warning(text, hint=hint, id="eventstream_tasks.W001")]


@register("eventstream")
def check_queue(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """Check that Celery knows the queue, where it makes none by itself."""
    if not _is_by_celery() or current_app.conf.task_create_missing_queues:
        return []
    try:
        queue = conf.get_options().queue
    except ImproperlyConfigured:
        return []  # check_settings says what is wrong
    if queue in current_app.amqp.queues:
        return []
    text = (
        f"The queue {queue!r} is not in CELERY_TASK_QUEUES, and Celery is told not to create "
        "missing ones: neither wake-ups nor sweeps can be sent, and no worker can take them."
    )
    hint = f"Add Queue({queue!r}) there, or name one that is in {conf.PREFIX}QUEUE."
    return [Warning(text, hint=hint, id="eventstream_tasks.W004")]


def _is_by_celery() -> bool:
    try:
        return isinstance(get_dispatcher(), CeleryDispatcher)
    except ImproperlyConfigured:
        return False  # eventstream's check_settings says what is wrong
