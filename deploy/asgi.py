"""The ASGI entry: `uvicorn deploy.asgi:application --timeout-graceful-shutdown 3`.

Without that option uvicorn waits for open streams to end, and they never do.
"""

from __future__ import annotations

import os

from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

from eventstream.asgi import Application, hold_streams

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "deploy.settings")


def _make_application() -> Application:
    application = get_asgi_application()
    if getattr(settings, "SERVE_STATIC", False):
        return hold_streams(ASGIStaticFilesHandler(application))
    return hold_streams(application)


application = _make_application()
