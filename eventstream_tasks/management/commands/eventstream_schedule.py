"""manage.py eventstream_schedule"""

from __future__ import annotations

from typing import Any

from django.apps import apps
from django.core.management.base import BaseCommand, CommandError

from eventstream_tasks.conf import get_options


class Command(BaseCommand):
    """Install the periodic tasks; see schedule.install_schedule."""

    help = "Install the sweep and the pruning in django-celery-beat's tables."

    def handle(self, *args: Any, **options: Any) -> None:
        if not apps.is_installed("django_celery_beat"):
            raise CommandError(
                "django_celery_beat is not in INSTALLED_APPS. Add it and migrate, or "
                "have your own scheduler send eventstream.republish every "
                f"{get_options().republish_every} s and eventstream.prune every "
                f"{get_options().prune_every} s."
            )
        from eventstream_tasks.schedule import install_schedule  # noqa: PLC0415

        changed = install_schedule()
        text = f"Installed {', '.join(changed)}." if changed else "Nothing to change."
        self.stdout.write(text)
