"""App configuration."""

from __future__ import annotations

import importlib.util
from typing import Any

from django.apps import AppConfig, apps
from django.db.models.signals import post_migrate


class EventStreamTasksConfig(AppConfig):
    """Installs the periodic tasks when the project is migrated."""

    name = "eventstream_tasks"
    verbose_name = "Event stream tasks"

    def ready(self) -> None:
        # The checks, and the tasks: a web process sends them, and nothing else loads them
        # there, for autodiscover_tasks() waits until a worker starts.
        try:
            from eventstream_tasks import checks, tasks  # noqa: F401, PLC0415
        except ModuleNotFoundError as error:
            if error.name == "celery":
                error.add_note(
                    "eventstream_tasks needs it: pip install 'eventstream[tasks]'"
                )
            raise

        if importlib.util.find_spec("prometheus_client") is not None:
            from eventstream_tasks import worker_metrics  # noqa: F401, PLC0415

        if apps.is_installed("django_celery_beat"):
            # post_migrate of the app that owns the table: it exists by then.
            beat = apps.get_app_config("django_celery_beat")
            post_migrate.connect(_install, sender=beat)


def _install(using: str, **_: Any) -> None:
    from django.db import connections, router  # noqa: PLC0415
    from django_celery_beat.models import PeriodicTask  # noqa: PLC0415  needs the registry

    from eventstream_tasks.schedule import install_schedule  # noqa: PLC0415

    if using != router.db_for_write(PeriodicTask):
        return
    tables = connections[using].introspection.table_names()
    if PeriodicTask._meta.db_table in tables:  # migrated backwards, there is none
        install_schedule()
