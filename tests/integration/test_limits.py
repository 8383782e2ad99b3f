"""How many streams a user or an address may have: over processes, and by requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import caches
from django.test import Client
from pytest_django import Settings

from eventstream import limits, make_subscribe_token
from eventstream.exceptions import TooManyStreamsError
from eventstream.limits import StreamCounts
from tests.support.holds import HELD_PATH, held_stream
from tests.support.valkey import Valkey

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(scope="module")
def server() -> Iterator[Valkey]:
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
def shared(server: Valkey, settings: Settings) -> None:
    """A cache that processes share; each StreamCounts stands for a process."""
    backend = "django.core.cache.backends.redis.RedisCache"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": server.url}}
    caches["default"].clear()


class Clock:
    """Time as limits sees it: it stands in the middle of a window until it is moved."""

    def __init__(self) -> None:
        self.now = 1_000_000 * limits.WINDOW + limits.WINDOW / 2

    def time(self) -> float:
        return self.now

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("eventstream.limits.time", clock)
    return clock


# --- streams over processes


@pytest.mark.usefixtures("shared", "clock")
def test_processes_count_together() -> None:
    first, second = StreamCounts(), StreamCounts()
    slots = [first.take({"u": 3}), first.take({"u": 3}), second.take({"u": 3})]
    for counts in (first, second):
        with pytest.raises(TooManyStreamsError):
            counts.take({"u": 3})

    slots[0].release()
    first.publish()

    second.take({"u": 3})


@pytest.mark.usefixtures("shared")
def test_next_window_counts_on(clock: Clock) -> None:
    first, second = StreamCounts(), StreamCounts()
    held = [first.take({"u": 2}), first.take({"u": 2})]

    clock.now += limits.WINDOW / 2 + 1  # the first process has not counted anew
    with pytest.raises(TooManyStreamsError):
        second.take({"u": 2})
    assert first.is_behind()
    first.publish()
    clock.now += 20
    with pytest.raises(TooManyStreamsError):
        second.take({"u": 2})
    held.pop().release()
    first.publish()

    second.take({"u": 2})


@pytest.mark.usefixtures("shared")
def test_streams_of_a_killed_process_are_forgotten(clock: Clock) -> None:
    killed, other = StreamCounts(), StreamCounts()
    held = [killed.take({"u": 1})]
    with pytest.raises(TooManyStreamsError):
        other.take({"u": 1})

    clock.now += limits.WINDOW  # and `killed` publishes no more

    other.take({"u": 1})
    del held


@pytest.mark.usefixtures("clock")
def test_cache_that_fails_limits_nobody(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    backend = "django.core.cache.backends.redis.RedisCache"
    url = "redis://secret@127.0.0.1:1"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": url}}
    counts = StreamCounts()

    slots = [counts.take({"u": 5}) for _ in range(5)]
    limits._count_open("user 1", 1)
    limits._count_open("user 1", 1)

    assert len(slots) == 5
    assert "the cache fails" in caplog.text
    assert "secret" not in caplog.text
    with pytest.raises(TooManyStreamsError):
        counts.take({"u": 5})  # what is known here still counts


# --- opens, by requests


def get(headers: dict[str, str], **extra: Any) -> Any:
    return Client().get("/events/?channel=a", headers=headers, **extra)


@pytest.mark.parametrize("kind", ["local", "shared"])
def test_address_that_opens_too_often_is_told_when_to_come_back(
    proxy: dict[str, str],
    settings: Settings,
    clock: Clock,
    kind: str,
    request: pytest.FixtureRequest,
) -> None:
    if kind == "shared":
        request.getfixturevalue("shared")
    settings.EVENTSTREAM_OPENS_PER_ADDRESS = 3
    settings.EVENTSTREAM_ALLOW_ORIGINS = ["https://a.example"]
    headers = {**proxy, "Origin": "https://a.example"}

    answers = [get(headers) for _ in range(4)]
    other = get(headers, REMOTE_ADDR="192.0.2.7")

    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert other.status_code == 200
    refused = answers[-1]
    assert 30 <= int(refused["Retry-After"]) <= 41
    assert refused["Access-Control-Allow-Origin"] == "https://a.example"
    assert refused["Access-Control-Expose-Headers"] == "Retry-After"
    assert refused["Content-Type"] == "text/plain"
    assert "Grip-Hold" not in refused
    clock.now += int(refused["Retry-After"])
    assert get(headers).status_code == 200


@pytest.mark.usefixtures("clock")
def test_forwarded_address_counts_only_if_a_proxy_is_trusted(
    proxy: dict[str, str], settings: Settings
) -> None:
    settings.EVENTSTREAM_OPENS_PER_ADDRESS = 1

    def statuses(last: int) -> list[int]:
        return [
            get({**proxy, "X-Forwarded-For": f"198.51.100.{last + n}"}).status_code
            for n in range(2)
        ]

    assert statuses(1) == [200, 429]  # inventing addresses does not help
    settings.EVENTSTREAM_TRUSTED_PROXIES = 1
    assert statuses(10) == [200, 200]


@pytest.mark.usefixtures("clock")
def test_user_that_opens_too_often_is_refused_and_no_other(
    proxy: dict[str, str], settings: Settings
) -> None:
    settings.EVENTSTREAM_OPENS_PER_USER = 2
    headers = []
    for name in ("one", "two"):
        token = make_subscribe_token(User.objects.create_user(name), ["a"])
        headers.append({**proxy, "Authorization": f"Bearer {token}"})

    assert [get(headers[0]).status_code for _ in range(3)] == [200, 200, 429]
    assert get(headers[1]).status_code == 200
    assert [get(proxy).status_code for _ in range(3)] == [200, 200, 200]


def test_next_links_are_not_opens(proxy: dict[str, str], settings: Settings) -> None:
    settings.EVENTSTREAM_OPENS_PER_ADDRESS = 1
    headers = {**proxy, **held_stream("a")}

    answers = [Client().get(HELD_PATH, headers=headers) for _ in range(5)]

    assert [answer["Grip-Hold"] for answer in answers] == ["stream"] * 5


def test_limits_can_be_switched_off(proxy: dict[str, str], settings: Settings) -> None:
    for name in ("OPENS", "STREAMS"):
        for who in ("USER", "ADDRESS"):
            setattr(settings, f"EVENTSTREAM_{name}_PER_{who}", None)

    started = time.monotonic()
    statuses = {get(proxy).status_code for _ in range(20)}

    assert statuses == {200}
    assert time.monotonic() - started < 60
