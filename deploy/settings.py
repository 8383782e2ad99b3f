"""The project's settings, all from the environment.

SECRET_KEY             required unless DEBUG: 50 random characters
SECRET_KEY_FALLBACKS   comma-separated, those before it: what they have signed is still good
DEBUG                  1 or 0, default 0
ALLOWED_HOSTS          comma-separated, required unless DEBUG; with DEBUG also localhost
CSRF_TRUSTED_ORIGINS   comma-separated, such as https://example.com
HTTPS                  1 behind a proxy that ends TLS and sets X-Forwarded-Proto
DATABASE_URL           postgres://… or sqlite:///file, default sqlite:///var/demo.sqlite3
DATABASE_POOL          of a web process with PostgreSQL: at most so many connections, which are
                       kept; more than 3, default 0, a new one for each request
DATABASE_PREPARE       1: the relay's statements stay prepared in PostgreSQL, so that it plans
                       them once; not behind a pooler in transaction mode
PGBOUNCER              1: the database is reached through a pooler in transaction mode
REDIS_URL              Redis or Valkey: Celery's broker, the bus of direct streams, and the
                       cache in which limits are counted for all web processes;
                       with REDIS_SENTINELS only its password and number of database
REDIS_SENTINELS        host:port of each Sentinel, comma-separated
REDIS_SENTINEL_MASTER  name that they know the server by, default eventstream
BUS                    0 where proxies hold all streams: events are not published to Redis
                       as well, which nobody would hear
BROKER_URL             another broker than Redis, such as amqp://user:password@host//
REDIS_PREFIX           names used there, so that projects can share a server
GRIP_URL               http://127.0.0.1:5561/?key=…: publish to Pushpin, and check with
                       the key that streams come from it (GRIP_VERIFY=0: do not check);
                       one for each proxy, with spaces between them
GRIP_METRICS_URL       Pushpin's Prometheus page, which tells how many readers it has; one
                       for each GRIP_URL, in the same order, or none
TRUSTED_PROXIES        how many proxies in front append to X-Forwarded-For, default 0
DRAIN_SECONDS          over which streams end at SIGTERM, default 2; less than the limit
                       of the server, --timeout-graceful-shutdown
STATIC_ROOT            where collectstatic collects, default var/static
METRICS                1: /metrics is Prometheus' page of a web process, which the proxy
                       in front has to hide; needs the extra `metrics`
WORKER_METRICS_PORT    where each worker shows its own, default nowhere
SERVE_STATIC           1: the ASGI app serves static files itself, default DEBUG
LOG_LEVEL              of eventstream and eventstream_tasks, default INFO
DEMO_DIR               set by `python -m deploy.demo`: where page and supervisor talk
"""

from __future__ import annotations

import os
from pathlib import Path

from deploy.environment import (
    get_bool,
    get_int,
    get_list,
    parse_database_url,
    parse_grip,
    parse_redis,
    refuse_insecure,
)

BASE_DIR = Path(__file__).resolve().parent.parent

DEBUG = get_bool("DEBUG")
SECRET_KEY = os.environ.get("SECRET_KEY", "")
SECRET_KEY_FALLBACKS = get_list("SECRET_KEY_FALLBACKS")
ALLOWED_HOSTS = get_list("ALLOWED_HOSTS")
GRIP_URLS = os.environ.get("GRIP_URL", "").split()
GRIP_VERIFY = get_bool("GRIP_VERIFY", default=True)
if DEBUG:
    SECRET_KEY = SECRET_KEY or "insecure-and-only-for-development-0123456789abcdef"
else:
    refuse_insecure(SECRET_KEY, ALLOWED_HOSTS, GRIP_URLS if GRIP_VERIFY else [])

CSRF_TRUSTED_ORIGINS = get_list("CSRF_TRUSTED_ORIGINS")
if get_bool("HTTPS"):
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    SESSION_COOKIE_SECURE = True
    CSRF_COOKIE_SECURE = True
    # Strict-Transport-Security, and http → https: deploy/nginx and deploy/caddy do both.
    SILENCED_SYSTEM_CHECKS = ["security.W004", "security.W008"]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "eventstream",
    "eventstream_tasks",
    "deploy.demo",
]

