"""Fixtures with a database."""

from __future__ import annotations

import time

import jwt
import pytest
from pytest_django import Settings

from eventstream.log import database_now
from tests.support.targets import RecordingTarget

KEY = "k" * 32


@pytest.fixture
def proxy(settings: Settings) -> dict[str, str]:
    """Headers of a request that came through the GRIP proxy."""
    settings.GRIP_PROXIES = [{"control_uri": "http://127.0.0.1:1", "key": KEY}]
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    settings.EVENTSTREAM_UNNUMBERED_AFTER = 0
    claims = {"iss": "pushpin", "exp": int(time.time()) + 3600}
    return {"Grip-Sig": jwt.encode(claims, KEY, algorithm="HS256")}


@pytest.fixture
def one_minute(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Series whose minute does not end during the test."""
    now = database_now("default")
    monkeypatch.setattr("eventstream.series.database_now", lambda using: now)


@pytest.fixture
def targets(
    monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> dict[str, RecordingTarget]:
    """Two targets, "a" and "b"; nothing is relayed but by the test."""
    settings.EVENTSTREAM_DISPATCHER = "tests.support.targets.IdleDispatcher"
    found = {name: RecordingTarget(name) for name in ("a", "b")}
    for module in (
        "api", "cursors", "deadletters", "jobs", "pausing", "relay", "retrying",
        "status.survey", "undelivered",
        "admin.channels", "admin.deliveries", "admin.events", "admin.undelivered",
        "console.bench", "console.delivery", "console.doctor", "console.events",
    ):  # fmt: skip
        monkeypatch.setattr(f"eventstream.{module}.get_targets", lambda: found)
    return found
