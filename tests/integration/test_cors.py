"""Which pages of other origins may read. Statuses and answers are those of the endpoint."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from eventstream import checks
from eventstream.cors import DEFAULT_HEADERS

pytestmark = pytest.mark.django_db(transaction=True)

A, B, C = "https://a.example", "https://b.example:8443", "https://c.example"


def get(origin: str | None, path: str = "/events/?channel=x", **headers: str) -> Any:
    sent = {**headers, **({"Origin": origin} if origin else {})}
    return Client().get(path, headers=sent)


@pytest.mark.parametrize(
    ("allowed", "credentials", "origin", "answer", "with_credentials", "varies"),
    [
        ([], False, A, None, False, False),
        ([A], False, A, A, False, True),
        ([A], False, C, None, False, True),
        ([A], False, None, None, False, True),
        ([A, B], True, A, A, True, True),
        ([A, B], True, B, B, True, True),
        ([A, B], True, C, None, False, True),
        ([A, B], True, "https://b.example", None, False, True),  # another port
        ([A, B], True, "http://a.example", None, False, True),  # another scheme
        ([A, B], True, "https://a.example.evil.example", None, False, True),
        ([A, B], True, "null", None, False, True),
        (["https://A.Example"], False, A, A, False, True),
        ("*", False, A, "*", False, False),
        ("*", True, A, "*", False, False),
        ("*", True, "null", "*", False, False),
        (["*", A], True, A, A, True, True),
        (["*", A], True, C, "*", False, True),
    ],
)
def test_origins_are_let_in_exactly_as_configured(
    settings: Settings,
    allowed: Any,
    credentials: bool,
    origin: str | None,
    answer: str | None,
    with_credentials: bool,
    varies: bool,
) -> None:
    settings.EVENTSTREAM_ALLOW_ORIGINS = allowed
    settings.EVENTSTREAM_ALLOW_CREDENTIALS = credentials

    response = get(origin)

    assert response.headers.get("Access-Control-Allow-Origin") == answer
    is_allowed = "Access-Control-Allow-Credentials" in response
    assert is_allowed == with_credentials
    assert ("Origin" in response.headers.get("Vary", "")) == varies


def test_older_name_of_the_setting_adds_to_the_other(settings: Settings) -> None:
    settings.EVENTSTREAM_ALLOW_ORIGINS = [A]
    settings.EVENTSTREAM_ALLOW_ORIGIN = B

    assert get(A)["Access-Control-Allow-Origin"] == A
    assert get(B)["Access-Control-Allow-Origin"] == B


@pytest.mark.parametrize("allowed", [DEFAULT_HEADERS, "X-Mine, Last-Event-ID"])
def test_preflight_is_answered(settings: Settings, allowed: str) -> None:
    settings.EVENTSTREAM_ALLOW_ORIGINS = [A]
    settings.EVENTSTREAM_ALLOW_CREDENTIALS = True
    if allowed != DEFAULT_HEADERS:
        settings.EVENTSTREAM_ALLOW_HEADERS = allowed
    headers = {
        "Origin": A,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "authorization, last-event-id",
    }

    response = Client().options("/events/", headers=headers)

    assert response.status_code == 204
    assert response["Access-Control-Allow-Origin"] == A
    assert response["Access-Control-Allow-Methods"] == "GET, OPTIONS"
    assert response["Access-Control-Allow-Credentials"] == "true"
    assert response["Access-Control-Allow-Headers"] == allowed


def test_preflight_of_another_origin_allows_nothing(settings: Settings) -> None:
    settings.EVENTSTREAM_ALLOW_ORIGINS = [A]
    headers = {"Origin": C, "Access-Control-Request-Method": "GET"}

    response = Client().options("/events/", headers=headers)

    assert not [name for name in response.headers if name.startswith("Access-Control")]


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("get", {}, 501),
        ("get", {"Last-Event-ID": "error"}, 400),
        ("get", {"Last-Event-ID": "nonsense"}, 200),
        ("post", {}, 405),
    ],
    ids=["unsupported", "resumed error", "stream-error", "method"],
)
def test_page_may_read_errors_too(
    settings: Settings, method: str, headers: dict[str, str], status: int
) -> None:
    settings.EVENTSTREAM_ALLOW_ORIGINS = [A]

    response = getattr(Client(), method)(
        "/events/?channel=x", headers={"Origin": A, **headers}
    )

    assert response.status_code == status
    assert response["Access-Control-Allow-Origin"] == A
    assert response["Access-Control-Expose-Headers"] == "Retry-After"


def test_credentials_for_nobody_named_are_a_warning(settings: Settings) -> None:
    settings.EVENTSTREAM_ALLOW_CREDENTIALS = True
    settings.EVENTSTREAM_ALLOW_ORIGIN = "*"
    settings.EVENTSTREAM_REDIS = "redis://127.0.0.1:1/0"

    (found,) = checks.check_settings(None)

    assert found.id == "eventstream.W020"
    settings.EVENTSTREAM_ALLOW_ORIGINS = [A]
    assert checks.check_settings(None) == []


def test_no_cache_between_may_keep_an_answer() -> None:
    response = get(None)

    assert response["Cache-Control"] == "no-cache, no-store, no-transform, private"
    assert response["X-Content-Type-Options"] == "nosniff"
