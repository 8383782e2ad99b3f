"""A project of django-eventstream, on the database of the tests' project."""

from __future__ import annotations

from tests.settings import *  # noqa: F403

INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django_eventstream",
]
MIDDLEWARE = ["django_grip.GripMiddleware"]
GRIP_PROXIES = [{"control_uri": "http://127.0.0.1:1", "key": "k" * 32}]
ROOT_URLCONF = "tests.peer_urls"
EVENTSTREAM_STORAGE_CLASS = "django_eventstream.storage.DjangoModelStorage"
del EVENTSTREAM_CHANNELMANAGER_CLASS, EVENTSTREAM_REDIS, GRIP_URL  # noqa: F821
