"""The ASGI application of the tests' project."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from eventstream.asgi import Application, hold_streams
from tests import celery  # noqa: F401  makes it the current app, so wake-ups find the broker
from tests.proof.dying import die_where_told

application: Application = ASGIStaticFilesHandler(get_asgi_application())
if os.environ.get("ES_PLAIN") != "1":  # else streams are held as Django's own responses
    application = hold_streams(application)
die_where_told()
