"""The Celery app: `celery -A deploy worker`, `celery -A deploy beat`."""

from __future__ import annotations

import logging
import os

from celery import Celery
from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "deploy.settings")

app = Celery("deploy")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def _keep_django_logging(loglevel: int, **_: object) -> None:
    """Leave logging as LOGGING says: a receiver here keeps Celery from replacing it.

    What `-l` says is then about Celery's own lines.
    """
    logging.getLogger("celery").setLevel(loglevel)
