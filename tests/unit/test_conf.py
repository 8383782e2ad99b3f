"""Settings and their checks."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import types
from typing import Any

import pytest
from celery import Celery
from django.core.exceptions import ImproperlyConfigured
from django.db import connections
from django.http import HttpResponse
from django.test import RequestFactory
from django.urls import include, path
from django.views.debug import ExceptionReporter, SafeExceptionReporterFilter
from django_grip import GripMiddleware
from kombu import Queue
from pytest_django import Settings

from eventstream import checks, conf
from eventstream_tasks import checks as tasks_checks
from eventstream_tasks import conf as tasks_conf
from eventstream_tasks.checks import check_celery_app
from tests.support.processes import ROOT

GRIP = "http://127.0.0.1:5561/?key=" + "k" * 32


class PeersStorage:
    """Of django-eventstream: it appends by another name."""


class PeersManager:
    """Of django-eventstream, which knows of no initial state."""


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("PARTITIONS", 0, "must be 1 to 4,096"),
        ("PARTITIONS", "16", "must be"),
        ("PARTITIONS", True, "must be"),
        ("RETENTION", 59, "must be 60 to 315,360,000 seconds"),
        ("RETENTION", "1d", "must be a number of seconds"),
        ("REDIS", "localhost:6379", "must be a redis:// URL"),
        ("REDIS", 5, "must be a redis:// URL"),
        ("STORAGE_CLASS", "no.such.Class", "cannot be imported"),
        ("CHANNELMANAGER_CLASS", None, "must be the dotted path"),
        (
            "STORAGE_CLASS",
            f"{__name__}.PeersStorage",
            "must be derived from eventstream.storage.DjangoModelStorage, and tests.",
        ),
        (
            "CHANNELMANAGER_CLASS",
            f"{__name__}.PeersManager",
            "must be derived from eventstream.channelmanager.ChannelManagerBase",
        ),
        ("ALLOW_ORIGINS", ["example.com"], "is not an origin"),
        ("ALLOW_ORIGINS", ["https://example.com/path"], "is not an origin"),
        ("REDIS", "redis://localhost:abc/0", "has no number as its port"),
        ("REDIS", "redis://:pass/word@localhost/0", "write / as %2F"),
        ("REDIS", "redis://localhost/0?hots=1", "unexpected keyword argument 'hots'"),
        ("REDIS", {"hots": "localhost"}, "unexpected keyword argument 'hots'"),
        ("REDIS", {"sentinels": [("127.0.0.1", 26379)]}, "'service_name'"),
        ("REDIS", {"url": 5}, "must be a redis:// URL"),
        ("REDIS", {"host": "localhost", "db": "main"}, "has no number as its db"),
        ("CHANNELMANAGER_CLASS", ".tests.channels.ChannelManager", "dotted path"),
        (
            "DISPATCHER",
            "eventstream.conf.SETTINGS",
            "must be the dotted path of a class",
        ),
        (
            "DISPATCHER",
            f"{__name__}.PeersStorage",
            "must be derived from eventstream.dispatch.Dispatcher, and tests.",
        ),
        ("DATABASES", "default", "must be a list of strings"),
        ("DATABASES", [], "must name a database"),
        ("DATABASES", ["default", "default"], "names 'default' more than once"),
        ("DATABASES", ["default", "nope"], "names 'nope', which is not in DATABASES"),
        ("PROXY_METRICS", {"http://a": "httpfoo"}, "must be a dict of control URIs"),
        ("ALLOW_CREDENTIALS", "yes", "must be True or False"),
    ],
)
def test_impossible_value_is_an_error_by_check_and_by_use(
    settings: Settings, name: str, value: Any, text: str
) -> None:
    setattr(settings, f"EVENTSTREAM_{name}", value)

    (found,) = checks.check_settings(None)
    assert found.id == "eventstream.E001"
    assert text in found.msg
    assert found.hint
    assert check_celery_app(None) == []
    assert checks.check_sweep(None, databases=["default"]) == []
    with pytest.raises(ImproperlyConfigured, match=f"EVENTSTREAM_{name} "):
        conf.get_options()


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("QUEUE", "", "must be a string that is not empty"),
        ("QUEUE", None, "must be a string that is not empty"),
        ("SOFT_TIME_LIMIT", "120", "must be a whole number"),
        ("REPUBLISH_EVERY", "10", "must be a whole number"),
        ("REPUBLISH_EVERY", 0, "must be 1 to 3,600"),
        ("REPUBLISH_EVERY", 2.5, "must be a whole number"),
        ("PRUNE_EVERY", -1, "must be 1 to 86,400"),
        ("WAKE_TIMEOUT", "soon", "must be a number of seconds"),
        ("WAKE_TIMEOUT", 0, "must be 0.01 to 60 seconds"),
        ("METRICS_PORT", 65_536, "must be 0 to 65,535"),
    ],
)
def test_impossible_value_for_the_tasks_is_an_error_by_check_and_by_use(
    settings: Settings, name: str, value: Any, text: str
) -> None:
    setattr(settings, f"EVENTSTREAM_TASKS_{name}", value)

    (found,) = tasks_checks.check_settings(None)
    assert found.id == "eventstream_tasks.E001"
    assert found.msg.startswith(f"EVENTSTREAM_TASKS_{name} {text}")
    assert found.hint
    with pytest.raises(ImproperlyConfigured, match=f"EVENTSTREAM_TASKS_{name} "):
        tasks_conf.get_options()


def test_setting_that_is_none_of_the_tasks_is_an_error(settings: Settings) -> None:
    settings.EVENTSTREAM_TASKS_QUEU = "events"

    (found,) = tasks_checks.check_settings(None)

    assert found.id == "eventstream_tasks.E002"
    assert found.msg.startswith("EVENTSTREAM_TASKS_QUEU is not a setting")
    assert "EVENTSTREAM_TASKS_QUEUE" in str(found.hint)
    assert ids(checks.check_settings(None)) == ["eventstream.W001"]


def test_task_that_has_no_time_to_hand_on_is_a_warning(settings: Settings) -> None:
    settings.EVENTSTREAM_TASKS_TIME_LIMIT = 121
    assert tasks_checks.check_settings(None) == []

    settings.EVENTSTREAM_TASKS_TIME_LIMIT = 120
    assert ids(tasks_checks.check_settings(None)) == ["eventstream_tasks.W002"]


def test_impossible_limit_of_a_task_leaves_the_check_to_say_it() -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "check"],
        cwd=ROOT,
        env={
            **os.environ,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "ES_SET": '{"EVENTSTREAM_TASKS_SOFT_TIME_LIMIT": "soon"}',
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert "(eventstream_tasks.E001) EVENTSTREAM_TASKS_SOFT_TIME_LIMIT" in done.stderr
    assert "Traceback" not in done.stderr


def ids(found: list[Any]) -> list[str]:
    return sorted(message.id for message in found)


def test_setting_that_is_none_of_ours_is_an_error(settings: Settings) -> None:
    settings.EVENTSTREAM_RETENTON = 60

    (found,) = checks.check_settings(None)

    assert found.id == "eventstream.E002"
    assert str(found.hint).startswith("Did you mean EVENTSTREAM_RETENTION? The setting")


def test_setting_that_is_like_none_of_ours_has_them_listed(settings: Settings) -> None:
    settings.EVENTSTREAM_TEA = 1

    (found,) = checks.check_settings(None)

    assert str(found.hint).startswith(
        "The settings are: EVENTSTREAM_ALLOW_CREDENTIALS, "
    )


def test_proxy_without_middleware_is_an_error(settings: Settings) -> None:
    settings.GRIP_URL = GRIP
    assert ids(checks.check_settings(None)) == []

    settings.MIDDLEWARE = []
    assert ids(checks.check_settings(None)) == ["eventstream.E003"]


@pytest.mark.parametrize(
    ("exempt", "found"),
    [
        ([], ["eventstream.W008"]),
        (["^events/health/"], ["eventstream.W008"]),
        (["^events/(next|health)/"], []),
    ],
)
def test_redirect_of_a_proxys_questions_is_a_warning(
    settings: Settings, exempt: list[str], found: list[str]
) -> None:
    settings.MIDDLEWARE = [checks.SECURITY_MIDDLEWARE, *settings.MIDDLEWARE]
    settings.SECURE_SSL_REDIRECT = True
    settings.SECURE_REDIRECT_EXEMPT = exempt
    assert "eventstream.W008" not in ids(checks.check_settings(None))

    settings.GRIP_URL = GRIP
    messages = checks.check_settings(None)

    assert ids(messages) == found
    assert all("[r'^events/(next|health)/']" in str(each.hint) for each in messages)


def test_redirect_is_told_of_where_a_route_has_no_slash(settings: Settings) -> None:
    urlconf: Any = types.ModuleType("urlconf")
    urlconf.urlpatterns = [path("news", include("eventstream.urls"))]
    settings.ROOT_URLCONF = urlconf
    settings.MIDDLEWARE = [checks.SECURITY_MIDDLEWARE, *settings.MIDDLEWARE]
    settings.SECURE_SSL_REDIRECT = True
    settings.GRIP_URL = GRIP

    [message] = checks.check_settings(None)

    assert "/news/next/ is not exempt" in message.msg


def test_proxy_without_a_key_is_a_warning(settings: Settings) -> None:
    settings.GRIP_URL = "http://127.0.0.1:5561/"

    assert ids(checks.check_settings(None)) == ["eventstream.W005"]


def test_proxy_with_half_of_its_keys_is_an_error(settings: Settings) -> None:
    proxy = {"control_uri": "http://127.0.0.1:5561", "verify_key": "k" * 32}
    settings.GRIP_PROXIES = [proxy]
    assert ids(checks.check_settings(None)) == ["eventstream.E020"]

    settings.GRIP_PROXIES = [proxy | {"key": "k" * 32}]
    assert ids(checks.check_settings(None)) == []


@pytest.mark.parametrize("where", ["proxy", "GRIP_VERIFY_KEY"])
def test_public_key_without_what_it_takes_is_an_error(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    pem = "-----BEGIN PUBLIC KEY-----\nMFkw…\n-----END PUBLIC KEY-----"
    proxy = {"control_uri": "https://api.fastly.com/service/x", "key": "k" * 32}
    if where == "proxy":
        proxy["verify_key"] = pem
    else:
        settings.GRIP_VERIFY_KEY = pem
    settings.GRIP_PROXIES = [proxy]

    monkeypatch.setattr(checks, "find_spec", {}.get)
    assert ids(checks.check_settings(None)) == ["eventstream.E023"]

    monkeypatch.setattr(checks, "find_spec", {"cryptography": "there"}.get)
    assert ids(checks.check_settings(None)) == []


KEY = "key-that-nobody-is-shown"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("PROXIES", ["http://127.0.0.1:5561"], "must be a list of dicts"),
        (
            "PROXIES",
            {"control_uri": "http://127.0.0.1:5561"},
            "must be a list of dicts",
        ),
        (
            "PROXIES",
            [{"control_url": "http://127.0.0.1:5561", "key": KEY}],
            "has no control_uri in its entry 0, but control_url, key",
        ),
        ("PROXIES", [{}], "has no control_uri in its entry 0, but nothing"),
        ("PROXIES", [{"control_uri": None}], "entry 0 that must be a URL"),
        (
            "PROXIES",
            [{"control_uri": "http://127.0.0.1:5561", "key": 5}],
            "has a key in its entry 0 that must be a string, or bytes",
        ),
        (
            "PROXIES",
            [{"control_uri": "http://127.0.0.1:5561", "key": KEY, "verify_key": None}],
            "leave it out if there is none",
        ),
        ("VERIFY_KEY", 5, "must be a string, or bytes"),
        ("URL", 5, "must be a URL such as 'http://127.0.0.1:5561'"),
        ("URL", f"127.0.0.1:5561/?key={KEY}", "must be a URL such as"),
        ("URL", f"http://127.0.0.1:port/?key={KEY}", "must be a URL such as"),
        (
            "URL",
            f"http://127.0.0.1:1/?key={KEY} http://127.0.0.1:2/",
            "must be one URL",
        ),
        ("URL", f"http://127.0.0.1:5561/?key={KEY}\n", "without spaces"),
        ("URL", f"http://127.0.0.1:5561/?key=base64:{KEY}+", "is not base64"),
        ("PREFIX", 5, "must be a string"),
    ],
)
def test_impossible_proxy_is_an_error_by_check_and_by_use(
    settings: Settings, name: str, value: Any, text: str
) -> None:
    setattr(settings, f"GRIP_{name}", value)

    (found,) = checks.check_settings(None)

    assert found.id == "eventstream.E022"
    assert found.msg.startswith(f"GRIP_{name} ")
    assert text in found.msg
    assert KEY not in found.msg
    assert found.hint
    with pytest.raises(ImproperlyConfigured, match=f"GRIP_{name} "):
        conf.grip_prefix() if name == "PREFIX" else conf.grip_proxies()


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"verify_key": "k" * 32},
        {"key": "k" * 32, "verify_key": "-----BEGIN PUBLIC KEY-----"},
    ],
    ids=["W005", "E020", "E023"],
)
def test_password_of_a_proxy_is_not_shown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, keys: dict[str, str]
) -> None:
    uri = "http://user:password@127.0.0.1:5561"
    settings.GRIP_PROXIES = [{"control_uri": uri, **keys}]
    monkeypatch.setattr(checks, "find_spec", {}.get)

    (found,) = checks.check_settings(None)

    assert found.msg.startswith("The GRIP proxy http://127.0.0.1:5561 ")


class Filter(SafeExceptionReporterFilter):
    hidden_settings = re.compile(
        f"{SafeExceptionReporterFilter.hidden_settings.pattern}|GRIP_URL|REDIS|BROKER",
        re.IGNORECASE,
    )


@pytest.mark.parametrize("is_filtered", [False, True])
def test_report_of_an_error_hides_what_docs_security_says(
    settings: Settings, is_filtered: bool
) -> None:
    request: Any = RequestFactory().get("/")
    if is_filtered:
        request.exception_reporter_filter = Filter()
        settings.GRIP_URL = f"http://127.0.0.1:5561/?key={KEY}"
        settings.EVENTSTREAM_REDIS = f"redis://:{KEY}@127.0.0.1/0"
        settings.CELERY_BROKER_URL = f"redis://:{KEY}@127.0.0.1/0"
    else:
        settings.GRIP_PROXIES = [{"control_uri": "http://127.0.0.1:5561", "key": KEY}]
        settings.EVENTSTREAM_REDIS = {"host": "127.0.0.1", "password": KEY}

    reporter = ExceptionReporter(request, ValueError, ValueError("text"), None)
    report = reporter.get_traceback_text() + reporter.get_traceback_html()

    assert "EVENTSTREAM_REDIS" in report
    assert KEY not in report


def test_password_of_a_bus_is_not_shown(settings: Settings) -> None:
    settings.EVENTSTREAM_REDIS = "redis://:pass/word@localhost/0"

    (found,) = checks.check_settings(None)

    assert "pass/" not in found.msg
    assert "'pass'" not in found.msg


@pytest.mark.parametrize(
    "value",
    [
        "redis://:p%2Fw@localhost:6379/0?socket_timeout=2",
        "rediss://localhost?ssl_cert_reqs=none",
        "unix:///run/redis.sock",
        {"url": "redis://localhost", "client_name": "web"},
        {"host": "localhost", "port": 6379, "ssl": True, "decode_responses": True},
        {
            "sentinels": [("a", 26379), ("b", 26379)],
            "service_name": "main",
            "password": "x",
        },
    ],
)
def test_ways_to_name_a_bus_pass(settings: Settings, value: Any) -> None:
    settings.EVENTSTREAM_REDIS = value

    assert ids(checks.check_settings(None)) == []
    assert conf.get_options().redis == value


def test_url_of_a_proxy_beside_a_list_of_them_is_an_error(
    settings: Settings, rf: RequestFactory
) -> None:
    settings.MIDDLEWARE = ["django_grip.GripMiddleware", *settings.MIDDLEWARE]
    settings.GRIP_URL = GRIP
    settings.GRIP_PROXIES = []
    found = checks.check_settings(None)
    del settings.GRIP_PROXIES
    assert ids(found) == ["eventstream.E021"]
    assert ids(checks.check_settings(None)) == []

    # Why: an entry for each request, in django-grip. When it no longer does that, the
    # check can go.
    settings.GRIP_PROXIES = []
    middleware = GripMiddleware(lambda request: HttpResponse())
    for _ in range(3):
        middleware.process_request(rf.get("/", headers={"Grip-Sig": "x"}))
    assert len(settings.GRIP_PROXIES) == 3


def test_neither_bus_nor_proxy_is_a_warning(settings: Settings) -> None:
    settings.EVENTSTREAM_REDIS = None

    assert ids(checks.check_settings(None)) == ["eventstream.W001"]


def test_wsgi_alone_without_a_proxy_is_a_warning(settings: Settings) -> None:
    settings.EVENTSTREAM_REDIS = "redis://127.0.0.1:1/0"
    settings.WSGI_APPLICATION = "tests.wsgi.application"
    assert ids(checks.check_settings(None)) == []

    settings.ASGI_APPLICATION = None
    assert ids(checks.check_settings(None)) == ["eventstream.W002"]


def test_batch_smaller_than_an_event_is_a_warning(settings: Settings) -> None:
    settings.EVENTSTREAM_REDIS = "redis://127.0.0.1:1/0"
    settings.EVENTSTREAM_BATCH_BYTES = 100_000

    assert ids(checks.check_settings(None)) == ["eventstream.W004"]


@pytest.mark.parametrize(
    ("lease", "connect", "publish", "found"),
    [
        (15, 2, 5, []),
        (15, 2, 7.5, ["eventstream.W009"]),  # the bus connects in as much
        (15, 10, 5, ["eventstream.W009"]),
        (30, 10, 12, []),
    ],
)
def test_lease_shorter_than_a_call_is_a_warning(
    settings: Settings, lease: float, connect: float, publish: float, found: list[str]
) -> None:
    settings.EVENTSTREAM_REDIS = "redis://127.0.0.1:1/0"
    settings.EVENTSTREAM_LEASE_SECONDS = lease
    settings.EVENTSTREAM_CONNECT_TIMEOUT = connect
    settings.EVENTSTREAM_PUBLISH_TIMEOUT = publish

    assert ids(checks.check_settings(None)) == found


@pytest.mark.parametrize(
    ("pool", "found"),
    [
        ({"min_size": 1, "max_size": 3}, ["eventstream.W007"]),
        ({"min_size": 1, "max_size": 4}, []),
        ({"min_size": 4}, []),
        ({"min_size": 2}, ["eventstream.W007"]),
        (True, []),
        (False, []),
    ],
)
def test_pool_that_the_readers_take_whole_is_a_warning(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, pool: object, found: list[str]
) -> None:
    settings.EVENTSTREAM_REDIS = "redis://127.0.0.1:1/0"
    options = connections["default"].settings_dict["OPTIONS"]
    monkeypatch.setitem(options, "pool", pool)

    assert ids(checks.check_settings(None)) == found


def test_project_with_its_celery_app_passes(settings: Settings) -> None:
    settings.EVENTSTREAM_DISPATCHER = "eventstream_tasks.dispatch.CeleryDispatcher"

    assert check_celery_app(None) == []


def test_project_without_a_celery_app_is_warned(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Default:
        main = "default"

    monkeypatch.setattr("eventstream_tasks.checks.current_app", Default())
    settings.EVENTSTREAM_DISPATCHER = "eventstream_tasks.dispatch.CeleryDispatcher"

    assert ids(check_celery_app(None)) == ["eventstream_tasks.W001"]
    settings.EVENTSTREAM_DISPATCHER = "eventstream.dispatch.InlineDispatcher"
    assert check_celery_app(None) == []


def test_queue_that_celery_is_not_to_create_is_warned_of(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = Celery("project", set_as_current=False)
    app.conf.task_create_missing_queues = False
    app.conf.task_queues = [Queue("own")]
    monkeypatch.setattr("eventstream_tasks.checks.current_app", app)
    assert tasks_checks.check_queue(None) == []

    settings.EVENTSTREAM_DISPATCHER = "eventstream_tasks.dispatch.CeleryDispatcher"
    [found] = tasks_checks.check_queue(None)
    assert found.id == "eventstream_tasks.W004"
    assert "'eventstream' is not in CELERY_TASK_QUEUES" in found.msg

    settings.EVENTSTREAM_TASKS_QUEUE = "own"
    assert tasks_checks.check_queue(None) == []

    settings.EVENTSTREAM_TASKS_QUEUE = 5  # for check_settings to say
    assert tasks_checks.check_queue(None) == []


def test_project_whose_celery_creates_queues_is_not(settings: Settings) -> None:
    settings.EVENTSTREAM_DISPATCHER = "eventstream_tasks.dispatch.CeleryDispatcher"

    assert tasks_checks.check_queue(None) == []


def test_beat_whose_times_are_not_the_projects_is_warned_of(settings: Settings) -> None:
    assert tasks_checks.check_beat(None) == []

    settings.USE_TZ = False
    assert ids(tasks_checks.check_beat(None)) == ["eventstream_tasks.W003"]

    settings.DJANGO_CELERY_BEAT_TZ_AWARE = False
    assert tasks_checks.check_beat(None) == []


def test_proxies_come_from_both_settings_once(settings: Settings) -> None:
    settings.GRIP_PROXIES = [
        {"control_uri": "http://127.0.0.1:5561"},
        {"control_uri": "http://other:5561", "key": "x"},
    ]
    settings.GRIP_URL = GRIP

    proxies = {proxy["control_uri"]: proxy for proxy in conf.grip_proxies()}

    assert sorted(proxies) == ["http://127.0.0.1:5561", "http://other:5561"]
    assert proxies["http://127.0.0.1:5561"]["key"] == "k" * 32
    assert len(settings.GRIP_PROXIES) == 2


def test_bus_is_a_url_or_arguments(settings: Settings) -> None:
    settings.EVENTSTREAM_REDIS = "redis://h:1/2"
    assert conf.redis_arguments() == {"url": "redis://h:1/2"}
    settings.EVENTSTREAM_REDIS = {"host": "h"}
    assert conf.redis_arguments() == {"host": "h"}
    for nothing in (None, ""):
        settings.EVENTSTREAM_REDIS = nothing
        assert conf.redis_arguments() is None
