"""The ASGI application of the tests' project."""

from __future__ import annotations

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from tests import celery  # noqa: F401  makes it the current app, so wake-ups find the broker
from tests.proof.dying import die_where_told

application = ASGIStaticFilesHandler(get_asgi_application())
die_where_told()
