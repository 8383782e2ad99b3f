"""The concrete project's settings, from nothing but the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.exceptions import ImproperlyConfigured

from deploy.environment import POSTGRESQL_OPTIONS, parse_database_url, parse_redis
from tests.support.processes import ROOT

SECRET = "0123456789abcdefghijklmnopqrstuvwxyz-0123456789-ABCDE"
SAFE = {"SECRET_KEY": SECRET, "ALLOWED_HOSTS": "example.com"}
KEY = "k" * 16 + "0123456789abcdef"


def load(names: str = "DEBUG", **env: str) -> subprocess.CompletedProcess[str]:
    """Load deploy.settings in a process of its own, and print some as JSON."""
    code = (
        "import json; from deploy import settings as s; "
        f"print(json.dumps([getattr(s, n) for n in '{names}'.split()]))"
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        env={"PATH": os.environ["PATH"], **env}, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("env", "text"),
    [
        ({"SECRET_KEY": ""}, "SECRET_KEY must be 50 random"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY must be 50 random"),
        ({"SECRET_KEY": "a" * 60}, "SECRET_KEY must be 50 random"),
        ({"ALLOWED_HOSTS": ""}, "ALLOWED_HOSTS must name"),
        ({"ALLOWED_HOSTS": "*"}, "ALLOWED_HOSTS must name"),
        ({"GRIP_URL": "http://proxy:5561/"}, "GRIP_URL of proxy:5561 must have"),
        ({"GRIP_URL": "http://proxy:5561/?key=changeme"}, "GRIP_URL of proxy:5561"),
        ({"DATABASE_POOL": "many"}, "DATABASE_POOL='many': set it to a whole number"),
        ({"DRAIN_SECONDS": "2s"}, "DRAIN_SECONDS='2s': set it to a whole number"),
        ({"TRUSTED_PROXIES": "-1"}, "TRUSTED_PROXIES='-1': set it to a whole number"),
        ({"DEBUG": "perhaps"}, "DEBUG='perhaps': set it to 1 or 0"),
        (
            {"DATABASE_URL": "postgres://es:hidden/part@localhost/es"},
            "DATABASE_URL has no number as its port; in a password, write / as %2F",
        ),
        (
            {"DATABASE_URL": "postgres://es:[hidden]@localhost/es"},
            "DATABASE_URL has no number as its port",
        ),
        (
            {"DATABASE_URL": "postgres://es:hidden#part@localhost/es"},
            "DATABASE_URL has no number as its port",
        ),
        (
            {
                "REDIS_URL": "redis://:hidden/part@localhost/0",
                "REDIS_SENTINELS": "localhost:26379",
            },
            "REDIS_URL must end with the number of a database",
        ),
    ],
)
def test_insecure_start_is_refused_with_what_to_do(
    env: dict[str, str], text: str
) -> None:
    done = load(**{**SAFE, **env})

    assert done.returncode != 0
    assert text in done.stderr.splitlines()[-1]
    assert "hidden" not in done.stderr


def test_metrics_are_shown_only_where_they_are_asked_for() -> None:
    names = "METRICS EVENTSTREAM_TASKS_METRICS_PORT"

    unasked = load(names, **SAFE)
    asked = load(names, **SAFE, METRICS="1", WORKER_METRICS_PORT="9808")

    assert json.loads(unasked.stdout) == [False, 0]
    assert json.loads(asked.stdout) == [True, 9808]


def test_secure_start_is_not() -> None:
    done = load(
        "DEBUG GRIP_PROXIES CELERY_BROKER_URL EVENTSTREAM_REDIS",
        **SAFE,
        GRIP_URL=f"http://one:5561/?key={KEY} http://two:5561/?key={KEY}",
        REDIS_URL="redis://valkey/0",
        BROKER_URL="amqp://rabbit//",
    )

    assert done.returncode == 0, done.stderr
    debug, proxies, broker, bus = json.loads(done.stdout)
    assert not debug
    assert [proxy["control_uri"] for proxy in proxies] == [
        "http://one:5561", "http://two:5561"
    ]  # fmt: skip
    assert (broker, bus) == ("amqp://rabbit//", "redis://valkey/0")


def test_web_processes_count_limits_together_where_there_is_redis() -> None:
    done = load("CACHES", **SAFE, REDIS_URL="redis://valkey/0", REDIS_PREFIX="a:")

    assert done.returncode == 0, done.stderr
    [caches] = json.loads(done.stdout)
    assert caches["default"]["BACKEND"].endswith("RedisCache")
    assert caches["default"]["LOCATION"] == "redis://valkey/0"
    assert caches["default"]["KEY_PREFIX"] == "a:cache"


def test_pool_is_one_of_postgresql() -> None:
    url = "postgres://user:word@db/name"
    done = load("DATABASES", **SAFE, DATABASE_URL=url, DATABASE_POOL="12")

    assert done.returncode == 0, done.stderr
    [databases] = json.loads(done.stdout)
    assert databases["default"]["OPTIONS"]["pool"]["max_size"] == 12
    assert databases["default"]["CONN_HEALTH_CHECKS"] is True


def test_url_says_how_soon_a_server_that_is_gone_is_noticed() -> None:
    url = "postgres://user:word@db/name?keepalives_idle=60&sslmode=require"

    found = parse_database_url(url, base=Path())["OPTIONS"]

    assert found == {
        **POSTGRESQL_OPTIONS, "keepalives_idle": "60", "sslmode": "require"
    }  # fmt: skip


def test_statements_are_prepared_by_postgresql_alone() -> None:
    url = "postgres://user:word@db/name"
    done = load("DATABASES", **SAFE, DATABASE_URL=url, DATABASE_PREPARE="1")

    assert done.returncode == 0, done.stderr
    [databases] = json.loads(done.stdout)
    assert databases["default"]["OPTIONS"]["prepare_threshold"] == 5


@pytest.mark.parametrize(
    ("bus", "found"), [("", "redis://valkey/0"), ("1", "redis://valkey/0"), ("0", None)]
)
def test_bus_can_be_left_to_the_proxies(bus: str, found: str | None) -> None:
    redis = "redis://valkey/0"
    names = "EVENTSTREAM_REDIS CELERY_BROKER_URL"
    done = load(names, **SAFE, REDIS_URL=redis, BUS=bus)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [found, redis]


def test_keys_before_the_secret_one_are_still_read() -> None:
    done = load("SECRET_KEY_FALLBACKS", **SAFE, SECRET_KEY_FALLBACKS=f"{SECRET}1, b")

    assert json.loads(done.stdout) == [[f"{SECRET}1", "b"]]


def test_development_needs_nothing() -> None:
    assert load(DEBUG="1").returncode == 0


def test_sentinels_are_asked_by_bus_and_broker() -> None:
    found = parse_redis("redis://:p%40ss@ignored/3", ["a:26379", "b:26380"], "main")

    assert found.bus == {
        "sentinels": [("a", 26379), ("b", 26380)],
        "service_name": "main",
        "db": 3,
        "password": "p@ss",
    }
    assert found.broker == ("sentinel://:p%40ss@a:26379/3;sentinel://:p%40ss@b:26380/3")
    assert found.broker_options == {"master_name": "main"}


def test_sentinel_without_port_is_refused() -> None:
    with pytest.raises(ImproperlyConfigured, match="give each as host:port"):
        parse_redis("", ["a"], "main")
