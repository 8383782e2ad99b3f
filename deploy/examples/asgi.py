"""The examples' ASGI application, static files included."""

from __future__ import annotations

import os

from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from eventstream.asgi import hold_streams

# Not setdefault: `deploy`, imported on the way here, has named its own.
os.environ["DJANGO_SETTINGS_MODULE"] = "deploy.examples.settings"

application = hold_streams(ASGIStaticFilesHandler(get_asgi_application()))