MIDDLEWARE = [
    "django_grip.GripMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

ROOT_URLCONF = "deploy.urls"
METRICS = get_bool("METRICS")
ASGI_APPLICATION = "deploy.asgi.application"
WSGI_APPLICATION = "deploy.wsgi.application"

DATABASES = {
    "default": parse_database_url(
        os.environ.get("DATABASE_URL") or "sqlite:///var/demo.sqlite3", base=BASE_DIR
    )
}
if pool_size := get_int("DATABASE_POOL"):
    # Under ASGI each request would open a connection, the many of a proxy as well.
    pool = {"min_size": 1, "max_size": pool_size, "timeout": 5}
    DATABASES["default"]["OPTIONS"]["pool"] = pool
    # One that a restarted server has closed is replaced, and no request sees an error.
    DATABASES["default"]["CONN_HEALTH_CHECKS"] = True
if get_bool("DATABASE_PREPARE"):
    DATABASES["default"]["OPTIONS"]["prepare_threshold"] = 5
if get_bool("PGBOUNCER"):
    # A cursor of the server would outlive the transaction, and with it the connection.
    DATABASES["default"]["DISABLE_SERVER_SIDE_CURSORS"] = True
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

STATIC_URL = "static/"
STATIC_ROOT = os.environ.get("STATIC_ROOT") or BASE_DIR / "var" / "static"
SERVE_STATIC = get_bool("SERVE_STATIC", default=DEBUG)

# --- eventstream

REDIS = parse_redis(
    os.environ.get("REDIS_URL", ""),
    get_list("REDIS_SENTINELS"),
    os.environ.get("REDIS_SENTINEL_MASTER") or "eventstream",
)
REDIS_PREFIX = os.environ.get("REDIS_PREFIX", "")
if isinstance(REDIS.bus, str):
    # What limits streams and opens is counted over all web processes. Django's own cache
    # asks no Sentinels: with those, each process counts for itself.
    CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": REDIS.bus,
            "KEY_PREFIX": f"{REDIS_PREFIX}cache",
            # A Redis that hangs must not hold up a request.
            "OPTIONS": {"socket_connect_timeout": 0.5, "socket_timeout": 0.5},
        }
    }
EVENTSTREAM_REDIS = REDIS.bus if get_bool("BUS", default=True) else None
EVENTSTREAM_REDIS_PREFIX = f"{REDIS_PREFIX}eventstream:"
EVENTSTREAM_DRAIN_SECONDS = get_int("DRAIN_SECONDS", default=2)
EVENTSTREAM_TASKS_METRICS_PORT = get_int("WORKER_METRICS_PORT")
EVENTSTREAM_TRUSTED_PROXIES = get_int("TRUSTED_PROXIES")

if not GRIP_VERIFY:
    # django-grip verifies with any key it finds.
    GRIP_URLS = [url.partition("?")[0] for url in GRIP_URLS]
GRIP_PROXIES = [parse_grip(url) for url in GRIP_URLS]
EVENTSTREAM_PROXY_METRICS = {
    proxy["control_uri"]: address
    for proxy, address in zip(
        GRIP_PROXIES, os.environ.get("GRIP_METRICS_URL", "").split(), strict=False
    )
}

# --- Celery

CELERY_BROKER_URL = os.environ.get("BROKER_URL") or REDIS.broker
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_TRANSPORT_OPTIONS: dict[str, object] = {}
if not os.environ.get("BROKER_URL"):
    CELERY_BROKER_TRANSPORT_OPTIONS = {
        **REDIS.broker_options,
        "visibility_timeout": 300,
        # A killed worker's tasks come back after 10 s rather than 100.
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
    }
    if REDIS_PREFIX:
        CELERY_BROKER_TRANSPORT_OPTIONS["global_keyprefix"] = REDIS_PREFIX
CELERY_TASK_IGNORE_RESULT = True
CELERY_BEAT_SCHEDULER = "django_celery_beat.schedulers:DatabaseScheduler"
CELERY_BEAT_MAX_LOOP_INTERVAL = 5
CELERY_TIMEZONE = "UTC"

# --- the demo

DEMO_DIR = os.environ.get("DEMO_DIR") or None

# --- logging

LOG_LEVEL = os.environ.get("LOG_LEVEL") or "INFO"
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "short": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}
    },
    "handlers": {
        "console": {"class": "logging.StreamHandler", "formatter": "short"},
    },
    "root": {"handlers": ["console"], "level": "WARNING"},
    "loggers": {
        "django": {"handlers": ["console"], "level": "WARNING", "propagate": False},
        "eventstream": {"level": LOG_LEVEL},
        "eventstream_tasks": {"level": LOG_LEVEL},
    },
}
