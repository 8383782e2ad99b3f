"""May this process get requests?"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.test import AsyncClient, Client
from pytest_django import Settings

from eventstream import health
from tests.support.processes import ROOT

pytestmark = pytest.mark.django_db(transaction=True)

PROXY = "http://127.0.0.1:5561/?key=tests-only-0123456789-0123456789-0123456789"


@pytest.fixture(autouse=True)
def forget() -> None:
    health._migrated.clear()


def test_live_asks_no_database(client: Client, django_assert_num_queries) -> None:  # type: ignore[no-untyped-def]
    with django_assert_num_queries(0):
        response = client.get("/events/health/live")

    assert (response.status_code, response.json()) == (
        200,
        {"live": True, "grip": "none"},
    )
    assert "no-store" in response["Cache-Control"]


def test_live_tells_a_signature_that_is_not_accepted(
    client: Client, settings: Settings
) -> None:
    settings.GRIP_URL = PROXY

    response = client.get("/events/health/live", HTTP_GRIP_SIG="forged")

    assert response.json()["grip"] == "invalid"


async def test_ready_where_streams_can_be_held(async_client: AsyncClient) -> None:
    response = await async_client.get("/events/health/ready")

    assert (response.status_code, response.json()) == (
        200,
        {"ready": True, "missing": []},
    )


def test_wsgi_is_ready_only_behind_a_proxy(client: Client, settings: Settings) -> None:
    response = client.get("/events/health/ready")

    assert response.status_code == 503
    assert response.json()["missing"] == [
        "holding: this is WSGI, and no GRIP proxy is configured"
    ]
    settings.GRIP_URL = PROXY
    assert client.get("/events/health/ready").status_code == 200


@pytest.mark.parametrize(
    ("path", "missing"),
    [
        ("empty.sqlite3", "database 'default' is not migrated"),
        ("no-such-directory/secret.sqlite3", "database 'default': OperationalError"),
    ],
)
def test_unmigrated_and_missing_databases_are_told_without_secrets(
    tmp_path: Path, path: str, missing: str
) -> None:
    code = (
        "from django.test import AsyncRequestFactory; from eventstream import health;"
        "print(health.find_missing(AsyncRequestFactory().get('/')))"
    )
    environment = {"ES_DB": "", "ES_SQLITE": str(tmp_path / path)}

    done = subprocess.run(
        [sys.executable, "manage.py", "shell", "--no-imports", "-c", code],
        cwd=ROOT, env={**os.environ, **environment, "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert done.stdout.strip() == repr([missing])


def test_only_looking_is_allowed(client: Client) -> None:
    assert client.post("/events/health/ready").status_code == 405
