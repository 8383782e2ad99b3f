"""App configuration."""

from __future__ import annotations

import importlib.util

from django.apps import AppConfig


class EventStreamConfig(AppConfig):
    """Registers the system checks, and counts if it can."""

    name = "eventstream"
    verbose_name = "Event stream"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from eventstream import checks  # noqa: F401, PLC0415  needs the app registry

        if importlib.util.find_spec("prometheus_client") is not None:
            from eventstream import metrics  # noqa: PLC0415  the extra `metrics`

            metrics.install()
