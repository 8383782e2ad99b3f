"""System checks of the Celery side.

| id                     | level   | what                                     |
|------------------------|---------|------------------------------------------|
| eventstream_tasks.W001 | warning | the project's Celery app is not loaded   |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from celery import current_app
from django.apps import AppConfig
from django.core.checks import CheckMessage, Warning, register  # noqa: A004
from django.core.exceptions import ImproperlyConfigured

from eventstream.dispatch import get_dispatcher
from eventstream_tasks.dispatch import CeleryDispatcher


@register("eventstream")
def check_celery_app(
    app_configs: Sequence[AppConfig] | None, **kwargs: Any
) -> list[CheckMessage]:
    """Check that wake-ups go to the project's broker, not to Celery's default."""
    try:
        dispatcher = get_dispatcher()
    except ImproperlyConfigured:
        return []  # eventstream's check_settings says what is wrong
    if not isinstance(dispatcher, CeleryDispatcher):
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
