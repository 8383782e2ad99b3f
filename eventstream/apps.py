"""App configuration."""

from __future__ import annotations

from django.apps import AppConfig


class EventStreamConfig(AppConfig):
    """Registers the system checks."""

    name = "eventstream"
    verbose_name = "Event stream"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from eventstream import checks  # noqa: F401, PLC0415  needs the app registry
