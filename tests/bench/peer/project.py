"""The peer's URLs and ASGI application."""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")

import django_eventstream
from django.core.asgi import get_asgi_application
from django.urls import include, path

urlpatterns = [path("events/", include(django_eventstream.urls))]
application = get_asgi_application()
