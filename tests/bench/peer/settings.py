"""The peer's project: as its README sets it up, with PostgreSQL and model storage."""

import os
from urllib.parse import urlsplit

SECRET_KEY = "bench-only-0123456789-0123456789-0123456789"
DEBUG = False
ALLOWED_HOSTS = ["*"]
USE_TZ = True
ROOT_URLCONF = "project"
ASGI_APPLICATION = "project.application"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
INSTALLED_APPS = [
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django_eventstream",
]
MIDDLEWARE = [
    "django_grip.GripMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
]
_parts = urlsplit(os.environ["ES_DB"])
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.postgresql",
        "HOST": _parts.hostname,
        "PORT": _parts.port,
        "USER": _parts.username,
        "NAME": _parts.path.lstrip("/"),
        "OPTIONS": (
            {"pool": {"min_size": 1, "max_size": int(os.environ["ES_POOL"])}}
            if "ES_POOL" in os.environ
            else {}
        ),
    }
}
EVENTSTREAM_STORAGE_CLASS = "django_eventstream.storage.DjangoModelStorage"
if "ES_REDIS_PORT" in os.environ:
    EVENTSTREAM_REDIS = {
        "host": "127.0.0.1",
        "port": int(os.environ["ES_REDIS_PORT"]),
        "db": 0,
    }
if "GRIP_URL" in os.environ:
    GRIP_URL = os.environ["GRIP_URL"]
