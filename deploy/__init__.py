"""One concrete project: settings from the environment, a Celery app, and the demo."""

from __future__ import annotations

# @shared_task binds to this app in every process that has loaded Django, as Celery's
# manual asks for; without it the web process would publish to amqp://localhost.
from deploy.celery import app as celery_app

__all__ = ["celery_app"]
